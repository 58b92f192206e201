"""Migrations and runtimes, run as an operator does."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from crucible.v1 import runtime_service_pb2
from crucible_store.migrate import expected_revision
from crucible_store.runtime_service import RuntimeService
from crucible_store.schema import SCHEMA_REVISION, metadata
from crucible_testkit import PostgresServer

from .conftest import Store
from .samples import an_executor, heartbeat

RUNTIMES = Path(__file__).parents[2] / "deploy" / "runtimes"
FILE = """
name = "{name}"
display_name = "Some 1.0"
default_entrypoint = "main.x"
[limits.default]
wall_time = 1.5
cpu_time = 10
memory_bytes = 268435456
disk_bytes = 67108864
output_bytes = 1048576
processes = 64
open_files = 256
[limits.maximum]
wall_time = 3600
cpu_time = 3600
memory_bytes = 4294967296
disk_bytes = 1073741824
output_bytes = 67108864
processes = 512
open_files = 1024
"""


def migrate(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "crucible_store", "migrate", *arguments],
        env=os.environ | {"CRUCIBLE_DATABASE_URL": url, "CRUCIBLE_MIGRATION_SECONDS": "30"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_store_waits_for_the_newest_migration() -> None:
    assert expected_revision() == SCHEMA_REVISION


def test_many_migrate_at_once(database_url: str) -> None:
    runs = [migrate(database_url, "--runtimes", str(RUNTIMES)) for _ in range(4)]
    errors = [run.communicate(timeout=100)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, errors
    assert sum("Running upgrade" in error for error in errors) == 1
    engine = sa.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == [], "the tables are those that the code knows"
        names = connection.execute(sa.text("SELECT name FROM runtimes ORDER BY name")).scalars().all()
    assert names == sorted(path.parent.name for path in RUNTIMES.glob("*/runtime.toml"))


def test_a_migration_waits_for_the_database() -> None:
    with PostgresServer() as postgres:
        url = postgres.create_database()
        postgres.stop()
        run = migrate(url)
        assert run.stderr is not None
        while "database.waiting" not in run.stderr.readline():
            assert run.poll() is None
        postgres.start()
        run.communicate(timeout=60)
        assert run.returncode == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (FILE.format(name="Bad Name"), "name: String should match"),
        (FILE.format(name="x").replace("open_files = 256", ""), "limits.default.open_files: Field required"),
        ("name =", "runtime.toml: "),
        (None, "holds no <name>/runtime.toml"),
    ],
)
def test_a_bad_runtime_is_one_clear_line(database_url: str, tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "runtime.toml").write_text(content)
    run = migrate(database_url, "--runtimes", str(tmp_path))
    _, error = run.communicate(timeout=60)
    assert run.returncode == 1
    assert says in error
    assert len(error.splitlines()) == 1


async def test_runtimes_are_listed_with_who_offers_them(store: Store, store_database_url: str, tmp_path: Path) -> None:
    for name in ("y", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runtime.toml").write_text(FILE.format(name=name))
    run = migrate(store_database_url, "--runtimes", str(tmp_path))
    await asyncio.to_thread(run.communicate)
    await store.ledger.heartbeat(heartbeat(an_executor(), runtimes=("x",)), seconds=15)
    service = RuntimeService(store.database)
    answer = await service.ListRuntimes(runtime_service_pb2.ListRuntimesRequest(), None)  # pyright: ignore[reportArgumentType]  unused
    assert [(runtime.name, runtime.available) for runtime in answer.runtimes] == [("x", True), ("y", False)]
    first = answer.runtimes[0]
    assert (first.entrypoint, first.default_limits.wall_time.nanos) == ("main.x", 500_000_000)
    assert first.maximum_limits.memory_bytes == 4 << 30

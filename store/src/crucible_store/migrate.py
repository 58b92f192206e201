"""Brings a database to this version's schema and loads the runtimes: `python -m crucible_store migrate`.

Safe to run at any time and by many at once: one migrates, the others wait for it and find nothing to do.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path

import sqlalchemy as sa
import sqlalchemy.exc
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url

from crucible.v1 import runtime_pb2
from crucible_chassis.logs import configure_logging, get_logger
from crucible_chassis.settings import load_settings
from crucible_store.database import Trouble, trouble_of
from crucible_store.runtime_files import RuntimeFileError, read_runtimes
from crucible_store.schema import runtimes
from crucible_store.settings import MigrationSettings

LOCK_KEY = 0x63727563_69626C65
"""The advisory lock of migrations: "crucible"."""
DDL_LOCK_MILLISECONDS = 5_000
"""A change of the schema waits no longer than this for a table: all who come later would wait behind it."""

log = get_logger(__name__)


def alembic_config() -> Config:
    """The scripts of this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


def expected_revision() -> str:
    """The schema this version of the store works on."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None
    return head


def run(arguments: Namespace) -> None:
    """The command. Exit code 0, or 1 with one line that says why not."""
    settings = load_settings(MigrationSettings)
    configure_logging("store", settings.log_level)
    folder: Path | None = arguments.runtimes
    try:
        known = read_runtimes(folder) if folder is not None else []
        migrate(settings.database_url, known, seconds=settings.migration_seconds)
    except RuntimeFileError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(1)
    except sqlalchemy.exc.DBAPIError as exc:
        sys.stderr.write(f"the database refused the migration: {exc.orig}\n")
        sys.exit(1)


def migrate(url: str, known: list[runtime_pb2.Runtime], *, seconds: float) -> None:
    """Migrates and upserts the runtimes. Waits up to `seconds` for the database and as long for another migration.

    Raises sqlalchemy's DBAPIError.
    """
    engine = sa.create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=sa.NullPool,
        connect_args={"connect_timeout": 5, "application_name": "crucible-store-migrate"},
    )
    with _connect(engine, seconds) as connection:
        # Of the session: migrations commit one by one. It ends with the connection.
        connection.execute(sa.text(f"SET lock_timeout = {int(seconds * 1000)}"))
        connection.execute(sa.select(sa.func.pg_advisory_lock(LOCK_KEY)))
        connection.execute(sa.text(f"SET lock_timeout = {DDL_LOCK_MILLISECONDS}"))
        connection.commit()
        before = MigrationContext.configure(connection).get_current_revision()
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
        _load(connection, known)
        connection.commit()
    log.info("database.migrated", before=before, now=expected_revision(), runtimes=[runtime.name for runtime in known])


def _connect(engine: sa.Engine, seconds: float) -> Connection:
    deadline = time.monotonic() + seconds
    said = False
    while True:
        try:
            return engine.connect()
        except sqlalchemy.exc.DBAPIError as exc:
            if trouble_of(exc) is not Trouble.AWAY or time.monotonic() > deadline:
                raise
            if not said:
                log.warning("database.waiting", error=type(exc.orig).__name__)
                said = True
            time.sleep(0.25)


def _load(connection: Connection, known: list[runtime_pb2.Runtime]) -> None:
    """A runtime that is no longer in the folder stays: evaluations name it."""
    for runtime in known:
        statement = postgresql.insert(runtimes).values(name=runtime.name, runtime=runtime.SerializeToString())
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[runtimes.c.name], set_={"runtime": statement.excluded.runtime}
            )
        )

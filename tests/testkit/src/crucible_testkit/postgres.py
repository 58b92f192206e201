"""A real PostgreSQL for tests: one server a session, a fresh database for each test in milliseconds."""

import atexit
import functools
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import LiteralString, Self

import psycopg
from psycopg import conninfo, sql

from crucible_local.postgres import Cluster, install_programs, postgres_account
from crucible_testkit.child import Child
from crucible_testkit.scratch import scratch_folder

PROGRAMS = Path("/var/cache/crucible/postgres")
STORE_TEMPLATE = "store_template"


class PostgresServer:
    """A server on a unix socket, without fsync, in a scratch folder; a context manager.

    `kill`, `stop` and `start` again keep the data: a killed server recovers as a production one does.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._names = itertools.count(1)
        self._templates: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            self._cluster = Cluster(
                install_programs(PROGRAMS), folder / "data", folder / "sockets", postgres_account(), os.getegid()
            )
            subprocess.run(["cp", "--archive", str(_fresh_data()), str(folder / "data")], check=True)
            self._cluster.initialise(durable=False)
            command = self._cluster.command(durable=False, death_signal="KILL")
            self._child = Child(command, log=folder / "postgres.log", env=self._cluster.environment)
            stack.callback(self.stop)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Starts it (again) and waits until it accepts connections."""
        self._child.start()
        self._child.wait_until(self._cluster.accepts_connections)

    def stop(self) -> None:
        """A fast, clean stop: connections are cut."""
        self._child.stop(Cluster.stop_signal)

    def kill(self) -> None:
        """SIGKILL: sessions are cut, the data stay."""
        self._child.kill()

    def pause(self) -> None:
        """SIGSTOP to the server alone: nobody new is let in until `resume`; open sessions go on."""
        self._child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Ends `pause`."""
        self._child.send(signal.SIGCONT)

    def url(self, database: str = "postgres") -> str:
        """The libpq URL of one database."""
        return self._cluster.url(database)

    def create_database(self, *, template: str | None = None) -> str:
        """Makes an empty database, or a copy of a template, and gives its URL."""
        name = f"test_{next(self._names)}"
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template or "template1")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drops it, cutting its connections."""
        name = conninfo.conninfo_to_dict(url)["dbname"]
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", str(name))

    def ensure_template(self, name: str, prepare: Callable[[str], None]) -> str:
        """A template that `prepare(url)` filled, once per server. `prepare` must leave no connection open."""
        if name not in self._templates:
            self._execute("CREATE DATABASE {}", name)
            try:
                prepare(self.url(name))
            except BaseException:
                self._execute("DROP DATABASE {} WITH (FORCE)", name)
                raise
            self._templates.add(name)
        return name

    @contextmanager
    def fresh_database(self, *, template: str | None = None) -> Generator[str]:
        """The URL of a new database, dropped at the end."""
        url = self.create_database(template=template)
        try:
            yield url
        finally:
            if self._child.running:
                self.drop_database(url)

    @contextmanager
    def store_database(self) -> Generator[str]:
        """The URL of a new database with the store's migrated schema, dropped at the end."""
        with self.fresh_database(template=self.ensure_template(STORE_TEMPLATE, migrate_store)) as url:
            yield url

    def _execute(self, statement: LiteralString, *names: str) -> None:
        with psycopg.connect(self.url(), autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@functools.cache
def _fresh_data() -> Path:
    """A data directory that no server has used, to be copied: to make one takes longer than most tests."""
    stack = ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(scratch_folder())
    cluster = Cluster(install_programs(PROGRAMS), folder / "data", folder / "sockets", postgres_account(), os.getegid())
    cluster.initialise(durable=False)
    return cluster.data


def migrate_store(url: str) -> None:
    """Runs the store's migrations as an operator does. Raises CalledProcessError; its output is on stderr."""
    subprocess.run(
        [sys.executable, "-m", "crucible_store", "migrate"],
        env=os.environ | {"CRUCIBLE_DATABASE_URL": url}, check=True, timeout=120,
    )  # fmt: skip

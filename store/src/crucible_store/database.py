"""The connection to PostgreSQL: pooled, bounded in time, its failures sorted by what is to be done about them.

Owns no table.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import psycopg
import sqlalchemy as sa
import sqlalchemy.exc
from psycopg.types.array import ListBinaryDumper
from psycopg.types.string import TextLoader
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger
from crucible_store.transaction import Transaction

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

CONNECT_SECONDS = 5
"""For a new connection."""
WORK_SECONDS = 20.0
"""For one transaction, all its statements, and its turn at a connection: thousands may ask at one time."""
STATEMENT_MILLISECONDS = 15_000
LOCK_MILLISECONDS = 5_000
"""The server's own bounds: a client that died holds nothing for longer."""
LEDGER_SESSION = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off"
"""Its few statements are planned once a connection, and go by indexes however small their tables are at that time."""
RETRIES = 8
"""Of a transaction that lost to another (serialization, deadlock)."""
RETRY_AFTER_SECONDS = 2.0
"""What callers are told while the database is away."""

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

log = get_logger(__name__)


class DatabaseAwayError(ServiceError):
    """The database cannot be reached, or does not answer in time. What was asked may have happened or not."""

    def __init__(self) -> None:
        super().__init__(
            grpc.StatusCode.UNAVAILABLE,
            "DEPENDENCY_UNAVAILABLE",
            "the database is unavailable; try again",
            metadata={"part": "database"},
            retry_after=RETRY_AFTER_SECONDS,
        )


class DataRefusedError(Exception):
    """The database refused a value: repeating it is of no use. `sqlstate` is empty where the driver refused it."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"SQLSTATE {sqlstate or 'unknown'}")
        self.sqlstate = sqlstate


class Trouble(Enum):
    """What is to be done about a failure."""

    CONTENTION = auto()
    """Do it again: another transaction was in the way."""
    AWAY = auto()
    DATA = auto()
    OTHER = auto()
    """A fault of ours."""


_CONTENTION = frozenset({"40001", "40P01"})
# Connection failures, insufficient resources, shutdown, a statement or lock that took too long.
_AWAY = ("08", "53", "57", "58", "55P03", "25006")
_DATA = ("22", "23")


def trouble_of(error: BaseException) -> Trouble:
    """Sorts what SQLAlchemy, psycopg or the loop raised."""
    if isinstance(error, (sqlalchemy.exc.DBAPIError, psycopg.Error)):
        original = _original(error)
        sqlstate = original.sqlstate if isinstance(original, psycopg.Error) else None
        if sqlstate is not None:
            if sqlstate in _CONTENTION:
                return Trouble.CONTENTION
            if sqlstate.startswith(_AWAY):
                return Trouble.AWAY
            return Trouble.DATA if sqlstate.startswith(_DATA) else Trouble.OTHER
        if isinstance(original, (psycopg.OperationalError, psycopg.InterfaceError)) or (
            isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
        ):
            return Trouble.AWAY
        # The driver could not even send the value (a NUL in text, a number out of its range).
        return Trouble.DATA if isinstance(original, psycopg.DataError) else Trouble.OTHER
    if isinstance(error, (sqlalchemy.exc.TimeoutError, TimeoutError, OSError)):
        return Trouble.AWAY
    return Trouble.OTHER


@asynccontextmanager
async def open_database(url: str, *, connections: int, application: str) -> AsyncGenerator[Database]:
    """A database that is connected to at first use. UUIDs come as text, times in UTC.

    Half of the connections are for reads: however many read, state changes and heartbeats find one.
    """
    for_reads = connections // 2
    writing = sa.create_engine(_driver_url(url), **_options(connections - for_reads, application, LEDGER_SESSION))
    # Said of the whole engine: to switch a connection at each use is a step more in which who is cancelled loses it.
    reading = create_async_engine(_driver_url(url), isolation_level="AUTOCOMMIT", **_options(for_reads, application))
    for engine in (writing, reading.sync_engine):
        event.listen(engine, "connect", _prepare)
    database = Database(writing, reading, connections - for_reads)
    try:
        yield database
    finally:
        await database.close()


def _driver_url(url: str) -> sa.URL:
    return make_url(url).set(drivername="postgresql+psycopg")


def _options(connections: int, application: str, more: str = "") -> dict[str, Any]:
    session = (
        f"{more} -c timezone=UTC -c jit=off"
        f" -c statement_timeout={STATEMENT_MILLISECONDS} -c lock_timeout={LOCK_MILLISECONDS}"
        # A store that was cut off in the middle of a transaction must not hold its locks for ever.
        f" -c idle_in_transaction_session_timeout={STATEMENT_MILLISECONDS}"
    )
    return {
        "pool_size": connections,
        "max_overflow": 0,
        "pool_timeout": WORK_SECONDS,
        # The one used last: its statements are prepared, and what it needs is in the processor's caches.
        "pool_use_lifo": True,
        "connect_args": {
            "connect_timeout": CONNECT_SECONDS,
            "application_name": application,
            "options": session,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # No thread waits for longer for a host that does not even acknowledge.
            "tcp_user_timeout": STATEMENT_MILLISECONDS,
        },
    }


def _prepare(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own connection, or SQLAlchemy's around an asynchronous one.
    driver = cast("psycopg.Connection[object]", getattr(connection, "driver_connection", connection))
    driver.adapters.register_loader("uuid", TextLoader)
    # As text each element of a bytea array would be written in hex, and searched for what needs quotes.
    driver.adapters.register_dumper(list, ListBinaryDumper)


class Database:
    """Transactions and reads; made by `open_database`."""

    def __init__(self, writing: sa.Engine, reading: AsyncEngine, writers: int) -> None:
        self._writing = writing
        self._reading = reading
        self._threads = ThreadPoolExecutor(writers, thread_name_prefix="database")
        self._writes: set[Future[Any]] = set()
        self._reachable = False

    @property
    def reachable(self) -> bool:
        """Whether the last work reached it."""
        return self._reachable

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in one transaction, in a thread, and commits it; again where another was in the way.

        It must be safe to repeat after a commit whose answer was lost. Raises DatabaseAwayError, DataRefusedError, and
        what `work` raises, which rolls back. Who is cancelled leaves a transaction that ends by itself.
        """
        return await self._run(lambda: asyncio.wrap_future(self._begin(work)))

    async def read(self, work: Work[T]) -> T:
        """Runs `work`, each of its statements for itself. Raises as `write`."""
        return await self._run(lambda: self._read(work))

    async def probe(self) -> bool:
        """Asks the database for a sign of life."""
        try:
            await self.read(_probe)
        except DatabaseAwayError:
            return False
        return True

    async def close(self) -> None:
        """Gives what is being written a moment, and closes all connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(wait, list(self._writes), CONNECT_SECONDS)
        self._writing.dispose()
        await self._reading.dispose()

    def _begin(self, work: Callable[[Transaction], T]) -> Future[T]:
        future = self._threads.submit(self._write, work)
        self._writes.add(future)
        future.add_done_callback(self._writes.discard)
        return future

    def _write(self, work: Callable[[Transaction], T]) -> T:
        pooled = self._writing.raw_connection()
        driver = cast("psycopg.Connection[Any]", pooled.driver_connection)
        try:
            transaction = Transaction(driver, self._writing.dialect)
            answer = work(transaction)
            transaction.commit()
            return answer
        finally:
            if driver.closed or driver.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF:
                pooled.invalidate()  # lost, or in the middle of something: nobody gets it again
            pooled.close()

    async def _read(self, work: Work[T]) -> T:
        async with self._reading.connect() as connection:
            return await work(connection)

    async def _run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        contentions = 0
        cut = False
        while True:
            try:
                async with asyncio.timeout(WORK_SECONDS):
                    answer = await attempt()
            except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error, TimeoutError, OSError) as exc:
                trouble = trouble_of(exc)
                if trouble is Trouble.CONTENTION and contentions < RETRIES:
                    contentions += 1
                    await asyncio.sleep(random.uniform(0, 0.005 * 2**contentions))  # noqa: S311  spreads, hides nothing
                    continue
                if trouble is Trouble.AWAY and not cut and _original(exc) is not None:
                    # A pooled connection that a restart of the server cut: a new one tells whether it is away.
                    cut = True
                    continue
                if trouble in (Trouble.AWAY, Trouble.CONTENTION):
                    self._lost(exc)
                    raise DatabaseAwayError from exc
                self._found()
                if trouble is Trouble.DATA:
                    raise DataRefusedError(_sqlstate(exc)) from exc
                raise
            self._found()
            return answer

    def _lost(self, error: Exception) -> None:
        if self._reachable:
            log.warning("database.away", error=type(error).__name__, sqlstate=_sqlstate(error))
        self._reachable = False

    def _found(self) -> None:
        if not self._reachable:
            log.info("database.reached")
        self._reachable = True


async def _probe(connection: AsyncConnection) -> None:
    await connection.execute(sa.text("SELECT 1"))


def _original(error: BaseException) -> BaseException | None:
    """What the driver raised."""
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        return error.orig
    return error if isinstance(error, psycopg.Error) else None


def _sqlstate(error: BaseException) -> str:
    original = _original(error)
    return (original.sqlstate or "") if isinstance(original, psycopg.Error) else ""

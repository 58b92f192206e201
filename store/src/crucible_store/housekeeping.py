"""What the store does on its own: looks whether the database is there, counts, and forgets what is of long ago."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import sqlalchemy as sa
from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncConnection

from crucible_chassis.logs import get_logger
from crucible_store.database import Database, DatabaseAwayError
from crucible_store.domain.states import Status
from crucible_store.reading import LEASED_SQL
from crucible_store.schema import SCHEMA_REVISION
from crucible_store.transaction import Transaction

PROBE_SECONDS = 2.0
COUNT_SECONDS = 30.0
FORGET_EXECUTORS_AFTER = "1 hour"
"""A process that was silent for so long is gone; a new one has a new id."""
COMPLAINT_SECONDS = 10.0

EVALUATIONS = Gauge("crucible_store_evaluations", "Evaluations that are not final, by where they stand", ["standing"])

# `stray` is the invariant of the protocol: nothing but a dead reaper leaves a lease lapsed for a minute.
_STANDINGS = sa.text(f"""
SELECT (SELECT count(*) FROM evaluations WHERE status = {int(Status.QUEUED)}) AS queued,
    count(*) AS leased,
    count(*) FILTER (WHERE lease_until IS NULL OR lease_until < clock_timestamp() - interval '1 minute') AS stray
FROM evaluations WHERE status IN ({LEASED_SQL})
""")  # noqa: S608  constants
_FORGET = sa.text(
    f"DELETE FROM executors WHERE last_seen < clock_timestamp() - interval '{FORGET_EXECUTORS_AFTER}'"  # noqa: S608
)
_FORGET_PARKED = sa.text(
    "DELETE FROM parked_messages WHERE park_time < clock_timestamp() - make_interval(days => :days)"
)
_REVISION = sa.text("SELECT version_num FROM alembic_version")
_MIGRATED = sa.text("SELECT to_regclass('alembic_version') IS NOT NULL")

log = get_logger(__name__)


async def wait_for_schema(database: Database) -> None:
    """Returns once the database is there and has this version's schema, saying now and then what is missing."""
    loop = asyncio.get_running_loop()
    complained = -COMPLAINT_SECONDS
    while True:
        try:
            found = await database.read(_revision)
        except DatabaseAwayError:
            found = "unreachable"
        if found == SCHEMA_REVISION:
            return
        if loop.time() - complained >= COMPLAINT_SECONDS:
            complained = loop.time()
            log.warning("database.waiting", schema=found or "none", expected=SCHEMA_REVISION)
        await asyncio.sleep(0.25)


async def probe(database: Database) -> None:
    """Looks for the database, for as long as it lasts; `database.reachable` tells."""
    while True:
        await asyncio.sleep(PROBE_SECONDS)
        await database.probe()


async def count(database: Database, *, parked_days: int) -> None:
    """Keeps the gauges, and forgets what is old, for as long as it lasts."""
    while True:
        with contextlib.suppress(DatabaseAwayError):
            await measure(database)
            await forget(database, parked_days=parked_days)
        await asyncio.sleep(COUNT_SECONDS)


async def measure(database: Database) -> None:
    """Sets the gauges. Raises DatabaseAwayError."""
    row = await database.read(_standings)
    for standing in ("queued", "leased", "stray"):
        EVALUATIONS.labels(standing).set(row[standing])


async def forget(database: Database, *, parked_days: int) -> None:
    """Removes executors that are silent for long, and messages that were parked so many days ago."""

    def remove(transaction: Transaction) -> None:
        transaction.later(_FORGET, {})
        transaction.later(_FORGET_PARKED, {"days": parked_days})

    await database.write(remove)


async def _revision(connection: AsyncConnection) -> str | None:
    if not (await connection.execute(_MIGRATED)).scalar_one():
        return None
    return (await connection.execute(_REVISION)).scalar_one_or_none()


async def _standings(connection: AsyncConnection) -> Mapping[str, int]:
    return dict((await connection.execute(_STANDINGS)).mappings().one())

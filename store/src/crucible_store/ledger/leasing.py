"""Rule 1: leases of queued evaluations, within what the pool's live executors can take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from crucible.internal.v1 import ledger_service_pb2
from crucible_store import convert
from crucible_store.convert import StoredEvent
from crucible_store.domain.rows import Row
from crucible_store.domain.states import Status, Trigger, move
from crucible_store.ledger.hot import COLUMNS, INSERT_EVENTS, event_arrays, row_of
from crucible_store.reading import LEASED_SQL, LIVE_EXECUTORS
from crucible_store.transaction import Transaction

MAX_LEASES = 64
"""Taken at one time."""

_QUEUED = int(Status.QUEUED)
_DISPATCHED = int(move(Status.QUEUED, Trigger.LEASED))

# Two dispatchers that count at the same time would both see the same slots free: a pool is leased by one at a time.
_LOCK_OF_POOL = "hashtextextended('crucible.lease.' || :pool, 0)"
_ONE_AT_A_TIME = sa.text(f"SELECT pg_advisory_xact_lock({_LOCK_OF_POOL})")
_IF_NOBODY_ELSE = sa.text(f"SELECT pg_try_advisory_xact_lock({_LOCK_OF_POOL}) AS ours")

_LEASE = sa.text(f"""
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), live AS MATERIALIZED (
    SELECT slots, runtimes FROM ({LIVE_EXECUTORS}) executors WHERE pool = :pool
), free AS MATERIALIZED (
    SELECT greatest(0, (SELECT coalesce(sum(slots), 0) FROM live) - count(*)) AS slots
    FROM evaluations WHERE pool = :pool AND status IN ({LEASED_SQL}) AND lease_until > (SELECT now FROM clock)
), wanted AS MATERIALIZED (
    -- One beyond the limit tells whether there is more.
    SELECT CASE WHEN slots = 0 THEN 0 ELSE least(slots, :limit) + 1 END AS rows FROM free
), candidate AS MATERIALIZED (
    SELECT next.* FROM (SELECT DISTINCT unnest(runtimes) AS runtime FROM live) offered CROSS JOIN LATERAL (
        SELECT id, priority, queue_time FROM evaluations
        WHERE status = {_QUEUED} AND pool = :pool AND runtime = offered.runtime
            AND not_before <= (SELECT now FROM clock)
        ORDER BY priority DESC, queue_time, id
        LIMIT (SELECT rows FROM wanted) FOR NO KEY UPDATE SKIP LOCKED
    ) next
), chosen AS MATERIALIZED (
    SELECT id FROM candidate ORDER BY priority DESC, queue_time, id
    LIMIT (SELECT least(slots, :limit) FROM free)
), leased AS (
    UPDATE evaluations e
    SET status = {_DISPATCHED}, status_reason = NULL, attempt = attempt + 1, token = gen_random_uuid(), run = NULL,
        executor = NULL, run_events = 0, lease_until = clock.now + CAST(:lease AS interval),
        last_sequence = last_sequence + 1
    FROM chosen, clock
    WHERE e.id = chosen.id AND e.status = {_QUEUED} AND e.not_before <= clock.now
    RETURNING {", ".join(f"e.{name}" for name in COLUMNS)}, e.priority, e.runtime
)
SELECT leased.*, clock.now, free.slots > :limit AND (SELECT count(*) FROM candidate) > :limit AS more
FROM leased, clock, free ORDER BY priority DESC, queue_time, id
""")  # noqa: S608  constants

_RECORD = sa.text(f"""
WITH appended AS (
    {INSERT_EVENTS}
)
SELECT evaluation, summary, program, program_sha256, traceparent FROM requests
WHERE evaluation = ANY(CAST(:ids AS uuid[]))
""")  # noqa: S608  constants


@dataclass(frozen=True, slots=True)
class FreshLease:
    """A lease that this process took a moment ago: the row as it left it, and the database's clock then."""

    row: Row
    """It stays so until a run claims it, but for how long the lease holds."""
    time: datetime
    taken_at: float
    """By our monotonic clock."""

    def now(self) -> datetime:
        """The database's time, by how long it was since."""
        return self.time + timedelta(seconds=time.monotonic() - self.taken_at)


@dataclass(slots=True)
class Leased:
    """Leases taken."""

    jobs: list[ledger_service_pb2.LeasedJob] = field(default_factory=list[ledger_service_pb2.LeasedJob])
    more: bool = False
    events: list[StoredEvent] = field(default_factory=list[StoredEvent])
    fresh: list[FreshLease] = field(default_factory=list[FreshLease])


def lease(transaction: Transaction, *, pool: str, limit: int, seconds: float) -> Leased:
    """Takes up to `limit` leases that hold for so many seconds, and commits where it took any."""
    transaction.later(_ONE_AT_A_TIME, {"pool": pool})
    return _lease(transaction, pool=pool, limit=limit, seconds=seconds)


class Turn:
    """To lease at the end of a transaction that has other work to do, unless another takes leases of this pool."""

    def __init__(self, transaction: Transaction, *, pool: str, limit: int, seconds: float) -> None:
        """It is ours, or another's, with the transaction's next statement."""
        self._transaction = transaction
        self._pool = pool
        self._limit = limit
        self._seconds = seconds
        self._ours = transaction.later(_IF_NOBODY_ELSE, {"pool": pool})

    def lease(self) -> Leased | None:
        """As `lease`; None where it is another's."""
        if not self._ours.one()["ours"]:
            return None
        return _lease(self._transaction, pool=self._pool, limit=self._limit, seconds=self._seconds)


def _lease(transaction: Transaction, *, pool: str, limit: int, seconds: float) -> Leased:
    rows = transaction.execute(_LEASE, {"pool": pool, "limit": limit, "lease": timedelta(seconds=seconds)}).all()
    leased = Leased()
    if not rows:
        return leased
    now = rows[0]["now"]
    leased.more = rows[0]["more"]
    leased.fresh = [FreshLease(row_of(row), now, time.monotonic()) for row in rows]
    leased.events = [
        convert.dispatched_event(
            row["id"],
            row["tenant"],
            sequence=row["last_sequence"],
            generation=row["generation"],
            attempt=row["attempt"],
            time=now,
            pool=pool,
        )
        for row in rows
    ]
    recorded = transaction.later(_RECORD, event_arrays(leased.events) | {"ids": [row["id"] for row in rows]})
    transaction.commit()
    requests = {row["evaluation"]: row for row in recorded.all()}
    leased.jobs = [convert.job({**requests[row["id"]], **row}, dispatch_time=now) for row in rows]
    return leased

"""Rules 10 and 11: what executors announce, the leases they extend, and what they are told of their runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from crucible.internal.v1 import heartbeat_pb2
from crucible_store import convert
from crucible_store.domain.replies import Lease, reply
from crucible_store.domain.states import Status
from crucible_store.ledger.hot import arrays, unnest
from crucible_store.reading import LEASED_SQL
from crucible_store.transaction import Rows, Transaction

_ANNOUNCE = sa.text("""
WITH before AS (
    SELECT pool, slots, runtimes FROM executors WHERE id = :id
), announced AS (
    INSERT INTO executors (id, host, pool, slots, runtimes, last_seen)
    VALUES (:id, :host, :pool, :slots, CAST(:runtimes AS text[]), clock_timestamp())
    ON CONFLICT (id) DO UPDATE SET host = excluded.host, pool = excluded.pool, slots = excluded.slots,
        runtimes = excluded.runtimes, last_seen = excluded.last_seen
)
SELECT pool, slots, runtimes FROM before
""")

_HELD = {"place": "integer", "id": "uuid", "attempt": "integer", "token": "uuid", "run": "uuid"}

_EXTEND = sa.text(f"""
WITH held AS MATERIALIZED (
    SELECT * FROM {unnest("held", _HELD)}
), locked AS MATERIALIZED (
    SELECT id, status, attempt, token, run, run_events FROM evaluations
    WHERE id IN (SELECT id FROM held) ORDER BY id FOR NO KEY UPDATE
), extended AS (
    UPDATE evaluations e SET lease_until = clock_timestamp() + CAST(:lease AS interval)
    FROM held JOIN locked USING (id)
    WHERE e.id = held.id AND e.status IN ({LEASED_SQL}) AND e.attempt = held.attempt AND e.token = held.token
        AND (e.run IS NULL OR e.run = held.run)
)
SELECT held.place, locked.status, locked.attempt, locked.token, locked.run, locked.run_events
FROM held JOIN locked USING (id)
""")  # noqa: S608  constants


_NOTHING = sa.text("SELECT 1")


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat came to."""

    reply: heartbeat_pb2.HeartbeatReply
    pools: frozenset[str]
    """Where capacity changed."""


def record(transaction: Transaction, heartbeat: heartbeat_pb2.Heartbeat, *, seconds: float) -> Beat:
    """Records the announcement and extends leases to so many seconds from now."""
    announced = _announce(transaction, heartbeat.executor) if heartbeat.HasField("executor") else None
    extended = _extend(transaction, heartbeat.runs, seconds) if heartbeat.runs else None
    if announced is None and extended is None:
        # A reaper's probe asks whether the way down to here is open.
        transaction.later(_NOTHING, {})
    transaction.commit()
    leases = _leases(extended) if extended is not None else {}
    return Beat(
        heartbeat_pb2.HeartbeatReply(
            runs=[
                convert.run_reply(
                    held.run, reply(leases.get(place), attempt=held.attempt, token=held.token, run=held.run)
                )
                for place, held in enumerate(heartbeat.runs)
            ]
        ),
        _changed(heartbeat.executor, announced) if announced is not None else frozenset(),
    )


def _announce(transaction: Transaction, executor: heartbeat_pb2.ExecutorAnnouncement) -> Rows:
    return transaction.later(
        _ANNOUNCE,
        {
            "id": executor.executor.id,
            "host": executor.executor.host,
            "pool": executor.pool,
            "slots": executor.slots,
            "runtimes": list(executor.runtimes),
        },
    )


def _changed(executor: heartbeat_pb2.ExecutorAnnouncement, before: Rows) -> frozenset[str]:
    """The pool where an executor's capacity is another than before."""
    now = (executor.pool, executor.slots, list(executor.runtimes))
    same = any((row["pool"], row["slots"], row["runtimes"]) == now for row in before.all())
    return frozenset() if same else frozenset({executor.pool})


def _extend(transaction: Transaction, runs: Sequence[heartbeat_pb2.HeldRun], seconds: float) -> Rows:
    # A run that names no UUIDs is none of ours: it is answered as unknown.
    held = [
        (place, run.evaluation_id, run.attempt, run.token, run.run)
        for place, run in enumerate(runs)
        if all(map(convert.is_uuid, (run.evaluation_id, run.token, run.run)))
    ]
    return transaction.later(_EXTEND, arrays("held", _HELD, held) | {"lease": timedelta(seconds=seconds)})


def _leases(extended: Rows) -> dict[int, Lease]:
    return {
        row["place"]: Lease(Status(row["status"]), row["attempt"], row["token"], row["run"], row["run_events"])
        for row in extended.all()
    }

"""The hot row in SQL: how it is locked, read and written, with what a change appends in the same transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from crucible_store.convert import Columns, Ending, StoredEvent, StoredResult
from crucible_store.domain.rows import AttemptRecord, Row
from crucible_store.domain.states import FINAL, Cause, Reason, Status
from crucible_store.transaction import Transaction

_DISPATCHED = int(Status.DISPATCHED)

_WRITTEN = {
    "status": "smallint",
    "status_reason": "smallint",
    "cause": "smallint",
    "generation": "integer",
    "attempt": "integer",
    "attempt_base": "integer",
    "token": "uuid",
    "run": "uuid",
    "executor": "text",
    "run_events": "integer",
    "lost": "integer",
    "lease_until": "timestamptz",
    "not_before": "timestamptz",
    "last_sequence": "integer",
    "queue_time": "timestamptz",
    "start_time": "timestamptz",
    "end_time": "timestamptz",
}
_EVENT = {
    "evaluation": "uuid",
    "sequence": "integer",
    "attempt": "integer",
    "stream": "smallint",
    "stream_offset": "bigint",
    "event": "bytea",
}
_ATTEMPT = {
    "evaluation": "uuid",
    "attempt": "integer",
    "generation": "integer",
    "run": "uuid",
    "executor": "text",
    "host": "text",
    "begin_time": "timestamptz",
    "end_time": "timestamptz",
    "cause": "smallint",
    "stdout_object": "text",
    "stderr_object": "text",
}
_RESULT = {
    "evaluation": "uuid",
    "generation": "integer",
    "attempt": "integer",
    "run": "uuid",
    "outcome": "smallint",
    "summary": "bytea",
    "bulk": "bytea",
}
_PARKED = {"subject": "text", "message_id": "text", "reason": "text", "message": "bytea"}


def unnest(prefix: str, columns: Mapping[str, str]) -> str:
    """`unnest(...)` of one array parameter a column, each named `<prefix>_<column>`."""
    arrays = ", ".join(f"CAST(:{prefix}_{name} AS {kind}[])" for name, kind in columns.items())
    return f"unnest({arrays}) AS {prefix}({', '.join(columns)})"


def arrays(prefix: str, columns: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """The parameters of `unnest`, from rows in the order of the columns."""
    turned: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in columns]
    return {f"{prefix}_{name}": values for name, values in zip(columns, turned, strict=True)}


def _insert(table: str, prefix: str, columns: Mapping[str, str], *, only: str = "true") -> str:
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) SELECT {names} FROM {unnest(prefix, columns)} WHERE {only}"  # noqa: S608  constants


INSERT_EVENTS = _insert("events", "event", _EVENT)
"""A statement, or the body of a WITH; takes `event_arrays`."""

COLUMNS = ("id", "tenant", "pool", "max_attempts", *_WRITTEN)
"""What `row_of` takes."""

_LOCK = sa.text(
    f"SELECT {', '.join(COLUMNS)}, clock_timestamp() AS now"  # noqa: S608  constants
    " FROM evaluations WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE"
)

_ALL = "(SELECT count(*) FROM updated) = :rows"
"""All or nothing: a row that was not locked may have changed."""

_WRITE = sa.text(f"""
WITH updated AS (
    UPDATE evaluations e SET {", ".join(f"{name} = hot.{name}" for name in _WRITTEN)}
    FROM {unnest("hot", {"id": "uuid", **_WRITTEN})}
    WHERE e.id = hot.id AND (
        CAST(:unclaimed AS uuid) IS NULL
        OR (e.token = CAST(:unclaimed AS uuid) AND e.run IS NULL AND e.status = {_DISPATCHED})
    )
    RETURNING e.id
), appended AS (
    {_insert("events", "event", _EVENT, only=_ALL)}
), tried AS (
    {_insert("attempts", "attempt", _ATTEMPT, only=_ALL)}
    ON CONFLICT (evaluation, attempt) DO UPDATE SET
        end_time = coalesce(excluded.end_time, attempts.end_time),
        cause = coalesce(excluded.cause, attempts.cause),
        stdout_object = excluded.stdout_object,
        stderr_object = excluded.stderr_object
), judged AS (
    {_insert("results", "result", _RESULT, only=_ALL)}
), parked AS (
    INSERT INTO parked_messages (park_time, {", ".join(_PARKED)})
    SELECT clock_timestamp(), {", ".join(_PARKED)} FROM {unnest("parked", _PARKED)}
)
SELECT {_ALL} AS written
""")  # noqa: S608  constants


_AFTERWARDS = {"evaluation": "uuid", "run": "uuid", "afterwards": "bytea"}
_WRITE_AFTERWARDS = sa.text(f"""
UPDATE results SET afterwards = coalesce(results.afterwards, told.afterwards)
FROM {unnest("told", _AFTERWARDS)}
WHERE results.evaluation = told.evaluation AND results.run = told.run
""")  # noqa: S608  constants


@dataclass(frozen=True, slots=True)
class Parked:
    """A message set aside for the operator."""

    subject: str
    message_id: str
    reason: str
    message: bytes


@dataclass(slots=True)
class Changes:
    """What a transaction writes, and what is announced once it is committed."""

    rows: list[Row] = field(default_factory=list[Row])
    events: list[StoredEvent] = field(default_factory=list[StoredEvent])
    attempts: list[tuple[str, AttemptRecord]] = field(default_factory=list[tuple[str, AttemptRecord]])
    results: list[tuple[str, int, int, str, StoredResult]] = field(
        default_factory=list[tuple[str, int, int, str, StoredResult]]
    )
    """Evaluation, generation, attempt, run, verdict."""
    afterwards: list[tuple[str, str, bytes]] = field(default_factory=list[tuple[str, str, bytes]])
    """Evaluation, run, what is told of its sandbox."""
    parked: list[Parked] = field(default_factory=list[Parked])
    pools: set[str] = field(default_factory=set[str])
    """Where something was queued or a slot became free."""

    def endings(self) -> list[Ending]:
        """Of what is final now."""
        results = {evaluation: result for evaluation, _, _, _, result in self.results}
        return [Ending(row, results.get(row.id)) for row in self.rows if row.status in FINAL]


def row_of(columns: Columns) -> Row:
    """The row in the columns that `lock` reads."""
    reason, cause = columns["status_reason"], columns["cause"]
    return Row(
        id=columns["id"],
        tenant=columns["tenant"],
        pool=columns["pool"],
        status=Status(columns["status"]),
        status_reason=None if reason is None else Reason(reason),
        cause=None if cause is None else Cause(cause),
        generation=columns["generation"],
        attempt=columns["attempt"],
        attempt_base=columns["attempt_base"],
        token=columns["token"],
        run=columns["run"],
        executor=columns["executor"],
        run_events=columns["run_events"],
        lost=columns["lost"],
        max_attempts=columns["max_attempts"],
        lease_until=columns["lease_until"],
        not_before=columns["not_before"],
        last_sequence=columns["last_sequence"],
        queue_time=columns["queue_time"],
        start_time=columns["start_time"],
        end_time=columns["end_time"],
    )


def lock(transaction: Transaction, ids: Sequence[str]) -> tuple[dict[str, Row], datetime | None]:
    """Locks rows in the order of their ids; what is not there is left out. The time is the database's."""
    answer = transaction.execute(_LOCK, {"ids": list(ids)})
    rows: dict[str, Row] = {}
    now: datetime | None = None
    for columns in answer.all():
        row = row_of(columns)
        rows[row.id] = row
        now = columns["now"]
    return rows, now


def event_arrays(events: Sequence[StoredEvent]) -> dict[str, list[Any]]:
    """The parameters of INSERT_EVENTS."""
    return arrays(
        "event",
        _EVENT,
        [(e.evaluation, e.sequence, e.attempt, e.stream, e.stream_offset, e.data) for e in events],
    )


def write(transaction: Transaction, changes: Changes) -> None:
    """Writes all of it, where there is any, and commits. The rows must be locked."""
    if changes.rows or changes.parked:
        transaction.later(_WRITE, _parameters(changes))
    if changes.afterwards:
        # Each once: what is told twice stays as it was told first.
        transaction.later(_WRITE_AFTERWARDS, arrays("told", _AFTERWARDS, changes.afterwards))
    transaction.commit()


def write_unseen(transaction: Transaction, changes: Changes, *, token: str) -> bool:
    """Writes what ends one evaluation, whose row is neither read nor locked, and commits: one round trip.

    False: nothing was written. The row is no longer in the lease of this token, or a run has claimed it.
    """
    written = transaction.later(_WRITE, _parameters(changes, unclaimed=token))
    transaction.commit()
    return bool(written.one()["written"])


def _parameters(changes: Changes, *, unclaimed: str | None = None) -> dict[str, Any]:
    return (
        {"rows": len(changes.rows), "unclaimed": unclaimed}
        | arrays("hot", {"id": "uuid", **_WRITTEN}, [_columns(row) for row in changes.rows])
        | event_arrays(changes.events)
        | arrays("attempt", _ATTEMPT, [_attempt(*attempt) for attempt in changes.attempts])
        | arrays(
            "result",
            _RESULT,
            [
                (evaluation, generation, attempt, run, result.outcome, result.summary, result.bulk)
                for evaluation, generation, attempt, run, result in changes.results
            ],
        )
        | arrays("parked", _PARKED, [(p.subject, p.message_id, p.reason, p.message) for p in changes.parked])
    )


def _columns(row: Row) -> tuple[Any, ...]:
    return (
        row.id,
        int(row.status),
        None if row.status_reason is None else int(row.status_reason),
        None if row.cause is None else int(row.cause),
        row.generation,
        row.attempt,
        row.attempt_base,
        row.token,
        row.run,
        row.executor,
        row.run_events,
        row.lost,
        row.lease_until,
        row.not_before,
        row.last_sequence,
        row.queue_time,
        row.start_time,
        row.end_time,
    )


def _attempt(evaluation: str, record: AttemptRecord) -> tuple[Any, ...]:
    return (
        evaluation,
        record.attempt,
        record.generation,
        record.run,
        record.executor.id if record.executor else None,
        record.executor.host if record.executor else None,
        record.begin_time,
        record.end_time,
        None if record.cause is None else int(record.cause),
        *record.objects,
    )

"""New evaluations: all or none, each with its first event and its request id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc
import sqlalchemy as sa

from crucible_chassis.errors import ServiceError
from crucible_store import convert
from crucible_store.convert import Admitted, StoredEvent
from crucible_store.domain.states import Status
from crucible_store.ledger.hot import INSERT_EVENTS, arrays, event_arrays, unnest
from crucible_store.transaction import Transaction

_KEY = {"tenant": "text", "request_id": "text", "request_hash": "text", "evaluation": "uuid"}

_CLAIM = sa.text(f"""
WITH claimed AS (
    INSERT INTO idempotency (tenant, request_id, request_hash, evaluation)
    SELECT tenant, request_id, request_hash, evaluation FROM {unnest("key", _KEY)}
    ORDER BY tenant, request_id
    ON CONFLICT DO NOTHING RETURNING evaluation
)
SELECT clock_timestamp() AS now, ARRAY(SELECT evaluation FROM claimed) AS claimed
""")  # noqa: S608  constants

_KNOWN = sa.text(f"""
SELECT known.tenant, known.request_id, known.request_hash, known.evaluation
FROM {unnest("key", {"tenant": "text", "request_id": "text"})} JOIN idempotency known USING (tenant, request_id)
""")  # noqa: S608  constants

_NEW = {
    "id": "uuid",
    "tenant": "text",
    "pool": "text",
    "runtime": "text",
    "priority": "smallint",
    "max_attempts": "integer",
    "summary": "bytea",
    "bulk": "bytea",
    "program": "bytea",
    "program_sha256": "text",
    "traceparent": "text",
}
_LABEL = {"evaluation": "uuid", "tenant": "text", "name": "text", "value": "text"}

_CREATE = sa.text(f"""
WITH new AS MATERIALIZED (
    SELECT * FROM {unnest("new", _NEW)}
), made AS (
    INSERT INTO evaluations (id, tenant, pool, runtime, priority, status, generation, attempt, attempt_base, run_events,
        lost, max_attempts, not_before, last_sequence, create_time, queue_time)
    SELECT id, tenant, pool, runtime, priority, {int(Status.QUEUED)}, 1, 0, 0, 0,
        0, max_attempts, CAST(:now AS timestamptz), 1, CAST(:now AS timestamptz), CAST(:now AS timestamptz)
    FROM new ORDER BY id
), requested AS (
    INSERT INTO requests (evaluation, summary, bulk, program, program_sha256, traceparent)
    SELECT id, summary, bulk, program, program_sha256, traceparent FROM new
), labelled AS (
    INSERT INTO labels (tenant, name, value, create_time, evaluation)
    SELECT tenant, name, value, CAST(:now AS timestamptz), evaluation FROM {unnest("label", _LABEL)}
), appended AS (
    {INSERT_EVENTS}
)
SELECT 1
""")  # noqa: S608  constants

_EXISTING = sa.text("SELECT id FROM evaluations WHERE id = ANY(CAST(:ids AS uuid[]))")


@dataclass(slots=True)
class Created:
    """What a create made."""

    time: datetime
    made: set[str] = field(default_factory=set[str])
    """Ids of new evaluations; the others are known by their request ids, or from an earlier try of this very call."""
    known: dict[str, str] = field(default_factory=dict[str, str])
    """For an evaluation that was not made because of its request id: the one that was made for it."""
    events: list[StoredEvent] = field(default_factory=list[StoredEvent])
    pools: set[str] = field(default_factory=set[str])


def create(transaction: Transaction, new: Sequence[Admitted], *, again: bool) -> Created:
    """Writes evaluations, with the statement that comes next. `again`: an earlier try may have been committed.

    Raises ServiceError ALREADY_EXISTS (REQUEST_ID_REUSED).
    """
    keyed = [item for item in new if item.request_id]
    row = transaction.execute(_CLAIM, arrays("key", _KEY, [_key(item) for item in keyed])).one()
    created = Created(row["now"])
    claimed = set[str](row["claimed"])
    unclaimed = [item for item in keyed if item.id not in claimed]
    if unclaimed:
        created.known = _known(transaction, unclaimed)
    fresh = [item for item in new if item.id not in created.known]
    if again and fresh:
        answer = transaction.execute(_EXISTING, {"ids": [item.id for item in fresh]})
        existing = {row["id"] for row in answer.all()}
        fresh = [item for item in fresh if item.id not in existing]
    if not fresh:
        return created
    created.made = {item.id for item in fresh}
    created.pools = {item.pool for item in fresh}
    created.events = [
        convert.queued_event(item.id, item.tenant, sequence=1, generation=1, attempt=0, time=created.time)
        for item in fresh
    ]
    transaction.later(
        _CREATE,
        arrays("new", _NEW, [_columns(item) for item in fresh])
        | arrays(
            "label",
            _LABEL,
            [(item.id, item.tenant, name, value) for item in fresh for name, value in item.labels.items()],
        )
        | event_arrays(created.events)
        | {"now": created.time},
    )
    return created


def _known(transaction: Transaction, items: Sequence[Admitted]) -> dict[str, str]:
    keys = arrays("key", {"tenant": "text", "request_id": "text"}, [(item.tenant, item.request_id) for item in items])
    found = {(row["tenant"], row["request_id"]): row for row in transaction.execute(_KNOWN, keys).all()}
    known: dict[str, str] = {}
    for item in items:
        row = found[item.tenant, item.request_id]
        if row["request_hash"] != item.request_hash:
            raise ServiceError(
                grpc.StatusCode.ALREADY_EXISTS,
                "REQUEST_ID_REUSED",
                "the request id was used before with another evaluation",
                metadata={"request_id": item.request_id, "evaluation": row["evaluation"]},
            )
        known[item.id] = row["evaluation"]
    return known


def _key(item: Admitted) -> tuple[Any, ...]:
    return item.tenant, item.request_id, item.request_hash, item.id


def _columns(item: Admitted) -> tuple[Any, ...]:
    return (
        item.id,
        item.tenant,
        item.pool,
        item.runtime,
        item.priority,
        item.max_attempts,
        item.summary,
        item.bulk,
        item.program,
        item.program_sha256,
        item.traceparent,
    )

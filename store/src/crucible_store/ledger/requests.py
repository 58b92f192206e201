"""Rules 13 and 14: what callers ask of an evaluation they have."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from crucible_chassis.errors import ServiceError
from crucible_store import convert
from crucible_store.domain.rows import Row
from crucible_store.domain.states import FINAL, LEASED, Cause, Reason, Status, Trigger, move
from crucible_store.ledger.hot import Changes, lock, write
from crucible_store.transaction import Transaction


@dataclass(slots=True)
class Asked:
    """What became of it."""

    executor: str = ""
    """Of a cancel: who had claimed it."""
    token: str = ""
    """Of a cancel: the lease it had."""
    changes: Changes = field(default_factory=Changes)


def not_found(evaluation: str) -> ServiceError:
    """No evaluation has this id."""
    return ServiceError(
        grpc.StatusCode.NOT_FOUND,
        "EVALUATION_NOT_FOUND",
        "no evaluation has this id",
        metadata={"evaluation": evaluation},
    )


def cancel(transaction: Transaction, evaluation: str) -> Asked:
    """Cancels. Raises ServiceError NOT_FOUND, FAILED_PRECONDITION (EVALUATION_FINAL)."""
    rows, now = lock(transaction, [evaluation])
    if now is None:
        raise not_found(evaluation)
    row = rows[evaluation]
    if row.status is Status.CANCELLED:
        return Asked()
    if row.status in FINAL:
        raise _wrong_status("EVALUATION_FINAL", "the evaluation is final and cannot be cancelled", row)
    changes = Changes(rows=[row])
    if row.status in LEASED:
        changes.pools.add(row.pool)
    executor, token = row.executor if row.run else None, row.token
    row.status = move(row.status, Trigger.CANCELLED)
    row.status_reason, row.cause = Reason.CANCELLED_BY_CALLER, Cause.USER
    row.lease_until = row.token = row.run = None
    row.end_time = now
    row.last_sequence += 1
    changes.events.append(
        convert.cancelled_event(
            row.id,
            row.tenant,
            sequence=row.last_sequence,
            generation=row.generation,
            attempt=row.attempt,
            time=now,
        )
    )
    write(transaction, changes)
    return Asked(executor or "", token or "", changes)


def requeue(transaction: Transaction, evaluation: str) -> Asked:
    """Puts a FAILED evaluation back. Raises ServiceError NOT_FOUND, FAILED_PRECONDITION (EVALUATION_NOT_FAILED)."""
    rows, now = lock(transaction, [evaluation])
    if now is None:
        raise not_found(evaluation)
    row = rows[evaluation]
    if row.status is not Status.FAILED:
        raise _wrong_status("EVALUATION_NOT_FAILED", "only FAILED evaluations can be requeued", row)
    row.status = move(row.status, Trigger.REQUEUED)
    row.status_reason = row.cause = row.end_time = None
    row.generation += 1
    row.attempt_base, row.lost = row.attempt, 0
    row.token = row.run = row.executor = row.lease_until = None
    row.not_before = row.queue_time = now
    row.last_sequence += 1
    changes = Changes(rows=[row], pools={row.pool})
    changes.events.append(
        convert.queued_event(
            row.id,
            row.tenant,
            sequence=row.last_sequence,
            generation=row.generation,
            attempt=row.attempt,
            time=now,
        )
    )
    write(transaction, changes)
    return Asked(changes=changes)


def _wrong_status(reason: str, message: str, row: Row) -> ServiceError:
    return ServiceError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata={"status": row.status.name})

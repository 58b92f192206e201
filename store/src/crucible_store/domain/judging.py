"""Rule 8: what becomes of an evaluation whose lease gave no verdict."""

from datetime import datetime, timedelta

from crucible_contracts.limits import MAX_DISPATCHES
from crucible_store.domain.rows import Entry, Note, Row
from crucible_store.domain.states import Cause, Reason, Trigger, move

LOST_FIRST_SECONDS = 1.0
LOST_MOST_SECONDS = 30.0
"""The wait after a lost run doubles from the first to the most; jitter takes up to half of it away."""
UNBEGUN_FIRST_SECONDS = 1.0
UNBEGUN_MOST_SECONDS = 60.0
"""The same after a lease that was never begun, from the second one on: after the first there is no wait."""


def judge(row: Row, *, cause: Cause, now: datetime, jitter: float, keeps_run: bool) -> Entry:
    """Sends `row` back to the queue or gives it up, in place; gives the event that says so.

    `jitter` is in [0, 1). `keeps_run`: its claimed run may still deliver (a reaped lease), until the next lease is
    taken. Raises IllegalMoveError for a row that holds no lease.
    """
    begun = row.run is not None
    if begun:
        row.lost += 1
    dispatches = row.attempt - row.attempt_base
    row.lease_until = None
    row.last_sequence += 1
    if row.lost >= row.max_attempts:
        return _give_up(row, cause, Reason.ATTEMPTS_EXHAUSTED, now)
    if dispatches >= MAX_DISPATCHES:
        return _give_up(row, Cause.INFRASTRUCTURE, Reason.DISPATCHES_EXHAUSTED, now)
    row.status = move(row.status, Trigger.RETRIED)
    row.status_reason = Reason.RETRY_BACKOFF
    row.not_before = now + _wait(row.lost if begun else dispatches - row.lost, begun=begun, jitter=jitter)
    if not keeps_run:
        row.token = row.run = None
    return Entry(
        row.last_sequence, row.generation, row.attempt, now, Note.REQUEUED, cause=cause, not_before=row.not_before
    )


def _give_up(row: Row, cause: Cause, reason: Reason, now: datetime) -> Entry:
    row.status = move(row.status, Trigger.GIVEN_UP)
    row.status_reason = reason
    row.cause = cause
    row.end_time = now
    row.token = row.run = None
    return Entry(row.last_sequence, row.generation, row.attempt, now, Note.FAILED, cause=cause, reason=reason)


def _wait(times: int, *, begun: bool, jitter: float) -> timedelta:
    """How long the next attempt waits after so many losses of this sort."""
    if begun:
        seconds = min(LOST_MOST_SECONDS, LOST_FIRST_SECONDS * 2.0 ** (times - 1))
    elif times <= 1:
        return timedelta()
    else:
        seconds = min(UNBEGUN_MOST_SECONDS, UNBEGUN_FIRST_SECONDS * 2.0 ** (times - 2))
    return timedelta(seconds=seconds * (1 - jitter / 2))

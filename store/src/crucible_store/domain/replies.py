"""Rule 11: what an executor is told of each run it holds."""

from dataclasses import dataclass
from enum import Enum

from crucible_store.domain.states import FINAL, Status


class Abandon(Enum):
    """Why a run is to be abandoned."""

    SETTLED = 1
    FENCED = 2
    CANCELLED = 3


@dataclass(frozen=True, slots=True)
class Lease:
    """The part of a row that decides a reply."""

    status: Status
    attempt: int
    token: str | None
    run: str | None
    run_events: int


def reply(lease: Lease | None, *, attempt: int, token: str, run: str) -> Abandon | int:
    """Why the run is to be abandoned, or the number of its next message that is not stored yet.

    `lease` is None for an evaluation that is not known.
    """
    if lease is None:
        return Abandon.SETTLED
    if lease.status in FINAL:
        return Abandon.CANCELLED if lease.status is Status.CANCELLED else Abandon.SETTLED
    if (lease.attempt, lease.token) != (attempt, token):
        return Abandon.FENCED
    if lease.run == run or (lease.run is None and lease.status is Status.DISPATCHED):
        return lease.run_events
    return Abandon.FENCED

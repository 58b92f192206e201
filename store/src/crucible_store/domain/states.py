"""The states of an evaluation and the only moves between them. The numbers are the contract's."""

from enum import Enum, IntEnum, auto


class Status(IntEnum):
    """`crucible.v1.Evaluation.Status`."""

    QUEUED = 1
    DISPATCHED = 2
    RUNNING = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6


class Reason(IntEnum):
    """`crucible.v1.Evaluation.StatusReason`."""

    WAITING_FOR_CAPACITY = 1
    RUNTIME_NOT_OFFERED = 2
    RETRY_BACKOFF = 3
    ATTEMPTS_EXHAUSTED = 4
    DISPATCHES_EXHAUSTED = 5
    CANCELLED_BY_CALLER = 6


class Cause(IntEnum):
    """`crucible.v1.ExecutionResult.Cause`."""

    PROGRAM = 1
    LIMIT = 2
    SANDBOX = 3
    IMAGE = 4
    INFRASTRUCTURE = 5
    USER = 6
    POLICY = 7


class Trigger(Enum):
    """What makes an evaluation change its state."""

    LEASED = auto()
    STARTED = auto()
    VERDICT = auto()
    RETRIED = auto()
    GIVEN_UP = auto()
    CANCELLED = auto()
    REQUEUED = auto()


LEASED = frozenset({Status.DISPATCHED, Status.RUNNING})
"""States that hold a lease."""
OPEN = LEASED | {Status.QUEUED}
"""States in which an executor's messages count."""
FINAL = frozenset(Status) - OPEN
"""States that nothing changes but a requeue of FAILED."""

MOVES: dict[tuple[Status, Trigger], Status] = {
    (Status.QUEUED, Trigger.LEASED): Status.DISPATCHED,
    (Status.DISPATCHED, Trigger.STARTED): Status.RUNNING,
    # From QUEUED: the late result of a claimed run. From DISPATCHED: the end of a run that never started.
    (Status.QUEUED, Trigger.VERDICT): Status.COMPLETED,
    (Status.DISPATCHED, Trigger.VERDICT): Status.COMPLETED,
    (Status.RUNNING, Trigger.VERDICT): Status.COMPLETED,
    (Status.DISPATCHED, Trigger.RETRIED): Status.QUEUED,
    (Status.RUNNING, Trigger.RETRIED): Status.QUEUED,
    (Status.DISPATCHED, Trigger.GIVEN_UP): Status.FAILED,
    (Status.RUNNING, Trigger.GIVEN_UP): Status.FAILED,
    (Status.QUEUED, Trigger.CANCELLED): Status.CANCELLED,
    (Status.DISPATCHED, Trigger.CANCELLED): Status.CANCELLED,
    (Status.RUNNING, Trigger.CANCELLED): Status.CANCELLED,
    (Status.FAILED, Trigger.REQUEUED): Status.QUEUED,
}


class IllegalMoveError(Exception):
    """A state was asked to change in a way the protocol does not know."""


def move(status: Status, trigger: Trigger) -> Status:
    """The state that `trigger` leads to. Raises IllegalMoveError."""
    try:
        return MOVES[status, trigger]
    except KeyError:
        msg = f"{trigger.name} cannot happen to an evaluation that is {status.name}"
        raise IllegalMoveError(msg) from None

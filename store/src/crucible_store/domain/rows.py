"""What the store knows of an evaluation while it lives, what executors say of it, and what is written down."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any

from crucible_store.domain.states import Cause, Reason, Status


@dataclass(slots=True)
class Row:
    """The row that is rewritten often. Ids are lower-case UUIDs, times aware and by the database's clock."""

    id: str
    tenant: str
    pool: str
    status: Status
    status_reason: Reason | None
    cause: Cause | None
    generation: int
    attempt: int
    """Leases so far, never reset."""
    attempt_base: int
    """`attempt` when this generation began."""
    token: str | None
    run: str | None
    """The run that claimed the lease."""
    executor: str | None
    """The executor of `run`."""
    run_events: int
    """Messages of `run` applied so far: the number of the next."""
    lost: int
    """Runs of this generation that began and gave no verdict."""
    max_attempts: int
    lease_until: datetime | None
    not_before: datetime
    last_sequence: int
    queue_time: datetime
    start_time: datetime | None
    end_time: datetime | None


class Kind(Enum):
    """What a message of a run is to the protocol."""

    STARTED = auto()
    PROGRESS = auto()
    """Output, or what the program has used: it changes no state."""
    VERDICT = auto()
    FAULT = auto()
    """The run ended without a verdict."""
    REMOVED = auto()
    """Told of the sandbox of a run whose verdict was given: no part of the run's numbered messages."""


@dataclass(frozen=True, slots=True)
class Executor:
    """Who runs an attempt."""

    id: str
    host: str


@dataclass(frozen=True, slots=True)
class Message:
    """A numbered message of a run."""

    attempt: int
    token: str
    run: str
    number: int
    kind: Kind
    body: Any = None
    """What is written to the history, opaque here."""
    executor: Executor | None = None
    time: datetime | None = None
    """When it happened, by the executor's clock; None where that says no time."""
    cause: Cause = Cause.INFRASTRUCTURE
    """Of a FAULT: who is answerable. Of a VERDICT as well."""
    objects: tuple[str, str] = ("", "")
    """Of a VERDICT or FAULT: the objects that hold the whole of standard output and error; empty: none."""
    parked: bool = False
    """It was set aside: it counts, but nothing of it is kept."""


class Note(Enum):
    """What an entry of the history says."""

    MESSAGE = auto()
    """What the message says."""
    PARKED = auto()
    REQUEUED = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Entry:
    """An event to be appended."""

    sequence: int
    generation: int
    attempt: int
    time: datetime
    note: Note
    message: Message | None = None
    cause: Cause | None = None
    reason: Reason | None = None
    not_before: datetime | None = None


@dataclass(slots=True)
class AttemptRecord:
    """What is kept of an attempt that was begun. None: not known yet, or not changed."""

    attempt: int
    generation: int
    run: str
    executor: Executor | None = None
    begin_time: datetime | None = None
    end_time: datetime | None = None
    cause: Cause | None = None
    objects: tuple[str, str] = ("", "")

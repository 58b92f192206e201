"""Rules 3 to 7 and 16: what the messages of runs do to a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto

from crucible_store.domain.judging import judge
from crucible_store.domain.rows import AttemptRecord, Entry, Kind, Message, Note, Row
from crucible_store.domain.states import LEASED, OPEN, Cause, Status, Trigger, move


class Fate(Enum):
    """What became of a message."""

    APPLIED = auto()
    DROPPED = auto()
    """It is of another lease or run, or was applied before: it never counts."""
    WAITING = auto()
    """One before it has not come yet."""


@dataclass(slots=True)
class Folded:
    """What is to be written."""

    row: Row
    fates: list[Fate]
    """One for each message, in order."""
    entries: list[Entry] = field(default_factory=list[Entry])
    attempt: AttemptRecord | None = None
    verdict: Message | None = None
    """The message whose result is to be stored under the row's generation."""
    frees_slot: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything is to be written at all."""
        return Fate.APPLIED in self.fates


def fold(row: Row, messages: Sequence[Message], *, now: datetime, jitter: Callable[[], float]) -> Folded:
    """Applies messages to a copy of the row, in the order given but for each run by number.

    `row` as it is locked; `jitter` gives numbers in [0, 1).
    """
    folded = Folded(replace(row), [Fate.DROPPED] * len(messages))
    first_seen: dict[str, int] = {}
    for index, message in enumerate(messages):
        first_seen.setdefault(message.run, index)
    order = sorted(range(len(messages)), key=lambda i: (first_seen[messages[i].run], messages[i].number))
    for index in order:
        folded.fates[index] = _apply(folded, messages[index], now, jitter)
    return folded


def _apply(folded: Folded, message: Message, now: datetime, jitter: Callable[[], float]) -> Fate:
    row = folded.row
    # Rule 3, the fence.
    if row.status not in OPEN or row.token is None or (message.attempt, message.token) != (row.attempt, row.token):
        return Fate.DROPPED
    # Rule 4, the claim.
    if row.run is None and row.status is not Status.DISPATCHED:
        return Fate.DROPPED
    if row.run is None and message.number > 0:
        return Fate.WAITING
    if row.run not in (None, message.run):
        return Fate.DROPPED
    # Rule 5, the append. (Without a run `run_events` is 0, and so is the number.)
    if message.number != row.run_events:
        return Fate.DROPPED if message.number < row.run_events else Fate.WAITING
    if row.run is None:
        row.run = message.run
        row.executor = message.executor.id if message.executor else None
        _attempt(folded).begin_time = message.time or now
        _attempt(folded).executor = message.executor
    row.run_events += 1
    match message.kind:
        case Kind.VERDICT if not message.parked:
            _complete(folded, message, now)
        case Kind.VERDICT | Kind.FAULT:
            _lose(folded, message, now, jitter)
        case Kind.STARTED | Kind.PROGRESS:
            # Number 0 of a run that goes on is its `started`, even where that was set aside.
            began = message.kind is Kind.STARTED or (message.parked and message.number == 0)
            if began and row.status is Status.DISPATCHED:
                row.status = move(row.status, Trigger.STARTED)
                row.start_time = message.time or now
            _append(folded, message, now)
        case Kind.REMOVED:
            raise ValueError("it has no place among the numbered messages of a run")
    return Fate.APPLIED


def _append(folded: Folded, message: Message, now: datetime) -> None:
    row = folded.row
    row.last_sequence += 1
    note = Note.PARKED if message.parked else Note.MESSAGE
    time = now if message.parked else message.time or now
    folded.entries.append(Entry(row.last_sequence, row.generation, row.attempt, time, note, message=message))


def _complete(folded: Folded, message: Message, now: datetime) -> None:
    """Rule 7 with a verdict: from QUEUED too, where it is the late result of a claimed run."""
    row = folded.row
    record = _attempt(folded)
    record.end_time = message.time or now
    record.cause = message.cause
    record.objects = message.objects
    folded.frees_slot = row.status in LEASED
    row.status = move(row.status, Trigger.VERDICT)
    row.status_reason = None
    row.cause = message.cause
    row.lease_until = None
    row.end_time = now
    _append(folded, message, now)
    # Nothing counts in a final state; the run is told `settled` by the status alone.
    row.token = row.run = None
    folded.verdict = message


def _lose(folded: Folded, message: Message, now: datetime, jitter: Callable[[], float]) -> None:
    """Rule 7 without one: judged, unless a reaper has judged this lease already."""
    row = folded.row
    record = _attempt(folded)
    cause = Cause.INFRASTRUCTURE if message.parked else message.cause
    record.end_time = now if message.parked else message.time or now
    record.cause = cause
    record.objects = ("", "") if message.parked else message.objects
    if row.status is Status.QUEUED:
        row.token = row.run = None
        return
    folded.frees_slot = True
    folded.entries.append(judge(row, cause=cause, now=now, jitter=jitter(), keeps_run=False))


def _attempt(folded: Folded) -> AttemptRecord:
    """The record of the attempt the row is in; a row is in one attempt for as long as it is locked."""
    if folded.attempt is None:
        row = folded.row
        assert row.run is not None
        folded.attempt = AttemptRecord(row.attempt, row.generation, row.run)
    return folded.attempt

"""Rules 3 to 7 and 16 in transactions: what executors say of their runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from crucible_store import convert
from crucible_store.convert import UnreadableError
from crucible_store.database import Database, DataRefusedError
from crucible_store.domain.folding import Fate, Folded, fold
from crucible_store.domain.rows import Kind, Message, Row
from crucible_store.domain.states import OPEN, Status
from crucible_store.ledger.hot import Changes, Parked, lock, write, write_unseen
from crucible_store.ledger.leasing import FreshLease
from crucible_store.transaction import Transaction

MAX_PARKED_BYTES = 1024 * 1024
"""Of a message that is set aside; what is beyond is cut."""
MAX_DIGITS = 10
"""Of a message's number."""
MAX_MESSAGE_ID_CHARS = 200
"""Of a message's id; ours have 60."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came over the stream ATTEMPTS."""

    subject: str
    message_id: str
    """`<run>.<number>`, or `<run>.<number>.<round>`."""
    data: bytes
    evaluation: str
    """Empty where neither message nor subject names one."""
    message: Message | None
    """None: nothing tells which message of which run it is, so it belongs to no history."""


@dataclass(slots=True)
class Applied:
    """What became of deliveries."""

    fates: dict[int, Fate] = field(default_factory=dict[int, Fate])
    """By place in the batch."""
    changes: Changes = field(default_factory=Changes)


def receive(subject: str, message_id: str, data: bytes, *, lease: tuple[int, str] | None) -> Delivery:
    """Reads a delivery; `lease` is the attempt and the token that its header names."""
    message_id = message_id.replace("\0", "")[:MAX_MESSAGE_ID_CHARS]
    try:
        evaluation, message = convert.message(data)
    except UnreadableError:
        named = subject.rpartition(".")[2]
        evaluation = named if convert.is_uuid(named) else ""
        message = _unreadable(message_id, lease) if evaluation else None
    return Delivery(subject, message_id, data, evaluation, message)


def _unreadable(message_id: str, lease: tuple[int, str] | None) -> Message | None:
    """Rule 16: a message that cannot be read is known by its headers, and counts.

    It is taken for the run's last: if it was, nothing else would ever end this run, and a run that goes on after it
    costs no more than its attempt.
    """
    run, _, rest = message_id.partition(".")
    number = rest.partition(".")[0]
    if lease is None or not convert.is_uuid(run) or not (number.isdecimal() and len(number) < MAX_DIGITS):
        return None
    return Message(*lease, run, int(number), Kind.FAULT, parked=True)


async def apply(
    database: Database, deliveries: Sequence[Delivery], *, jitter: Callable[[], float], lease: FreshLease | None = None
) -> list[Applied]:
    """Applies a batch, one transaction for all; where the database refuses the data, one for each evaluation.

    `lease` is that of the only evaluation in the batch, where it is known: a whole run of it is written without a look
    at the row, which says whether it is still as it was leased (docs/adr/0013). Raises DatabaseAwayError: then nothing,
    or what an earlier transaction of the batch wrote, has happened, and the whole batch may be given again.
    """
    batch = list(enumerate(deliveries))
    try:
        run = None if lease is None else await _apply_unseen(database, deliveries, lease, jitter)
        return [run or await database.write(lambda t: _apply(t, batch, jitter))]
    except DataRefusedError:
        done: list[Applied] = []
        by_evaluation: dict[str, list[tuple[int, Delivery]]] = {}
        for place, delivery in batch:
            by_evaluation.setdefault(delivery.evaluation, []).append((place, delivery))
        for part in by_evaluation.values():
            done += await _apply_alone(database, part, jitter)
        return done


async def _apply_alone(
    database: Database, part: list[tuple[int, Delivery]], jitter: Callable[[], float]
) -> list[Applied]:
    """One evaluation; where its data are refused, message by message, setting aside the one at fault."""
    try:
        return [await database.write(lambda t: _apply(t, part, jitter))]
    except DataRefusedError:
        done: list[Applied] = []
        for place, delivery in sorted(part, key=lambda item: item[1].message.number if item[1].message else 0):
            try:
                done.append(await database.write(lambda t, one=[(place, delivery)]: _apply(t, one, jitter)))
            except DataRefusedError as exc:
                assert delivery.message is not None
                parked = replace(delivery, message=replace(delivery.message, parked=True, executor=None))
                done.append(
                    await database.write(lambda t, one=[(place, parked)], why=str(exc): _apply(t, one, jitter, why))
                )
        return done


def _apply(
    transaction: Transaction,
    batch: Sequence[tuple[int, Delivery]],
    jitter: Callable[[], float],
    refused: str = "it cannot be read",
) -> Applied:
    applied = Applied()
    changes = applied.changes
    by_evaluation: dict[str, list[tuple[int, Delivery]]] = {}
    for place, delivery in batch:
        applied.fates[place] = Fate.DROPPED
        by_evaluation.setdefault(delivery.evaluation, []).append((place, delivery))
    rows, now = lock(transaction, [evaluation for evaluation in by_evaluation if evaluation])
    for evaluation, part in by_evaluation.items():
        row = rows.get(evaluation)
        if row is None or now is None:
            changes.parked += [_parked(delivery, refused) for _, delivery in part if delivery.message is None]
            continue
        counting = [
            (item, message)
            for item in part
            if (message := item[1].message) is not None and message.kind is not Kind.REMOVED
        ]
        folded = fold(row, [message for _, message in counting], now=now, jitter=jitter)
        for ((place, delivery), message), fate in zip(counting, folded.fates, strict=True):
            applied.fates[place] = fate
            if fate is Fate.APPLIED and message.parked:
                changes.parked.append(_parked(delivery, refused))
        changes.parked += [_parked(delivery, refused) for _, delivery in part if delivery.message is None]
        for place, delivery in part:
            if (message := delivery.message) is not None and message.kind is Kind.REMOVED:
                applied.fates[place] = _tell_afterwards(folded.row, message, changes)
        _take_over(folded, changes)
    write(transaction, changes)
    return applied


async def _apply_unseen(
    database: Database, deliveries: Sequence[Delivery], lease: FreshLease, jitter: Callable[[], float]
) -> Applied | None:
    """Applies a run that is told from its beginning to its verdict, where there is nothing else to it."""
    messages = [each.message for each in deliveries if each.message is not None and not each.message.parked]
    kinds = {message.kind for message in messages}
    token = lease.row.token
    if token is None or len(messages) < len(deliveries) or Kind.VERDICT not in kinds or Kind.REMOVED in kinds:
        return None
    folded = fold(lease.row, messages, now=lease.now(), jitter=jitter)
    if set(folded.fates) != {Fate.APPLIED}:
        return None
    applied = Applied(dict(enumerate(folded.fates)))
    _take_over(folded, applied.changes)
    written = await database.write(lambda t: write_unseen(t, applied.changes, token=token))
    return applied if written else None


def _take_over(folded: Folded, changes: Changes) -> None:
    if not folded.changed:
        return
    row = folded.row
    changes.rows.append(row)
    changes.events += [convert.event(row.id, row.tenant, entry) for entry in folded.entries]
    if folded.attempt is not None:
        changes.attempts.append((row.id, folded.attempt))
    if folded.verdict is not None:
        verdict = folded.verdict
        changes.results.append((row.id, row.generation, row.attempt, verdict.run, convert.result(verdict)))
    if folded.frees_slot:
        changes.pools.add(row.pool)


def _tell_afterwards(row: Row, message: Message, changes: Changes) -> Fate:
    """Rule 17: it waits for the verdict of its run, and changes nothing else."""
    if row.status in OPEN:
        unclaimed = row.run is None and row.status is Status.DISPATCHED and row.token == message.token
        return Fate.WAITING if unclaimed or row.run == message.run else Fate.DROPPED
    if row.status is not Status.COMPLETED:
        return Fate.DROPPED
    changes.afterwards.append((row.id, message.run, convert.afterwards(message)))
    return Fate.APPLIED


def _parked(delivery: Delivery, reason: str) -> Parked:
    return Parked(delivery.subject, delivery.message_id, reason, delivery.data[:MAX_PARKED_BYTES])

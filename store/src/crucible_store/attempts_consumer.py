"""Takes the messages of runs off the stream ATTEMPTS: commit, then acknowledge, then announce.

Owns the waiting of messages whose predecessors have not come (rule 6). What they mean is the ledger's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

import nats.errors
from nats.aio.msg import Msg
from opentelemetry import trace
from prometheus_client import Counter, Histogram

from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import MESSAGE_ID_HEADER, Messaging
from crucible_chassis.telemetry import extract_context
from crucible_contracts import subjects
from crucible_store.attempts_stream import ACK_WAIT_SECONDS, BATCH, Puller, ensure_stream
from crucible_store.database import DatabaseAwayError
from crucible_store.domain.folding import Fate
from crucible_store.domain.rows import Kind
from crucible_store.ledger.attempts import Applied, Delivery, receive

MAX_HELD = 512
"""Messages held for their predecessors, 64 MiB at most; beyond it they are handed back at once."""
HOLD_SECONDS = 1.0
"""How long one is tried with each batch before it is handed back."""
TRY_SECONDS = 0.1
"""Held messages are tried this often, and whenever one of their evaluation comes."""
FIRST_DELAY_SECONDS = 0.1
MOST_DELAY_SECONDS = 5.0
"""How long a message that is handed back stays away: doubling with each delivery."""
GIVE_UP_SECONDS = 30.0
"""A predecessor that did not come in this time was lost: the executor sends everything from there again."""
GATHER_SECONDS = 0.04
"""What a run says first waits so long for its end: most programs are over by then, and one commit serves them whole."""
IDLE_SECONDS = 1.0
"""How long the loop waits for a message before it looks around."""
KEEP_SECONDS = ACK_WAIT_SECONDS / 3
"""How often the server is told that what is in hand is being worked on."""
AWAY_FIRST_SECONDS = 0.1
AWAY_MOST_SECONDS = 2.0
"""Between two tries of a batch while the database is away."""

MESSAGES = Counter("crucible_store_attempt_messages", "Messages of runs by what became of them", ["fate"])
BATCH_MESSAGES = Histogram(
    "crucible_store_batch_messages",
    "Messages committed together",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048),
)
COMMIT_SECONDS = Histogram("crucible_store_commit_seconds", "From the start of a batch to its commit")

log = get_logger(__name__)


def delay_before_next_try(deliveries: int, age: float) -> float | None:
    """Rule 6: seconds that a waiting message stays away after so many deliveries; None: it is given up.

    `age` is the seconds it has been in the stream. Both must say that 30 s were spent in vain: a message may have lain
    in the stream while no store or no database was there, or been delivered often because stores died.
    """
    delay: float = FIRST_DELAY_SECONDS * 2 ** (deliveries - 1)
    if delay > GIVE_UP_SECONDS and age > GIVE_UP_SECONDS:
        return None
    return min(delay, MOST_DELAY_SECONDS)


class Book(Protocol):
    """The ledger, as far as runs write in it."""

    async def apply(self, deliveries: Sequence[Delivery]) -> list[Applied]:
        """Commits; gives what became of each. Raises DatabaseAwayError."""
        ...

    async def announce(self, applied: Sequence[Applied]) -> None:
        """Tells of what was committed."""
        ...


@dataclass(slots=True, eq=False)
class _InHand:
    """A message that is neither acknowledged nor handed back."""

    message: Msg
    delivery: Delivery
    sequence: int
    """Its number in the stream: a second delivery has the same."""
    deliveries: int
    sent_at: float
    """When the stream got it: seconds since the epoch."""
    taken_at: float
    """By our monotonic clock."""
    taken_ns: int


class AttemptsConsumer:
    """One loop of a store. `run` lasts until `stop`, or for ever; `keep` is its side task."""

    def __init__(self, messaging: Messaging, ledger: Book, tracer: trace.Tracer, *, stream_max_bytes: int) -> None:
        self._messaging = messaging
        self._ledger = ledger
        self._tracer = tracer
        self._stream_max_bytes = stream_max_bytes
        self._puller = Puller(messaging, on_trouble=self._on_trouble)
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stream_in_doubt = True
        self._working: list[_InHand] = []
        self._held: dict[int, _InHand] = {}
        self._tried_at = 0.0

    @property
    def ready(self) -> bool:
        """Whether the stream is there and messages are taken from it."""
        return not self._stream_in_doubt and self._messaging.is_connected

    async def run(self) -> None:
        """Takes messages until `stop` is called, then hands back what is left."""
        await self._puller.start()
        try:
            while not self._stopping.is_set():
                if self._stream_in_doubt:
                    if not await self._ensured():
                        break
                    self._stream_in_doubt = False
                fresh = await self._puller.messages(TRY_SECONDS if self._held else IDLE_SECONDS)
                batch = self._with_held(await self._gathered([_in_hand(message) for message in fresh]))
                if batch:
                    await self._process(batch)
        finally:
            await self._hand_back()
            self._stopped.set()

    async def stop(self) -> None:
        """Lets the batch at work be committed, and everything else be handed back."""
        self._stopping.set()
        self._puller.interrupt()
        await self._stopped.wait()

    async def keep(self) -> None:
        """Tells the server, as long as it lasts, that what is in hand is being worked on."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            if not self._messaging.is_connected:
                continue
            for message in [*(item.message for item in self._in_hand()), *self._puller.queued]:
                await _tell(message.in_progress())

    async def _ensured(self) -> bool:
        """Whether the stream is there; False: this store stops before it could be made."""
        loop = asyncio.get_running_loop()
        making = loop.create_task(ensure_stream(self._messaging, max_bytes=self._stream_max_bytes), name="make-stream")
        stopping = loop.create_task(self._stopping.wait(), name="until-stopping")
        try:
            await asyncio.wait({making, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                making.result()
            return making.done()
        finally:
            making.cancel()
            stopping.cancel()

    def _in_hand(self) -> list[_InHand]:
        return [*self._working, *self._held.values()]

    def _on_trouble(self) -> None:
        self._stream_in_doubt = True

    async def _gathered(self, fresh: list[_InHand]) -> list[_InHand]:
        """What has come, and what comes within a moment of runs that have only just begun."""
        while fresh and len(fresh) < BATCH and _only_begins(fresh):
            left = fresh[0].taken_at + GATHER_SECONDS - time.monotonic()
            more = await self._puller.messages(left) if left > 0 else []
            if not more:
                break
            fresh += map(_in_hand, more)
        return fresh

    def _with_held(self, fresh: list[_InHand]) -> list[_InHand]:
        """What is to be tried now: new messages, and the held ones that they or the time may have freed."""
        if not self._held:
            return fresh
        now = time.monotonic()
        if now - self._tried_at >= TRY_SECONDS:
            self._tried_at = now
            tried = list(self._held.values())
        else:
            come = {item.delivery.evaluation for item in fresh}
            tried = [item for item in self._held.values() if item.delivery.evaluation in come]
        for item in tried:
            del self._held[item.sequence]
        return [*tried, *fresh]

    async def _process(self, batch: list[_InHand]) -> None:
        self._working = batch
        started = time.perf_counter()
        applied = await self._commit(batch)
        if applied is None:
            return
        await asyncio.sleep(0)  # who waited for this goes first
        COMMIT_SECONDS.observe(time.perf_counter() - started)
        BATCH_MESSAGES.observe(len(batch))
        fates = {place: fate for part in applied for place, fate in part.fates.items()}
        for place, item in enumerate(batch):
            fate = fates[place]
            MESSAGES.labels(fate.name.lower()).inc()
            if fate is Fate.WAITING:
                await self._wait(item)
            else:
                await _tell(item.message.ack())
                if fate is Fate.APPLIED:
                    self._trace(item)
        self._working = []
        await self._ledger.announce(applied)
        parked = sum(len(part.changes.parked) for part in applied)
        if parked:
            MESSAGES.labels("parked").inc(parked)
            log.error("attempts.parked", messages=parked)

    async def _commit(self, batch: list[_InHand]) -> list[Applied] | None:
        """Commits however long the database is away; None when the store stops meanwhile."""
        delay = AWAY_FIRST_SECONDS
        while True:
            try:
                return await self._ledger.apply([item.delivery for item in batch])
            except DatabaseAwayError:
                # Nothing is pulled meanwhile, and nothing handed back: no other store could do more.
                try:
                    async with asyncio.timeout(delay):
                        await self._stopping.wait()
                except TimeoutError:
                    delay = min(AWAY_MOST_SECONDS, delay * 2)
                else:
                    return None

    async def _wait(self, item: _InHand) -> None:
        """Rule 6. How long a message has been waiting is told by its deliveries, since others may have held it too."""
        if time.monotonic() - item.taken_at < HOLD_SECONDS and len(self._held) < MAX_HELD:
            self._held[item.sequence] = item
            return
        delay = delay_before_next_try(item.deliveries, time.time() - item.sent_at)
        if delay is None:
            MESSAGES.labels("given_up").inc()
            log.warning("attempts.given_up", evaluation=item.delivery.evaluation, message_id=item.delivery.message_id)
            await _tell(item.message.ack())
            return
        await _tell(item.message.nak(delay=delay))

    async def _hand_back(self) -> None:
        left = [*(item.message for item in self._in_hand()), *await self._puller.stop()]
        self._working, self._held = [], {}
        for message in left:
            await _tell(message.nak())
        if left:
            log.info("attempts.handed_back", messages=len(left))

    def _trace(self, item: _InHand) -> None:
        """A span for the messages that change a state; output would drown the trace."""
        message = item.delivery.message
        if message is None or message.kind in (Kind.PROGRESS, Kind.REMOVED):
            return
        self._tracer.start_span(
            "commit",
            context=extract_context(item.message.headers),
            kind=trace.SpanKind.CONSUMER,
            start_time=item.taken_ns,
            attributes={
                "messaging.system": "nats",
                "messaging.destination.name": item.delivery.subject,
                "crucible.evaluation": item.delivery.evaluation,
                "crucible.attempt": message.attempt,
                "crucible.message": message.kind.name.lower(),
            },
        ).end()


def _only_begins(batch: Sequence[_InHand]) -> bool:
    """Every message is of a run whose first is among them, and none is a run's last."""
    messages = [item.delivery.message for item in batch]
    begun = {message.run for message in messages if message is not None and message.kind is Kind.STARTED}
    return all(
        message is not None and message.run in begun and message.kind in (Kind.STARTED, Kind.PROGRESS)
        for message in messages
    )


async def _tell(publish: Awaitable[None]) -> None:
    """Acknowledges in some way. What does not reach the server comes again, and is known then."""
    try:
        await publish
    except (nats.errors.Error, OSError) as exc:
        log.debug("attempts.not_acknowledged", error=type(exc).__name__)


def _in_hand(message: Msg) -> _InHand:
    metadata, headers = message.metadata, message.headers or {}
    return _InHand(
        message=message,
        delivery=receive(
            message.subject,
            headers.get(MESSAGE_ID_HEADER, ""),
            message.data,
            lease=subjects.read_lease(headers.get(subjects.LEASE_HEADER, "")),
        ),
        sequence=metadata.sequence.stream,
        deliveries=metadata.num_delivered,
        sent_at=metadata.timestamp.timestamp(),
        taken_at=time.monotonic(),
        taken_ns=time.time_ns(),
    )

"""The stream ATTEMPTS: made here, and pulled from here."""

# pyright: reportUnknownMemberType=false
# nats-py leaves some of its parameters untyped

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import api

from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects

ACK_WAIT_SECONDS = 2.0
"""A killed store's messages come back after this; a live one says so while it commits."""
BATCH = 256
"""Messages pulled at one time."""
PULL_SECONDS = 2.0
"""A pull asks for this long. A server that was restarted has forgotten it: this is how long nobody notices."""
PULL_GRACE_SECONDS = 1.0
"""Beyond that, for the server's word that it has ended."""
RETRY_SECONDS = 0.5
"""Between two tries to make the stream."""
COMPLAINT_SECONDS = 10.0

log = get_logger(__name__)


def stream_config(max_bytes: int) -> api.StreamConfig:
    """A work queue that refuses when it is full: what an executor holds is safer there than overwritten here."""
    return api.StreamConfig(
        name=subjects.ATTEMPTS_STREAM,
        subjects=[subjects.ATTEMPTS_SUBJECTS],
        retention=api.RetentionPolicy.WORK_QUEUE,
        discard=api.DiscardPolicy.NEW,
        storage=api.StorageType.FILE,
        max_bytes=max_bytes,
    )


def consumer_config() -> api.ConsumerConfig:
    """No limit on deliveries, nor on messages out: a thousand that wait must not lock out the one that frees them."""
    return api.ConsumerConfig(
        durable_name=subjects.ATTEMPTS_CONSUMER,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_SECONDS,
        max_deliver=-1,
        max_ack_pending=-1,
        max_waiting=512,
    )


async def ensure_stream(messaging: Messaging, *, max_bytes: int) -> None:
    """Makes the stream and its consumer, or brings them to these settings. Waits for NATS as long as it takes."""
    loop = asyncio.get_running_loop()
    complained = -COMPLAINT_SECONDS
    while True:
        try:
            await _ensure(messaging, max_bytes)
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError) as exc:
            if loop.time() - complained >= COMPLAINT_SECONDS:
                complained = loop.time()
                log.warning("attempts.stream_waiting", error=type(exc).__name__, detail=str(exc)[:200])
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


async def _ensure(messaging: Messaging, max_bytes: int) -> None:
    config = stream_config(max_bytes)
    try:
        await messaging.js.add_stream(config)
    except nats.js.errors.BadRequestError:
        # It is there with other settings (another maximum, or those of an older version).
        await messaging.js.update_stream(config)
    await messaging.js.add_consumer(subjects.ATTEMPTS_STREAM, consumer_config())


class Puller:
    """Pulls messages: one pull of at most BATCH at a time, whose messages are given as they come.

    nats-py's own `fetch` of many waits for all of them, or for its end, once the first has come to an idle consumer;
    and a pull that is cancelled leaves its messages behind. Here a pull is never cancelled: what it brings is queued,
    and the next one begins when it has ended.
    """

    def __init__(self, messaging: Messaging, *, on_trouble: Callable[[], None]) -> None:
        self._messaging = messaging
        self._on_trouble = on_trouble
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._queue: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._owed = 0
        """Messages that the pull may still bring; 0: none is under way."""
        self._ends_at = 0.0
        self._pulls = 0
        self._interrupted = False

    async def start(self) -> None:
        """Listens for what pulls bring."""
        self._inbox = self._messaging.nc.new_inbox()
        self._subscription = await self._messaging.nc.subscribe(f"{self._inbox}.*", cb=self._take)

    def interrupt(self) -> None:
        """Whoever waits for messages waits no longer, now and later."""
        self._interrupted = True
        self._arrived.set()

    async def stop(self) -> list[Msg]:
        """Pulls no more, and gives what was pulled and not yet taken."""
        if self._subscription is not None and not self._messaging.nc.is_closed:
            # Without a listener the server gives no more for the pull that is under way.
            await self._subscription.unsubscribe()
        left = list(self._queue)
        self._queue.clear()
        return left

    @property
    def queued(self) -> list[Msg]:
        """Pulled, not yet taken."""
        return list(self._queue)

    async def messages(self, timeout: float) -> list[Msg]:
        """What has come: at once where there is something, else within `timeout` seconds, else nothing."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._queue and not self._interrupted:
            # Before anything is awaited, or what comes meanwhile would be overlooked.
            self._arrived.clear()
            await self._pull(loop.time())
            left = min(deadline, self._ends_at) - loop.time()
            if left > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._arrived.wait()
            if loop.time() >= deadline:
                break
        if not self._queue:
            return []
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        # Asked for now, the next ones travel while these are written.
        await self._pull(loop.time())
        return batch

    async def _pull(self, now: float) -> None:
        if self._owed > 0 and now < self._ends_at:
            return
        if not self._messaging.is_connected:
            self._owed, self._ends_at = 0, now + RETRY_SECONDS
            return
        self._pulls += 1
        self._owed, self._ends_at = BATCH, now + PULL_SECONDS + PULL_GRACE_SECONDS
        ask = {"batch": BATCH, "expires": int(PULL_SECONDS * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.ATTEMPTS_STREAM}.{subjects.ATTEMPTS_CONSUMER}"
        await self._messaging.nc.publish(subject, json.dumps(ask).encode(), f"{self._inbox}.{self._pulls}")

    async def _take(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status") if not message.data else None
        if status is None:
            self._owed -= 1
            self._queue.append(message)
        elif message.subject == f"{self._inbox}.{self._pulls}":
            # 404, 408, 409: this pull has ended. 503: nobody answers, the stream or its consumer is gone.
            self._owed = 0
            if status in ("503", "409"):
                self._ends_at = asyncio.get_running_loop().time() + RETRY_SECONDS
                self._owed = 1
                self._on_trouble()
            else:
                self._ends_at = 0.0
        self._arrived.set()

"""Follows the announcements of evaluations, for those who wait for them or watch them.

An announcement may be lost: who listens must look into the database now and then, and when a number is missing.
"""

# pyright: reportUnknownMemberType=false
# nats-py leaves some of its parameters untyped

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects
from crucible_store.convert import Ending

QUEUE_EVENTS = 1024
"""Announcements kept for a listener that is slow; then they are dropped, and it finds them in the database."""
QUEUE_BYTES = 8 * 1024 * 1024
"""The same in bytes."""
CONFIRM_SECONDS = 2
"""A subscription is confirmed within this time, or the listener relies on the database."""

log = get_logger(__name__)


class Listener:
    """Announcements of one evaluation: serialized events, in the order in which they came."""

    def __init__(self) -> None:
        self.ending: Ending | None = None
        """Known where this process committed it, before it is announced."""
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._bytes = 0

    def offer(self, data: bytes) -> None:
        """Keeps an announcement, if there is room."""
        if self._queue.qsize() < QUEUE_EVENTS and self._bytes + len(data) <= QUEUE_BYTES:
            self._bytes += len(data)
            self._queue.put_nowait(data)

    async def next(self, seconds: float) -> bytes | None:
        """The next announcement; None when none came in the time."""
        if self._queue.empty():
            if seconds <= 0:
                return None
            try:
                async with asyncio.timeout(seconds):
                    data = await self._queue.get()
            except TimeoutError:
                return None
        else:
            data = self._queue.get_nowait()
        self._bytes -= len(data)
        return data


class Watchtower:
    """One subscription an evaluation, shared by all who listen to it in this process."""

    def __init__(self, messaging: Messaging) -> None:
        self._messaging = messaging
        self._listeners: dict[str, set[Listener]] = {}
        self._subscriptions: dict[str, Subscription] = {}

    def hear(self, evaluation: str, data: bytes) -> None:
        """An announcement, for those who listen."""
        for listener in self._listeners.get(evaluation, ()):
            listener.offer(data)

    def settle(self, ending: Ending) -> None:
        """An ending, for those who listen; `hear` of its event follows."""
        for listener in self._listeners.get(ending.row.id, ()):
            listener.ending = ending

    @contextlib.asynccontextmanager
    async def listen(self, evaluation: str) -> AsyncGenerator[Listener]:
        """What is announced of an evaluation from now on: the server knows of the subscription before the body runs."""
        listener = Listener()
        listeners = self._listeners.setdefault(evaluation, set())
        listeners.add(listener)
        try:
            await self._subscribe(evaluation)
            yield listener
        finally:
            listeners.discard(listener)
            if not listeners and self._listeners.get(evaluation) is listeners:
                del self._listeners[evaluation]
                subscription = self._subscriptions.pop(evaluation, None)
                if subscription is not None:
                    await self._unsubscribe(subscription)

    async def _subscribe(self, evaluation: str) -> None:
        try:
            if evaluation not in self._subscriptions:
                subject = subjects.events("*", evaluation)

                async def take(message: Msg) -> None:
                    self.hear(evaluation, message.data)

                subscription = await self._messaging.nc.subscribe(subject, cb=take)
                if evaluation in self._subscriptions or evaluation not in self._listeners:
                    await self._unsubscribe(subscription)
                else:
                    self._subscriptions[evaluation] = subscription
            if self._messaging.is_connected:
                await self._messaging.confirm(timeout=CONFIRM_SECONDS)
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            log.warning("events.not_subscribed", error=type(exc).__name__)

    async def _unsubscribe(self, subscription: Subscription) -> None:
        # A connection that is closed has forgotten its subscriptions.
        with contextlib.suppress(nats.errors.Error, OSError, ValueError):
            await subscription.unsubscribe()

"""Answers the heartbeats of executors and the probes of reapers."""

# pyright: reportUnknownMemberType=false
# nats-py leaves a parameter of `subscribe` without a type.

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import nats.aio.msg
import nats.errors
from google.protobuf.message import DecodeError

from crucible.internal.v1 import heartbeat_pb2
from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects
from crucible_contracts.limits import HEARTBEAT_SECONDS

WORKERS = 16
"""Heartbeats recorded at once."""
QUEUE = 1024
"""Heartbeats that wait; one more is not answered."""
STALE_SECONDS = HEARTBEAT_SECONDS - 1.0
"""A heartbeat that waited this long is not recorded. Its executor waits HEARTBEAT_SECONDS for the answer and then asks
again: with less than a second left the answer would come too late, and hold up those that can still come in time."""

log = get_logger(__name__)


class HeartbeatLedger(Protocol):
    """Where leases are extended."""

    async def record_heartbeat(self, heartbeat: heartbeat_pb2.Heartbeat) -> heartbeat_pb2.HeartbeatReply:
        """Raises ServiceError."""
        ...


class HeartbeatResponder:
    """One of the queue group of responders. An error is no answer: nobody abandons a run for it."""

    def __init__(self, ledger: HeartbeatLedger, messaging: Messaging) -> None:
        self._ledger = ledger
        self._messaging = messaging
        self._waiting: asyncio.Queue[tuple[float, nats.aio.msg.Msg]] = asyncio.Queue(QUEUE)

    async def subscribe(self) -> None:
        """Begins to take heartbeats."""
        await self._messaging.nc.subscribe(subjects.HEARTBEAT, queue=subjects.HEARTBEAT_QUEUE_GROUP, cb=self._take)

    async def work(self) -> None:
        """Answers for ever; several of these run side by side."""
        while True:
            arrived, message = await self._waiting.get()
            if time.monotonic() - arrived < STALE_SECONDS:
                await self._answer(message)

    async def _take(self, message: nats.aio.msg.Msg) -> None:
        try:
            self._waiting.put_nowait((time.monotonic(), message))
        except asyncio.QueueFull:
            log.warning("heartbeat.dropped", waiting=QUEUE)

    async def _answer(self, message: nats.aio.msg.Msg) -> None:
        try:
            heartbeat = heartbeat_pb2.Heartbeat.FromString(message.data)
            reply = await self._ledger.record_heartbeat(heartbeat)
            await message.respond(reply.SerializeToString())
        except DecodeError:
            log.warning("heartbeat.malformed", size=len(message.data))
        except ServiceError as exc:
            log.warning("heartbeat.not_recorded", reason=exc.reason)
        except nats.errors.Error as exc:
            log.warning("heartbeat.not_answered", error=repr(exc))

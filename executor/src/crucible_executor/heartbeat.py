"""Keeps the leases of the runs this executor holds, and learns which of them to abandon. Rules 10 to 12."""

# pyright: reportUnknownMemberType=false
# nats-py leaves a parameter of `subscribe` without a type.

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import nats.aio.msg
import nats.errors
from google.protobuf.message import DecodeError

from crucible.internal.v1 import heartbeat_pb2, job_pb2
from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects
from crucible_contracts.limits import HEARTBEAT_SECONDS

ANSWER_SECONDS = HEARTBEAT_SECONDS
"""Time for an answer."""
PACE_SECONDS = 0.05
"""From news to its heartbeat: pulls in quick succession share one, and a short program has ended undisturbed."""
RETRY_SECONDS = 0.5
"""After a heartbeat that nobody answered."""

log = get_logger(__name__)


class Runs(Protocol):
    """The runs that are held."""

    def held(self) -> Sequence[heartbeat_pb2.HeldRun]:
        """All of them."""
        ...

    def confirm(self, run_id: str, stored: int, asked_at: float) -> None:
        """The store has the run's messages below `stored`."""
        ...

    def abandon(self, run_id: str, reason: str) -> None:
        """Kills the run if it runs, and forgets it."""
        ...

    def abandon_token(self, token: str) -> None:
        """The same for every run of a lease."""
        ...


class Heart:
    """Beats every L/5, soon after `beat_soon` was called, and at once after a pause of this process."""

    def __init__(self, messaging: Messaging, announcement: heartbeat_pb2.ExecutorAnnouncement) -> None:
        self.answered = False
        """Whether the last heartbeat was answered."""
        self._messaging = messaging
        self._announcement = announcement
        self._now = asyncio.Event()

    def beat_soon(self) -> None:
        """There is news: a run began, or the slots changed."""
        self._now.set()

    def announce_no_slots(self) -> None:
        """This executor drains."""
        self._announcement.slots = 0
        self._now.set()

    async def run(self, runs: Runs) -> None:
        """Beats for ever."""
        while True:
            self._now.clear()
            asked_at = time.monotonic()
            self.answered = await self._beat(runs, asked_at)
            if not self.answered:
                await asyncio.sleep(RETRY_SECONDS)
            elif await self._news(asked_at + HEARTBEAT_SECONDS):
                await asyncio.sleep(PACE_SECONDS)

    async def listen(self, runs: Runs) -> None:
        """Subscribes to the nudges for this executor."""

        async def nudged(message: nats.aio.msg.Msg) -> None:
            try:
                nudge = job_pb2.Nudge.FromString(message.data)
            except DecodeError:
                log.warning("nudge.malformed", size=len(message.data))
                return
            for token in nudge.abandon_tokens:
                runs.abandon_token(token)

        subject = subjects.nudge(self._announcement.executor.id)
        await self._messaging.nc.subscribe(subject, cb=nudged)

    async def _beat(self, runs: Runs, asked_at: float) -> bool:
        heartbeat = heartbeat_pb2.Heartbeat(executor=self._announcement, runs=runs.held())
        try:
            answer = await self._messaging.request(
                subjects.HEARTBEAT, heartbeat.SerializeToString(), timeout=ANSWER_SECONDS
            )
            reply = heartbeat_pb2.HeartbeatReply.FromString(answer.data)
        except (nats.errors.Error, DecodeError) as exc:
            # No answer abandons nothing.
            if self.answered:
                log.warning("heartbeat.unanswered", error=repr(exc))
            return False
        for told in reply.runs:
            if told.abandon == heartbeat_pb2.RunReply.ABANDON_UNSPECIFIED:
                runs.confirm(told.run, told.next, asked_at)
            else:
                runs.abandon(told.run, heartbeat_pb2.RunReply.Abandon.Name(told.abandon))
        return True

    async def _news(self, due: float) -> bool:
        """Waits until `due` (monotonic), which a pause of the process may have passed; whether there was news."""
        try:
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                await self._now.wait()
        except TimeoutError:
            return False
        return True

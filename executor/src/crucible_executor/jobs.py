"""Pulls jobs for free slots. The stream and its consumer are the scheduler's; this only binds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

import nats.aio.msg
import nats.errors
from google.protobuf.message import DecodeError

from crucible.internal.v1 import job_pb2
from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects

FETCH_SECONDS = 1.0
"""One pull waits so long. It is never cut short, or its job would lie in the client's buffer; so this bounds how long a
stop, or a restart of the broker, goes unnoticed."""
RETRY_SECONDS = 0.5
COMPLAINT_SECONDS = 10.0

log = get_logger(__name__)


class Slots(Protocol):
    """Where jobs are run."""

    async def slot(self) -> None:
        """Waits for a free slot and takes it."""
        ...

    def give_back_slot(self) -> None:
        """A slot that was taken for no run after all."""
        ...

    def begin(self, job: job_pb2.Job, headers: Mapping[str, str]) -> None:
        """Starts a run of a job in the slot that was taken for it."""
        ...


class JobPuller:
    """Pulls one job at a time, and only for a slot that it has taken before."""

    def __init__(self, messaging: Messaging, slots: Slots, *, pool: str) -> None:
        self.bound = False
        """The last pull was answered, if only by having no job."""
        self._messaging = messaging
        self._slots = slots
        self._pool = pool
        self._stopping = False
        self._idle = False
        self._complained = -COMPLAINT_SECONDS

    async def run(self) -> None:
        """Pulls until it is stopped."""
        subscription = await self._messaging.js.pull_subscribe_bind(
            consumer=subjects.jobs_consumer(self._pool), stream=subjects.JOBS_STREAM
        )
        try:
            await self._pull(subscription)
        finally:
            # Not left to the connection's drain, which waits in vain for what fetches left unread.
            await subscription.unsubscribe()

    async def _pull(self, subscription: _Subscription) -> None:
        while not self._stopping:
            self._idle = True
            await self._slots.slot()
            self._idle = False
            taken = None
            try:
                while not self._stopping and taken is None:
                    message = await self._fetch(subscription)
                    if message is not None and await self._take(message):
                        taken = message
            finally:
                if taken is None:
                    self._slots.give_back_slot()
            if taken is not None:
                await self._acknowledge(taken)

    async def stop(self, task: asyncio.Task[None]) -> None:
        """Ends `run`, which is `task`: a pull on its way is waited for, and its job handed back."""
        self._stopping = True
        if self._idle:
            task.cancel()
        await asyncio.wait({task})

    async def _fetch(self, subscription: _Subscription) -> nats.aio.msg.Msg | None:
        if not self._messaging.is_connected:
            self.bound = False
            await asyncio.sleep(RETRY_SECONDS)
            return None
        try:
            (message,) = await subscription.fetch(1, timeout=FETCH_SECONDS)
        except TimeoutError:
            self.bound = True
            return None
        except nats.errors.Error as exc:
            self._complain(exc)
            await asyncio.sleep(RETRY_SECONDS)
            return None
        self.bound = True
        return message

    async def _take(self, message: nats.aio.msg.Msg) -> bool:
        """Whether a run was begun."""
        try:
            if self._stopping:
                await message.nak()
                return False
            job = job_pb2.Job.FromString(message.data)
        except DecodeError:
            log.error("job.malformed", size=len(message.data))
            await message.term()
            return False
        self._slots.begin(job, message.headers or {})
        return True

    async def _acknowledge(self, message: nats.aio.msg.Msg) -> None:
        """The lease in the database is the one authority over a job: the broker's part ends here.

        Where it does not hear of it, the job comes again: that run finds this one's claim, and is abandoned.
        """
        await asyncio.sleep(0)  # the run goes first: somebody may wait for it
        try:
            await message.ack()
        except (nats.errors.Error, OSError) as exc:
            self._complain(exc)

    def _complain(self, error: Exception) -> None:
        self.bound = False
        if time.monotonic() - self._complained >= COMPLAINT_SECONDS:
            self._complained = time.monotonic()
            log.warning("jobs.not_pulled", pool=self._pool, error=repr(error))


class _Subscription(Protocol):
    async def fetch(self, batch: int, timeout: float) -> list[nats.aio.msg.Msg]: ...

    async def unsubscribe(self) -> None: ...

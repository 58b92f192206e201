"""The dispatch of one pool: leases what may run now and publishes it as jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import nats.aio.msg
import nats.errors
from opentelemetry import trace

from crucible.internal.v1 import ledger_service_pb2
from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_chassis.telemetry import extract_context
from crucible_contracts import subjects

BATCH = 64
"""Leases taken at once, and jobs published at once."""
TICK_SECONDS = 1.0
"""The queue is looked at at least this often, whatever nudges were lost."""
GATHER_SECONDS = 0.003
"""What becomes free within this time is filled at one time, and whoever waits for what ran there is told first."""

log = get_logger(__name__)


class LeaseSource(Protocol):
    """Where leases are taken."""

    async def lease(self, pool: str, limit: int) -> ledger_service_pb2.LeaseEvaluationsResponse:
        """Raises ServiceError."""
        ...


class Dispatcher:
    """Dispatches one pool: `run` leases when woken by `wake`, and every second; `publish` what `take` was given.

    A job that cannot be published is left alone: its lease lapses, and the evaluation is leased again. `mend` is called
    when the stream is not there.
    """

    def __init__(
        self,
        leases: LeaseSource,
        messaging: Messaging,
        tracer: trace.Tracer,
        *,
        pool: str,
        mend: Callable[[], Awaitable[None]],
    ) -> None:
        self._leases = leases
        self._messaging = messaging
        self._tracer = tracer
        self._pool = pool
        self._mend = mend
        self._woken = asyncio.Event()
        self._away = False
        self._taken: asyncio.Queue[ledger_service_pb2.LeasedJob] = asyncio.Queue()

    @property
    def able(self) -> bool:
        """Whether a lease that was taken now could be published: rule 1 allows none otherwise."""
        return self._messaging.is_connected

    def take(self, jobs: Sequence[ledger_service_pb2.LeasedJob]) -> None:
        """Jobs that were leased elsewhere; `publish` has them next."""
        for job in jobs:
            self._taken.put_nowait(job)

    async def publish(self) -> None:
        """Publishes what was taken, for ever."""
        while True:
            jobs = [await self._taken.get()]
            while not self._taken.empty() and len(jobs) < BATCH:
                jobs.append(self._taken.get_nowait())
            await self._publish(jobs)

    def wake(self) -> None:
        """Something waits, or a slot became free."""
        self._woken.set()

    async def nudged(self, _message: nats.aio.msg.Msg) -> None:
        """The store says the same over NATS."""
        self._woken.set()

    async def run(self) -> None:
        """Dispatches for ever."""
        while True:
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._woken.wait()
                    await asyncio.sleep(GATHER_SECONDS)
            except TimeoutError:
                pass
            self._woken.clear()
            await self._dispatch_all()

    async def _dispatch_all(self) -> None:
        while self._messaging.is_connected:
            try:
                leased = await self._leases.lease(self._pool, BATCH)
            except ServiceError as exc:
                if not self._away:
                    log.warning("dispatch.no_leases", pool=self._pool, reason=exc.reason)
                self._away = True
                return
            self._away = False
            if leased.jobs:
                await self._publish(leased.jobs)
            if not leased.more:
                return

    async def _publish(self, jobs: Sequence[ledger_service_pb2.LeasedJob]) -> None:
        if len(jobs) == 1:  # at once, and not in a task of its own
            answers = [await self._publish_one(jobs[0])]
        else:
            answers = await asyncio.gather(*(self._publish_one(job) for job in jobs))
        failures = [answer for answer in answers if answer is not None]
        if failures:
            log.warning("dispatch.not_published", pool=self._pool, jobs=len(failures), error=repr(failures[0]))
            await self._mend()

    async def _publish_one(self, leased: ledger_service_pb2.LeasedJob) -> nats.errors.Error | None:
        job = leased.job
        with self._tracer.start_as_current_span(
            "dispatch",
            context=extract_context({"traceparent": leased.traceparent}),
            kind=trace.SpanKind.PRODUCER,
            attributes={
                "messaging.system": "nats",
                "crucible.evaluation": job.evaluation_id,
                "crucible.attempt": job.attempt,
                "crucible.pool": self._pool,
            },
        ) as span:
            try:
                await self._messaging.jetstream_publish(
                    subjects.jobs(self._pool), job.SerializeToString(), message_id=job.token
                )
            except nats.errors.Error as exc:
                span.set_status(trace.StatusCode.ERROR)
                return exc
        return None

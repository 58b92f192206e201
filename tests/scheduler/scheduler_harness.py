"""A scheduler in this process before a real store and a real NATS, and a test that plays the executor."""

# pyright: reportUnknownMemberType=false
# nats-py leaves a parameter of `subscribe` without a type.

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import nats.aio.msg
import nats.errors
from uuid_utils import uuid7

from crucible.internal.v1 import attempt_pb2, heartbeat_pb2, job_pb2
from crucible.v1 import (
    evaluation_pb2,
    evaluation_query_service_pb2_grpc,
    evaluation_service_pb2_grpc,
    execution_pb2,
    executor_pb2,
)
from crucible_chassis.client import open_channel
from crucible_chassis.messaging import Messaging, connect_messaging
from crucible_chassis.process import Lifetime
from crucible_chassis.settings import ServiceSettings
from crucible_chassis.telemetry import start_telemetry
from crucible_contracts import subjects
from crucible_scheduler.app import serve
from crucible_scheduler.settings import SchedulerSettings
from crucible_store.app import serve as serve_store
from crucible_store.settings import StoreSettings
from crucible_testkit import ServiceProcess, free_port

S = TypeVar("S", bound=ServiceSettings)

SECONDS = 30.0
RUNTIMES = Path(__file__).parents[2] / "deploy" / "runtimes"


def load_runtimes(database_url: str) -> None:
    """Migrates the database and loads the repository's runtimes, as an operator does."""
    subprocess.run(
        [sys.executable, "-m", "crucible_store", "migrate", "--runtimes", str(RUNTIMES)],
        env={**os.environ, "CRUCIBLE_DATABASE_URL": database_url},
        check=True,
        timeout=120,
    )


class Store:
    """A store, in this process or as one of its own."""

    def __init__(self, database_url: str, nats_url: str, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.database_url = database_url
        self._nats_url = nats_url
        self._folder = folder
        admin = f"127.0.0.1:{free_port()}"
        self.process = ServiceProcess(
            "crucible_store",
            env={
                "CRUCIBLE_DATABASE_URL": database_url,
                "CRUCIBLE_NATS_URL": nats_url,
                "CRUCIBLE_OBJECT_STORE_URL": f"file://{folder}/objects",
                "CRUCIBLE_GRPC_LISTEN": self.address,
                "CRUCIBLE_ADMIN_LISTEN": admin,
            },
            log=folder / "store.log",
            ready_url=f"http://{admin}/readyz",
        )

    @asynccontextmanager
    async def inside(self) -> AsyncGenerator[Store]:
        """Serves in this process, which spares its start."""
        settings = StoreSettings(
            database_url=self.database_url,
            nats_url=self._nats_url,
            object_store_url=f"file://{self._folder}/objects",
            grpc_listen=self.address,
            admin_listen="127.0.0.1:0",
            grace_seconds=2,
        )
        async with living(Lifetime(settings, start_telemetry("store")), serve_store):
            yield self


@asynccontextmanager
async def living(lifetime: Lifetime[S], serve: Callable[[Lifetime[S]], Awaitable[None]]) -> AsyncGenerator[None]:
    """A service in this process, stopped at the end as a signal does; one that died fails the test."""

    async def live() -> None:
        async with lifetime.stack, lifetime.tasks:
            await serve(lifetime)

    task = asyncio.create_task(live())
    try:
        yield
    finally:
        lifetime.stopping.set()
        if not lifetime.serving:
            task.cancel()
        await asyncio.wait({task})
    assert not lifetime.failed
    if not task.cancelled():
        task.result()


class Scheduler:
    """The service, with clients of it and of its store."""

    def __init__(self, store_address: str, nats_url: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.admin = f"127.0.0.1:{free_port()}"
        self.lifetime = Lifetime(
            SchedulerSettings(
                grpc_listen=self.address,
                admin_listen=self.admin,
                store_url=store_address,
                nats_url=nats_url,
                grace_seconds=2,
            ),
            start_telemetry("scheduler"),
        )
        channel = open_channel(self.address)
        store_channel = open_channel(store_address)
        self.channels = (channel, store_channel)
        self.commands = evaluation_service_pb2_grpc.EvaluationServiceStub(channel)
        self.queries = evaluation_query_service_pb2_grpc.EvaluationQueryServiceStub(store_channel)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Scheduler]:
        async with living(self.lifetime, serve):
            yield self
            for channel in self.channels:
                await channel.close()

    async def until_serving(self) -> None:
        async with asyncio.timeout(SECONDS):
            while not self.lifetime.serving:  # noqa: ASYNC110  the service tells nobody
                await asyncio.sleep(0.01)


@dataclass
class Executor:
    """What a test does in an executor's place."""

    messaging: Messaging
    reference: executor_pb2.ExecutorReference = field(
        default_factory=lambda: executor_pb2.ExecutorReference(id=str(uuid7()), host="test")
    )
    jobs: asyncio.Queue[tuple[job_pb2.Job, dict[str, str]]] = field(
        default_factory=asyncio.Queue["tuple[job_pb2.Job, dict[str, str]]"]
    )
    nudges: asyncio.Queue[job_pb2.Nudge] = field(default_factory=asyncio.Queue[job_pb2.Nudge])

    async def listen(self) -> None:
        async def nudged(message: nats.aio.msg.Msg) -> None:
            self.nudges.put_nowait(job_pb2.Nudge.FromString(message.data))

        async def published(message: nats.aio.msg.Msg) -> None:
            self.jobs.put_nowait((job_pb2.Job.FromString(message.data), message.headers or {}))

        await self.messaging.nc.subscribe(subjects.nudge(self.reference.id), cb=nudged)
        await self.messaging.nc.subscribe(subjects.jobs("default"), cb=published)
        await self.messaging.nc.flush()

    async def heartbeat(
        self, *runs: heartbeat_pb2.HeldRun, slots: int = 8, runtimes: tuple[str, ...] = ("python",)
    ) -> heartbeat_pb2.HeartbeatReply:
        beat = heartbeat_pb2.Heartbeat(
            executor=heartbeat_pb2.ExecutorAnnouncement(
                executor=self.reference, pool="default", slots=slots, runtimes=runtimes
            ),
            runs=runs,
        )
        answer = await self.messaging.request(subjects.HEARTBEAT, beat.SerializeToString(), timeout=5)
        return heartbeat_pb2.HeartbeatReply.FromString(answer.data)

    async def job(self) -> job_pb2.Job:
        return (await self.job_and_headers())[0]

    async def job_and_headers(self) -> tuple[job_pb2.Job, dict[str, str]]:
        async with asyncio.timeout(SECONDS):
            return await self.jobs.get()

    async def job_after_heartbeats(self) -> job_pb2.Job:
        """Beats until a job comes, however many beats get no answer."""
        async with asyncio.timeout(SECONDS):
            while self.jobs.empty():
                with contextlib.suppress(nats.errors.Error):
                    await self.heartbeat()
                await asyncio.sleep(0.1)
        return (await self.jobs.get())[0]

    def run(self, job: job_pb2.Job) -> Run:
        return Run(self, job)


@dataclass
class Run:
    """A run of a job by a test."""

    executor: Executor
    job: job_pb2.Job
    run: str = field(default_factory=lambda: str(uuid7()))
    number: int = 0

    @property
    def held(self) -> heartbeat_pb2.HeldRun:
        return heartbeat_pb2.HeldRun(
            evaluation_id=self.job.evaluation_id, attempt=self.job.attempt, token=self.job.token, run=self.run
        )

    async def say(self, message: attempt_pb2.AttemptMessage) -> None:
        message.evaluation_id = self.job.evaluation_id
        message.attempt = self.job.attempt
        message.token = self.job.token
        message.run = self.run
        message.number = self.number
        message.executor.CopyFrom(self.executor.reference)
        message.create_time.FromDatetime(datetime.now())  # noqa: DTZ005  the store only passes it on
        await self.executor.messaging.jetstream_publish(
            subjects.attempts(self.job.evaluation_id),
            message.SerializeToString(),
            message_id=f"{self.run}.{self.number}",
        )
        self.number += 1

    async def start(self) -> None:
        message = attempt_pb2.AttemptMessage()
        message.started.executor.CopyFrom(self.executor.reference)
        await self.say(message)

    async def succeed(self) -> None:
        message = attempt_pb2.AttemptMessage()
        result = message.finished.result
        result.outcome = execution_pb2.ExecutionResult.SUCCEEDED
        result.cause = execution_pb2.ExecutionResult.PROGRAM
        result.exit_code = 0
        await self.say(message)

    async def fail(self) -> None:
        message = attempt_pb2.AttemptMessage()
        message.finished.fault.cause = execution_pb2.ExecutionResult.SANDBOX
        await self.say(message)


@asynccontextmanager
async def executor_on(nats_url: str) -> AsyncGenerator[Executor]:
    async with connect_messaging(nats_url, name="executor") as messaging:
        made = Executor(messaging)
        await made.listen()
        yield made


def evaluation(source: str = "print(1)", runtime: str = "python") -> evaluation_pb2.Evaluation:
    return evaluation_pb2.Evaluation(runtime=runtime, source=source)

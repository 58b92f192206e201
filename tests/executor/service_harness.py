"""The platform around an executor under test, on a real NATS: it hands out jobs, answers heartbeats, hears messages."""

# pyright: reportUnknownMemberType=false
# nats-py leaves keyword parameters of its methods without a type.

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats.aio.msg
import nats.js.errors
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from uuid_utils import uuid7

from crucible.internal.v1 import attempt_pb2, heartbeat_pb2, job_pb2
from crucible_chassis.messaging import Messaging, connect_messaging
from crucible_contracts import subjects
from crucible_testkit import free_port

SECONDS = 20.0
"""Nothing a test waits for takes so long."""


@dataclass(frozen=True)
class Heard:
    """A message of a run as it was published."""

    message: attempt_pb2.AttemptMessage
    message_id: str
    traceparent: str


@dataclass
class Platform:
    """Streams, and peers of an executor that do what a test says."""

    messaging: Messaging
    pool: str
    heard: list[Heard] = field(default_factory=list[Heard])
    removed: list[attempt_pb2.AttemptMessage] = field(default_factory=list[attempt_pb2.AttemptMessage])
    """Those that tell what was left of a sandbox: they have no number."""
    heartbeats: list[heartbeat_pb2.Heartbeat] = field(default_factory=list[heartbeat_pb2.Heartbeat])
    verdicts: dict[str, heartbeat_pb2.RunReply.Abandon.ValueType] = field(
        default_factory=dict[str, "heartbeat_pb2.RunReply.Abandon.ValueType"]
    )
    """Answers for a token, other than the truth."""
    answers: bool = True
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def make_streams(self) -> None:
        """As the scheduler and the store make them."""
        js = self.messaging.js
        await js.add_stream(
            StreamConfig(
                name=subjects.JOBS_STREAM, subjects=[subjects.JOBS_SUBJECTS], retention=RetentionPolicy.WORK_QUEUE,
                max_age=15,
            )
        )  # fmt: skip
        await js.add_consumer(
            subjects.JOBS_STREAM,
            ConsumerConfig(
                durable_name=subjects.jobs_consumer(self.pool), filter_subject=subjects.jobs(self.pool), ack_wait=5
            ),
        )
        await self.make_attempts()

    async def make_attempts(self) -> None:
        await self.messaging.js.add_stream(
            StreamConfig(
                name=subjects.ATTEMPTS_STREAM,
                subjects=[subjects.ATTEMPTS_SUBJECTS],
                retention=RetentionPolicy.WORK_QUEUE,
            )
        )

    async def listen(self) -> None:
        await self.messaging.nc.subscribe(subjects.ATTEMPTS_SUBJECTS, cb=self._hear)
        await self.messaging.nc.subscribe(subjects.HEARTBEAT, queue=subjects.HEARTBEAT_QUEUE_GROUP, cb=self._answer)

    async def publish_job(self, job: job_pb2.Job, headers: dict[str, str] | None = None) -> None:
        await self.messaging.jetstream_publish(
            subjects.jobs(self.pool), job.SerializeToString(), message_id=job.token, headers=headers
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS), self.changed:
            await self.changed.wait_for(condition)

    def of(self, job: job_pb2.Job) -> list[attempt_pb2.AttemptMessage]:
        """The messages of a job's runs, each once, in order of their first publish."""
        seen: dict[tuple[str, int], attempt_pb2.AttemptMessage] = {}
        for heard in self.heard:
            if heard.message.token == job.token:
                seen.setdefault((heard.message.run, heard.message.number), heard.message)
        return list(seen.values())

    async def finished(self, job: job_pb2.Job) -> attempt_pb2.RunFinished:
        """The end of the job's run, once it is published."""
        await self.until(lambda: bool(self.of(job)) and self.of(job)[-1].WhichOneof("kind") == "finished")
        return self.of(job)[-1].finished

    async def stored(self) -> list[attempt_pb2.AttemptMessage]:
        """What lies in the stream ATTEMPTS, but for what has no number."""
        js = self.messaging.js
        state = (await js.stream_info(subjects.ATTEMPTS_STREAM)).state
        messages: list[attempt_pb2.AttemptMessage] = []
        for sequence in range(state.first_seq, state.last_seq + 1):
            with contextlib.suppress(nats.js.errors.NotFoundError):  # a test deleted it
                raw = await js.get_msg(subjects.ATTEMPTS_STREAM, seq=sequence)
                messages.append(attempt_pb2.AttemptMessage.FromString(raw.data or b""))
        return [message for message in messages if message.WhichOneof("kind") != "removed"]

    def latest(self) -> heartbeat_pb2.Heartbeat:
        return self.heartbeats[-1]

    async def _hear(self, message: nats.aio.msg.Msg) -> None:
        headers = message.headers or {}
        decoded = attempt_pb2.AttemptMessage.FromString(message.data)
        async with self.changed:
            if decoded.WhichOneof("kind") == "removed":
                self.removed.append(decoded)
                self.changed.notify_all()
                return
            self.heard.append(Heard(decoded, headers["Nats-Msg-Id"], headers.get("traceparent", "")))
            self.changed.notify_all()

    async def _answer(self, message: nats.aio.msg.Msg) -> None:
        heartbeat = heartbeat_pb2.Heartbeat.FromString(message.data)
        reply = heartbeat_pb2.HeartbeatReply()
        for run in heartbeat.runs:
            mine = [heard.message for heard in self.heard if heard.message.run == run.run]
            ended = any(each.WhichOneof("kind") == "finished" for each in mine)
            truth = heartbeat_pb2.RunReply.SETTLED if ended else heartbeat_pb2.RunReply.ABANDON_UNSPECIFIED
            reply.runs.add(
                run=run.run,
                abandon=self.verdicts.get(run.token, truth),
                next=len({each.number for each in mine}),
            )
        if self.answers:
            await message.respond(reply.SerializeToString())
        async with self.changed:
            self.heartbeats.append(heartbeat)
            self.changed.notify_all()


@asynccontextmanager
async def platform_on(url: str) -> AsyncGenerator[Platform]:
    """A platform on this NATS, with its streams."""
    async with connect_messaging(url, name="platform") as messaging:
        platform = Platform(messaging, "default")
        await platform.make_streams()
        await platform.listen()
        yield platform


def job(source: str, *, runtime: str = "python", output_bytes: int = 1 << 20, wall_seconds: int = 20) -> job_pb2.Job:
    """A first attempt at a program of one file."""
    made = job_pb2.Job(
        evaluation_id=str(uuid7()),
        attempt=1,
        token=str(uuid7()),
        runtime=runtime,
        program=job_pb2.Program(
            files=[job_pb2.ProgramFile(path="main.py", data=source.encode())], entrypoint="main.py"
        ),
    )
    made.limits.wall_time.seconds = wall_seconds
    made.limits.cpu_time.seconds = 10
    made.limits.memory_bytes = 256 << 20
    made.limits.disk_bytes = 64 << 20
    made.limits.output_bytes = output_bytes
    made.limits.processes = 64
    made.limits.open_files = 256
    made.queue_time.GetCurrentTime()
    made.dispatch_time.GetCurrentTime()
    return made


def environment(nats_url: str, folder: Path) -> dict[str, str]:
    """Settings of an executor."""
    return {
        "CRUCIBLE_NATS_URL": nats_url,
        "CRUCIBLE_OBJECT_STORE_URL": f"file://{folder}/objects",
        "CRUCIBLE_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
        "CRUCIBLE_SLOTS": "2",
    }

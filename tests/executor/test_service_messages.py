"""The messages of a run on a real broker: numbered, one in flight, repeated when they are lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from crucible.internal.v1 import attempt_pb2
from crucible_contracts import subjects
from crucible_executor import convert
from crucible_executor.outputs import RunOutput
from crucible_executor.publisher import OUTPUT_BURST, AttemptsOutbox, RunJournal
from crucible_executor.sandbox.port import Cause, Stream, UsageSample
from crucible_testkit import NatsServer

from .service_harness import Platform, job, platform_on

END = convert.fault(Cause.SANDBOX, "for the test")
IMAGE = "sha256:" + "ab" * 32


class Run:
    """A journal that publishes, and the job it is of."""

    def __init__(self, platform: Platform) -> None:
        self.job = job("")
        self.output = RunOutput()
        envelope = attempt_pb2.AttemptMessage(
            evaluation_id=self.job.evaluation_id, attempt=1, token=self.job.token, run="run-1"
        )
        outbox = AttemptsOutbox(platform.messaging)
        self.journal = RunJournal(envelope, self.output, outbox, {"traceparent": "00-1"}, heartbeat_seconds=3)

    def write(self, data: bytes) -> None:
        self.output.write(Stream.STDOUT, data)
        self.journal.output_came()


@asynccontextmanager
async def running(platform: Platform) -> AsyncGenerator[Run]:
    run = Run(platform)
    task = asyncio.create_task(run.journal.run())
    try:
        yield run
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
async def platform(fresh_nats: NatsServer) -> AsyncGenerator[Platform]:
    async with platform_on(fresh_nats.url) as made:
        yield made


def kinds(messages: list[attempt_pb2.AttemptMessage]) -> list[str | None]:
    return [message.WhichOneof("kind") for message in messages]


def ids(platform: Platform) -> list[str]:
    return [heard.message_id for heard in platform.heard]


async def test_messages_are_numbered_without_holes_and_output_waits_for_started(platform: Platform) -> None:
    async with running(platform) as run:
        run.write(b"early")
        await asyncio.sleep(0.1)
        assert platform.heard == []
        run.journal.started(IMAGE)
        await platform.until(lambda: len(platform.heard) == 2)
        run.journal.sample(UsageSample(1.0, 0.5, 1 << 20))
        await platform.until(lambda: len(platform.heard) == 3)
        run.write(b"late")
        run.journal.finish(END)
        await run.journal.flushed.wait()
        messages = await platform.stored()
    assert kinds(messages) == ["started", "output", "usage", "output", "finished"]
    assert [message.number for message in messages] == [0, 1, 2, 3, 4]
    assert ids(platform) == [f"run-1.{number}" for number in range(5)]
    assert messages[0].started.image_digest == "ab" * 32
    assert (messages[3].output.offset, messages[3].output.text) == (5, "late")
    assert platform.heard[0].traceparent == "00-1"


async def test_times_never_run_backwards(platform: Platform) -> None:
    async with running(platform) as run:
        run.journal.started(IMAGE)
        await platform.until(lambda: len(platform.heard) == 1)
        # The end is known before the rest of the output is taken, and so is a sample before the output of its time.
        run.write(b"x" * 300_000)
        run.journal.sample(UsageSample(1.0, 0.5, 1 << 20))
        run.journal.finish(END)
        await run.journal.flushed.wait()
        messages = await platform.stored()
    assert len(messages) > 3
    times = [message.create_time.ToNanoseconds() for message in messages]
    assert times == sorted(times)


async def test_a_run_that_never_started_says_only_that_it_ended(platform: Platform) -> None:
    async with running(platform) as run:
        run.journal.finish(END)
        await run.journal.flushed.wait()
        (message,) = await platform.stored()
    assert (message.number, message.WhichOneof("kind")) == (0, "finished")
    assert message.finished.fault.detail == "for the test"


async def test_output_gathers_while_a_message_is_in_flight_and_its_pace_is_bounded(platform: Platform) -> None:
    async with running(platform) as run:
        run.journal.started(IMAGE)
        began = time.monotonic()
        for number in range(600):
            run.write(b"%d\n" % number)
            await asyncio.sleep(0.001)
        run.journal.finish(END)
        await run.journal.flushed.wait()
        took = time.monotonic() - began
        messages = await platform.stored()
    outputs = [message.output for message in messages if message.HasField("output")]
    assert "".join(output.text for output in outputs) == "".join(f"{number}\n" for number in range(600))
    assert len(outputs) <= OUTPUT_BURST + took / 0.05 + 2


async def test_a_message_the_broker_acknowledged_and_lost_is_published_again_under_a_new_id(
    platform: Platform,
) -> None:
    async with running(platform) as run:
        run.journal.started(IMAGE)
        await platform.until(lambda: len(platform.heard) == 1)
        run.write(b"lost")
        await platform.until(lambda: len(platform.heard) == 2)
        run.journal.finish(END)
        await run.journal.flushed.wait()
        await platform.messaging.js.delete_msg(subjects.ATTEMPTS_STREAM, 2)  # as a power cut does
        now = time.monotonic()
        run.journal.confirm(1, now + 1)  # too soon after the acknowledgement to say anything
        run.journal.confirm(1, now + 3.5)
        run.journal.confirm(1, now + 3.6)  # a heartbeat of a pull: too soon after the one before
        await asyncio.sleep(0.1)
        assert len(platform.heard) == 3
        run.journal.confirm(1, now + 7)
        await platform.until(lambda: len(platform.heard) == 5)
        assert ids(platform)[3:] == ["run-1.1.1", "run-1.2.1"]
        assert kinds(await platform.stored()) == ["started", "finished", "output", "finished"]
        run.journal.confirm(3, now + 10)
        run.journal.confirm(3, now + 20)
        run.journal.confirm(3, now + 30)
        await asyncio.sleep(0.1)
        assert len(platform.heard) == 5


async def test_a_reply_that_moves_is_no_loss(platform: Platform) -> None:
    async with running(platform) as run:
        run.journal.started(IMAGE)
        for number in range(4):
            run.write(b"x")
            await platform.until(lambda number=number: len(platform.heard) == number + 2)
        now = time.monotonic()
        for stored in range(1, 5):
            run.journal.confirm(stored, now + 4 * stored)
        await asyncio.sleep(0.1)
        assert len(platform.heard) == 5


async def test_a_stream_that_is_not_there_yet_is_waited_for(platform: Platform) -> None:
    await platform.messaging.js.delete_stream(subjects.ATTEMPTS_STREAM)
    async with running(platform) as run:
        run.journal.started(IMAGE)
        run.journal.finish(END)
        await asyncio.sleep(0.3)
        assert not run.journal.flushed.is_set()
        await platform.make_attempts()
        async with asyncio.timeout(20):
            await run.journal.flushed.wait()
        assert kinds(await platform.stored()) == ["started", "finished"]


async def test_a_publish_whose_acknowledgement_was_lost_is_stored_once(fresh_nats: NatsServer) -> None:
    async with platform_on(fresh_nats.url) as platform, running(platform) as run:
        run.journal.started(IMAGE)
        await platform.until(lambda: len(platform.heard) == 1)
        fresh_nats.kill()
        run.write(b"meanwhile")
        run.journal.finish(END)
        await asyncio.sleep(0.5)
        assert not run.journal.flushed.is_set()
        fresh_nats.start()
        async with asyncio.timeout(30):
            await run.journal.flushed.wait()
        assert kinds(await platform.stored()) == ["started", "output", "finished"]

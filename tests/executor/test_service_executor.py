"""The executor as a service: jobs in, messages out, on a real NATS, with programs in real sandboxes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import obstore
import obstore.store
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from crucible.internal.v1 import heartbeat_pb2, job_pb2
from crucible.v1.execution_pb2 import ExecutionResult
from crucible_chassis.process import Lifetime
from crucible_chassis.telemetry import start_telemetry
from crucible_contracts import objects, subjects
from crucible_contracts.limits import HEARTBEAT_SECONDS, LIVE_OUTPUT_BYTES
from crucible_executor.app import serve
from crucible_executor.sandbox.gvisor.driver import GvisorDriver
from crucible_executor.sandbox.image import ImageStore
from crucible_executor.sandbox.port import Offerable, Sandbox
from crucible_executor.settings import ExecutorSettings
from crucible_testkit import NatsServer
from crucible_testkit.child import Child

from .service_harness import Platform, environment, job, platform_on

SLEEP = "import time\nprint('up', flush=True)\ntime.sleep(60)"


@pytest.fixture(scope="module", autouse=True)
def object_store_runtime() -> None:
    """obstore opens descriptors of its own once a process: not between the counts of a test."""
    obstore.put(obstore.store.MemoryStore(), "warm", b"")


@pytest.fixture
async def platform(fresh_nats: NatsServer) -> AsyncGenerator[Platform]:
    async with platform_on(fresh_nats.url) as made:
        yield made


class HeldUp:
    """The real driver, whose boots may be held up before they begin."""

    def __init__(self, driver: GvisorDriver) -> None:
        self._driver = driver
        self.seconds = 0.0

    async def boot(self, runtime: str, *, disk_bytes: int) -> Sandbox:
        await asyncio.sleep(self.seconds)
        return await self._driver.boot(runtime, disk_bytes=disk_bytes)

    async def until_unfit(self) -> str:
        return await self._driver.until_unfit()

    async def offerable_runtimes(self) -> Offerable:
        return await self._driver.offerable_runtimes()


class Executor:
    """The service in this process."""

    def __init__(
        self, url: str, folder: Path, driver: GvisorDriver, *, slots: int = 2, grace: float = 0.3, admin_port: int = 0
    ) -> None:
        self.folder = folder
        self.driver = HeldUp(driver)
        self.spans = InMemorySpanExporter()
        telemetry = start_telemetry("executor", processor=SimpleSpanProcessor(self.spans))
        settings = ExecutorSettings(
            nats_url=url,
            object_store_url=f"file://{folder}/objects",
            admin_listen=f"127.0.0.1:{admin_port}",
            slots=slots,
            grace_seconds=grace,
        )
        self.lifetime = Lifetime(settings, telemetry)
        self.task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def _driver(self, _settings: ExecutorSettings) -> AsyncGenerator[HeldUp]:
        yield self.driver

    async def _live(self) -> None:
        async with self.lifetime.stack, self.lifetime.tasks:
            await serve(self.lifetime, open_sandboxes=self._driver)

    async def stop(self) -> None:
        self.lifetime.stopping.set()
        if self.task is not None:
            await self.task

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Executor]:
        self.task = asyncio.create_task(self._live())
        try:
            yield self
        finally:
            await self.stop()
        assert not self.lifetime.failed


@pytest.fixture
async def executor(
    driver: GvisorDriver, fresh_nats: NatsServer, platform: Platform, tmp_path: Path
) -> AsyncGenerator[Executor]:
    async with Executor(fresh_nats.url, tmp_path, driver).running() as made:
        await platform.until(lambda: len(platform.heartbeats) > 0)
        yield made


def kinds(platform: Platform, made: job_pb2.Job) -> list[str | None]:
    return [message.WhichOneof("kind") for message in platform.of(made)]


async def test_it_announces_what_it_offers(platform: Platform, executor: Executor) -> None:
    announced = platform.latest().executor
    assert announced.pool == "default"
    assert announced.slots == 2
    assert sorted(announced.runtimes) == ["bash", "python"]
    assert announced.executor.host


async def test_a_job_becomes_a_verdict(platform: Platform, executor: Executor) -> None:
    made = job("import sys\nprint(input())\nsys.stderr.write('no\\0\\n')\nsys.exit(3)")
    made.program.stdin = b"hello\n"
    await platform.publish_job(made, {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
    finished = await platform.finished(made)
    messages = platform.of(made)
    assert kinds(platform, made)[0] == "started"
    assert [message.number for message in messages] == list(range(len(messages)))
    assert {(message.token, message.attempt, message.evaluation_id) for message in messages} == {
        (made.token, 1, made.evaluation_id)
    }
    result = finished.result
    assert result.outcome == ExecutionResult.NONZERO_EXIT
    assert [finding.outcome for finding in result.findings] == [ExecutionResult.NONZERO_EXIT]
    assert result.findings[0].detail == "the program exited with code 3"
    assert result.cause == ExecutionResult.PROGRAM
    assert result.exit_code == 3
    assert (result.stdout.text, result.stdout.lossy) == ("hello\n", False)
    assert (result.stderr.text, result.stderr.lossy, result.stderr.size_bytes) == ("no\ufffd\n", True, 4)
    assert result.stdout.sha256 == hashlib.sha256(b"hello\n").hexdigest()
    assert [(stage.name, stage.exit_code) for stage in result.stages] == [("run", 3)]
    assert result.executor == platform.latest().executor.executor
    assert re.fullmatch("[0-9a-f]{64}", result.image_digest)
    timings = result.timings
    assert timings.queued == made.queue_time
    assert timings.dispatched == made.dispatch_time
    assert timings.started.ToNanoseconds() <= timings.ready.ToNanoseconds() <= timings.finished.ToNanoseconds()
    assert finished.stdout_object == ""


async def test_the_pull_is_told_at_once_and_the_run_is_held_until_it_is_settled(
    platform: Platform, executor: Executor
) -> None:
    made = job("")
    platform.verdicts[made.token] = heartbeat_pb2.RunReply.ABANDON_UNSPECIFIED
    before = len(platform.heartbeats)
    await platform.publish_job(made)
    await platform.until(lambda: any(beat.runs for beat in platform.heartbeats[before:]))
    finished = await platform.finished(made)
    assert finished.HasField("result")
    held = next(beat for beat in platform.heartbeats[before:] if beat.runs).runs[0]
    assert (held.evaluation_id, held.attempt, held.token) == (made.evaluation_id, 1, made.token)
    assert held.run == platform.of(made)[0].run
    number = len(platform.heartbeats)
    await platform.until(lambda: len(platform.heartbeats) > number)
    assert [run.token for run in platform.latest().runs] == [made.token]
    del platform.verdicts[made.token]
    await platform.until(lambda: not platform.latest().runs)


async def test_each_pull_makes_a_run_of_its_own(platform: Platform, executor: Executor) -> None:
    made = job("print(1)")
    await platform.publish_job(made)
    await platform.finished(made)
    again = job_pb2.Job()
    again.CopyFrom(made)
    await platform.messaging.jetstream_publish(
        subjects.jobs("default"), again.SerializeToString(), message_id="doubled"
    )
    await platform.until(lambda: len({message.run for message in platform.of(made)}) == 2)


async def test_no_more_jobs_are_pulled_than_slots_are_free(platform: Platform, executor: Executor) -> None:
    jobs = [job(SLEEP) for _ in range(3)]
    for made in jobs:
        await platform.publish_job(made)
    await platform.until(lambda: len({heard.message.token for heard in platform.heard}) == 2)
    await asyncio.sleep(0.3)
    assert len({heard.message.token for heard in platform.heard}) == 2
    assert (await platform.messaging.js.stream_info(subjects.JOBS_STREAM)).state.messages == 1
    platform.verdicts[jobs[0].token] = heartbeat_pb2.RunReply.FENCED
    await platform.until(lambda: bool(platform.of(jobs[2])))
    assert "finished" not in kinds(platform, jobs[0])


async def test_a_nudge_kills_at_once_and_nothing_more_is_said(platform: Platform, executor: Executor) -> None:
    made = job(SLEEP)
    await platform.publish_job(made)
    await platform.until(lambda: "output" in kinds(platform, made))
    platform.answers = False
    nudge = job_pb2.Nudge(abandon_tokens=[made.token])
    me = platform.latest().executor.executor.id
    await platform.messaging.publish(subjects.nudge(me), nudge.SerializeToString())
    other = [job("print(2)"), job("print(3)")]  # two slots: one of these needs the one that became free
    for one in other:
        await platform.publish_job(one)
    for one in other:
        await platform.finished(one)
    assert "finished" not in kinds(platform, made)
    assert made.token not in [run.token for run in platform.latest().runs]


async def test_a_nudge_stops_a_run_whose_sandbox_still_boots(platform: Platform, executor: Executor) -> None:
    executor.driver.seconds = 30
    made = job("")
    await platform.publish_job(made)
    await platform.until(lambda: bool(platform.latest().runs))
    platform.verdicts[made.token] = heartbeat_pb2.RunReply.CANCELLED
    await platform.until(lambda: not platform.latest().runs)
    assert platform.of(made) == []


async def test_an_unanswered_heartbeat_abandons_nothing(platform: Platform, executor: Executor) -> None:
    platform.answers = False
    made = job("import time\ntime.sleep(4)\nprint('through')")
    await platform.publish_job(made)
    assert (await platform.finished(made)).result.stdout.text == "through\n"


async def test_a_sandbox_that_cannot_be_had_is_no_verdict(platform: Platform, executor: Executor) -> None:
    made = job("", runtime="ruby")
    await platform.publish_job(made)
    finished = await platform.finished(made)
    assert finished.fault.cause == ExecutionResult.IMAGE
    assert "ruby" in finished.fault.detail
    assert [message.number for message in platform.of(made)] == [0]


async def test_a_limit_is_told_with_its_figure_and_without_a_termination(
    platform: Platform, executor: Executor
) -> None:
    made = job("print('x' * 100)", output_bytes=10)
    await platform.publish_job(made)
    result = (await platform.finished(made)).result
    assert result.outcome == ExecutionResult.OUTPUT_EXCEEDED
    assert result.cause == ExecutionResult.LIMIT
    assert result.WhichOneof("termination") is None
    assert result.stages[0].WhichOneof("termination") is None
    assert result.stdout.truncated
    assert result.stdout.text == "x" * 10
    assert result.findings[0].detail == "it wrote more than 10 bytes to stdout"


async def test_usage_is_sampled_each_second(platform: Platform, executor: Executor) -> None:
    made = job("import time\ntime.sleep(2.5)")
    await platform.publish_job(made)
    await platform.finished(made)
    assert kinds(platform, made) == ["started", "usage", "usage", "finished"]


async def test_a_long_stream_ends_live_and_lies_whole_in_the_object_store(
    platform: Platform, executor: Executor
) -> None:
    size = 3 * LIVE_OUTPUT_BYTES
    made = job(f"print('é' * {size // 2}, end='')\nimport sys\nprint('short', file=sys.stderr)", output_bytes=4 << 20)
    await platform.publish_job(made)
    finished = await platform.finished(made)
    messages = platform.of(made)
    live = "".join(each.output.text for each in messages if each.HasField("output") and each.output.stream == 1)
    assert live == "é" * (LIVE_OUTPUT_BYTES // 2)
    (elided,) = [each.output_elided for each in messages if each.HasField("output_elided")]
    assert elided.offset == LIVE_OUTPUT_BYTES
    name = objects.output(made.evaluation_id, messages[0].run, "stdout")
    assert (finished.stdout_object, finished.stderr_object) == (name, "")
    kept = bytes(obstore.get(obstore.store.LocalStore(executor.folder / "objects"), name).bytes())
    assert kept == "é".encode() * (size // 2)
    assert finished.result.stdout.sha256 == hashlib.sha256(kept).hexdigest()
    assert f"[... {size - 65536} bytes left out ...]" in finished.result.stdout.text
    assert finished.result.stderr.text == "short\n"


async def test_a_large_program_comes_from_the_object_store(platform: Platform, executor: Executor) -> None:
    made = job("print('large')")
    data = made.program.SerializeToString()
    digest = hashlib.sha256(data).hexdigest()
    made.program_sha256 = digest
    await platform.publish_job(made)
    assert (await platform.finished(made)).fault.cause == ExecutionResult.INFRASTRUCTURE  # it is not there
    store = obstore.store.LocalStore(executor.folder / "objects")
    obstore.put(store, objects.program(digest), data)
    made.token = "other"
    await platform.publish_job(made)
    assert (await platform.finished(made)).result.stdout.text == "large\n"


async def test_a_job_that_cannot_be_read_is_removed_and_harms_nothing(platform: Platform, executor: Executor) -> None:
    await platform.messaging.jetstream_publish(subjects.jobs("default"), b"\xff\xff", message_id="rubbish")
    made = job("print(1)")
    await platform.publish_job(made)
    await platform.finished(made)
    assert (await platform.messaging.js.stream_info(subjects.JOBS_STREAM)).state.messages == 0


async def test_one_trace_leads_from_the_job_to_the_messages(platform: Platform, executor: Executor) -> None:
    made = job("print(1)")
    await platform.publish_job(made, {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
    await platform.finished(made)
    await asyncio.sleep(0.2)
    spans = {span.name: span for span in executor.spans.get_finished_spans()}
    attempt = spans["attempt"]
    assert attempt.context is not None
    assert attempt.parent is not None
    assert attempt.parent.span_id == int("2" * 16, 16)
    for name in ("boot", "deliver", "run", "collect"):
        parent = spans[name].parent
        assert parent is not None
        assert parent.span_id == attempt.context.span_id
    expected = f"00-{'1' * 32}-{attempt.context.span_id:016x}-01"
    assert {heard.traceparent for heard in platform.heard} == {expected}


async def test_a_stop_gives_running_programs_their_grace(
    driver: GvisorDriver, platform: Platform, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    async with Executor(fresh_nats.url, tmp_path, driver, grace=10).running() as executor:
        quick, late = job("import time\ntime.sleep(1)\nprint('done')"), job("print(1)")
        await platform.publish_job(quick)
        await platform.until(lambda: bool(platform.of(quick)))
        executor.lifetime.stopping.set()
        await platform.until(lambda: platform.latest().executor.slots == 0)
        await asyncio.sleep(1.2)  # the pull that was on its way
        await platform.publish_job(late)
        await executor.stop()
    assert (await platform.finished(quick)).result.stdout.text == "done\n"
    assert platform.of(late) == []
    assert (await platform.messaging.js.stream_info(subjects.JOBS_STREAM)).state.messages == 1


async def test_a_program_that_outlives_the_grace_ends_without_a_verdict(platform: Platform, executor: Executor) -> None:
    made = job(SLEEP)
    await platform.publish_job(made)
    await platform.until(lambda: "output" in kinds(platform, made))
    await executor.stop()
    fault = (await platform.finished(made)).fault
    assert (fault.cause, fault.detail) == (ExecutionResult.INFRASTRUCTURE, "the executor was stopped")


async def test_a_job_pulled_while_stopping_is_handed_back(platform: Platform, executor: Executor) -> None:
    executor.lifetime.stopping.set()
    await platform.until(lambda: platform.latest().executor.slots == 0)
    made = job("print(1)")
    await platform.publish_job(made)  # the pull on its way gets it
    await executor.stop()
    assert platform.of(made) == []
    subscription = await platform.messaging.js.pull_subscribe_bind(
        consumer=subjects.jobs_consumer("default"), stream=subjects.JOBS_STREAM
    )
    (again,) = await subscription.fetch(1, timeout=3)
    assert job_pb2.Job.FromString(again.data).token == made.token
    await subscription.unsubscribe()


async def test_a_restart_of_the_broker_costs_no_running_program_its_result(
    driver: GvisorDriver, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    async with platform_on(fresh_nats.url) as platform, Executor(fresh_nats.url, tmp_path, driver).running():
        await platform.until(lambda: len(platform.heartbeats) > 0)
        made = job("import time\nprint('before', flush=True)\ntime.sleep(2)\nprint('after')")
        await platform.publish_job(made)
        await platform.until(lambda: "output" in kinds(platform, made))
        fresh_nats.kill()
        await asyncio.sleep(3)
        fresh_nats.start()
        assert (await platform.finished(made)).result.stdout.text == "before\nafter\n"
        stored = [each.number for each in await platform.stored() if each.token == made.token]
        assert stored == list(range(len(stored)))
        again = job("print('again')")
        await platform.publish_job(again)
        assert (await platform.finished(again)).result.stdout.text == "again\n"


async def test_as_a_process_it_ends_cleanly_and_beats_at_once_after_a_pause(
    images: ImageStore, platform: Platform, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    settings = {"CRUCIBLE_GRACE_SECONDS": "1", "CRUCIBLE_RUNTIMES_DIR": str(images.folder)}
    env = {**os.environ, **environment(fresh_nats.url, tmp_path), **settings}
    child = Child([sys.executable, "-m", "crucible_executor"], log=tmp_path / "executor.log", env=env)
    child.start()
    try:
        await platform.until(lambda: len(platform.heartbeats) > 1)
        child.send(signal.SIGSTOP)
        await asyncio.sleep(4)
        number = len(platform.heartbeats)
        child.send(signal.SIGCONT)
        resumed = time.monotonic()
        await platform.until(lambda: len(platform.heartbeats) > number)
        assert time.monotonic() - resumed < HEARTBEAT_SECONDS
        made = job(SLEEP)
        await platform.publish_job(made)
        await platform.until(lambda: "output" in kinds(platform, made))
        child.send(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait) == 0
        assert (await platform.finished(made)).fault.cause == ExecutionResult.INFRASTRUCTURE
    finally:
        child.kill()

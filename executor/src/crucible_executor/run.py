"""One run of one job: through a sandbox, into messages. Rule 2 of the protocol, and the run's part of rule 12."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO

import uuid_utils
from google.protobuf.message import DecodeError
from opentelemetry import trace

from crucible.internal.v1 import attempt_pb2, heartbeat_pb2, job_pb2
from crucible.v1 import executor_pb2
from crucible.v1.execution_pb2 import ExecutionResult
from crucible_chassis.logs import get_logger
from crucible_chassis.telemetry import extract_context, inject_context
from crucible_contracts import objects as object_names
from crucible_executor import convert
from crucible_executor.objects import ObjectError, Objects
from crucible_executor.outputs import RunOutput
from crucible_executor.publisher import Outbox, RunJournal
from crucible_executor.sandbox.containment.report import Look
from crucible_executor.sandbox.port import (
    Cause,
    InvalidProgramError,
    Sandbox,
    SandboxAbandoned,
    SandboxDriver,
    SandboxFault,
    Stream,
    Verdict,
)

SAMPLE_SECONDS = 1.0
"""Between two samples of a running program's usage."""
COURTESY_SECONDS = 0.03
"""So long a sandbox that has ended stays, stopped, for its verdict to be stored and answered first."""
STORING_SECONDS = 120.0
"""How long a finished run tries to store its output."""
FIRST_BACKOFF_SECONDS = 0.5
"""Between the first two tries; doubled for each further one ..."""
LAST_BACKOFF_SECONDS = 5.0
"""... up to this."""
FLUSH_SECONDS = 5.0
"""For a verdict to reach the broker, before what was left of its sandbox is told in any case."""
AFTERWARDS_SECONDS = 30.0
"""For that to reach it."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What every run of an executor works with."""

    executor: executor_pb2.ExecutorReference
    driver: SandboxDriver
    objects: Objects
    outbox: Outbox
    tracer: trace.Tracer


class Run:
    """A run: made when a job is pulled, held until somebody says that it is settled.

    `execute` returns when the sandbox is gone and the run's end is in the journal; `sandbox_gone` is called once, as
    soon as the slot is free.
    """

    def __init__(
        self, job: job_pb2.Job, headers: Mapping[str, str], tools: Tools, *, sandbox_gone: Callable[[], None]
    ) -> None:
        self.id = str(uuid_utils.uuid7())
        self.job = job
        self._pulled = datetime.now(UTC)
        self._tools = tools
        self._sandbox_gone = sandbox_gone
        self._limits = convert.limits(job.limits)
        self._output = RunOutput()
        self._sandbox: Sandbox | None = None
        self._working: asyncio.Task[None] | None = None
        self._stopped = False
        self._ending: attempt_pb2.RunFinished | None = None
        self._told = False
        self._after: Look | None = None
        self._span = tools.tracer.start_span(
            "attempt",
            context=extract_context(headers),
            kind=trace.SpanKind.CONSUMER,
            attributes={
                "messaging.system": "nats",
                "crucible.evaluation": job.evaluation_id,
                "crucible.attempt": job.attempt,
                "crucible.run": self.id,
                "crucible.runtime": job.runtime,
                "crucible.executor": tools.executor.id,
            },
        )
        with trace.use_span(self._span):
            message_headers = inject_context()
        self._envelope = attempt_pb2.AttemptMessage(
            evaluation_id=job.evaluation_id,
            attempt=job.attempt,
            token=job.token,
            run=self.id,
            executor=tools.executor,
        )
        self._headers = message_headers
        self.journal = RunJournal(self._envelope, self._output, tools.outbox, message_headers)

    def held(self) -> heartbeat_pb2.HeldRun:
        """The run as a heartbeat names it."""
        return heartbeat_pb2.HeldRun(
            evaluation_id=self.job.evaluation_id, attempt=self.job.attempt, token=self.job.token, run=self.id
        )

    def abandon(self, reason: str) -> None:
        """Kills whatever runs, at once; nothing more is said of it."""
        if self._stop(None):
            log.info("attempt.abandoned", **self._names(), reason=reason)

    def give_up(self, detail: str) -> None:
        """Kills whatever runs; the run ends without a verdict, cause INFRASTRUCTURE."""
        self._stop(convert.fault(Cause.INFRASTRUCTURE, detail))

    def release(self) -> None:
        """Frees what is kept of its output."""
        self._output.close()

    def write(self, stream: Stream, data: bytes) -> None:
        """Output of the program; see `OutputSink`."""
        self._output.write(stream, data)
        self.journal.output_came()

    async def execute(self) -> None:
        """The run, from the program to its end in the journal."""
        self._working = asyncio.current_task()
        with trace.use_span(self._span, end_on_exit=True):
            finished = await self._run()
            if finished is not None:
                self._tell(finished)
                self._record(finished)
            elif not self._told:
                self._span.set_attribute("crucible.outcome", "ABANDONED")
        if finished is None and self._told and self._after is not None:
            await self._tell_afterwards(self._after)

    def _stop(self, ending: attempt_pb2.RunFinished | None) -> bool:
        if self._stopped or self._told:
            return False
        self._stopped = True
        self._ending = ending
        if self._sandbox is not None:
            self._sandbox.abandon()
        elif self._working is not None:
            # It waits for a program, a boot or an upload, all of which can be cancelled.
            self._working.cancel()
        return True

    async def _run(self) -> attempt_pb2.RunFinished | None:
        """How the run ended; None: that was told already, or is not to be told."""
        try:
            verdict = await self._in_sandbox()
            return None if self._told else await self._with_objects(verdict)
        except SandboxFault as exc:
            return convert.fault(exc.cause, exc.detail)
        except InvalidProgramError as exc:
            # Admission let it pass: the platform's own mistake.
            return convert.fault(Cause.INFRASTRUCTURE, f"the sandbox refused the program: {exc}")
        except SandboxAbandoned:
            return self._ending
        except asyncio.CancelledError:
            if not self._stopped or (task := asyncio.current_task()) is None or task.uncancel() > 0:
                raise  # not ours: the process ends
            return self._ending
        except Exception as exc:
            log.error("attempt.broken", **self._names(), exc_info=exc)
            return convert.fault(Cause.INFRASTRUCTURE, f"the executor failed: {type(exc).__name__}")

    async def _in_sandbox(self) -> Verdict:
        """The verdict. Told before the sandbox is taken down, unless an object must be stored first."""
        span = self._tools.tracer.start_as_current_span
        try:
            if self._stopped:
                raise SandboxAbandoned("it was abandoned before it began")
            program = convert.program(self.job.runtime, await self._program())
            with span("boot"):
                self._sandbox = await self._tools.driver.boot(self.job.runtime, disk_bytes=self._limits.disk_bytes)
            with span("deliver"):
                await self._sandbox.deliver(program, self._limits, self)
            self.journal.started(self._sandbox.image_digest)
            verdict = await self._observed(self._sandbox)
            if not self._output.must_be_stored:
                finished = self._finished(verdict)
                self._tell(finished)
                try:
                    await asyncio.sleep(COURTESY_SECONDS)
                finally:
                    self._record(finished)
            return verdict
        finally:
            await self._close()
            self._sandbox_gone()

    async def _program(self) -> job_pb2.Program:
        if self.job.WhichOneof("payload") == "program":
            return self.job.program
        digest = self.job.program_sha256
        try:
            data = await self._tools.objects.get(object_names.program(digest))
            if hashlib.sha256(data).hexdigest() != digest:
                raise SandboxFault(Cause.INFRASTRUCTURE, f"the program's object {digest} is damaged")
            return job_pb2.Program.FromString(data)
        except (ObjectError, DecodeError) as exc:
            raise SandboxFault(Cause.INFRASTRUCTURE, f"the program's object {digest} cannot be had: {exc}") from exc

    async def _observed(self, sandbox: Sandbox) -> Verdict:
        sampling = _Sampling(sandbox, self.journal)
        try:
            verdict = await sandbox.observe()
        finally:
            sampling.stop()
        finished = _nanoseconds(verdict.phases.finished)
        tracer = self._tools.tracer
        tracer.start_span("run", start_time=_nanoseconds(verdict.phases.started)).end(finished)
        tracer.start_span("collect", start_time=finished).end()
        return verdict

    async def _close(self) -> None:
        sandbox = self._sandbox
        if sandbox is None:
            return
        try:
            await sandbox.close()
        except Exception as exc:
            log.error("sandbox.not_removed", **self._names(), sandbox=sandbox.id, exc_info=exc)
        self._after = sandbox.after
        self._sandbox = None

    async def _tell_afterwards(self, look: Look) -> None:
        """Rule 17: after the verdict, which nobody makes wait for it; lost where the broker is away for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await self.journal.flushed.wait()
        message = attempt_pb2.AttemptMessage(removed=attempt_pb2.SandboxRemoved(look=convert.look(look)))
        message.create_time.CopyFrom(convert.timestamp(look.time))
        message.MergeFrom(self._envelope)
        try:
            async with asyncio.timeout(AFTERWARDS_SECONDS):
                await self._tools.outbox.publish(
                    self.job.evaluation_id, message.SerializeToString(), f"{self.id}.removed", self._headers
                )
        except TimeoutError:
            log.warning("containment.not_told", **self._names())

    def _finished(self, verdict: Verdict) -> attempt_pb2.RunFinished:
        result = convert.result(verdict, self._output, self._limits, self.job, self._pulled)
        result.executor.CopyFrom(self._tools.executor)
        if self._after is not None:
            result.containment.after.CopyFrom(convert.look(self._after))
        return attempt_pb2.RunFinished(result=result)

    async def _with_objects(self, verdict: Verdict) -> attempt_pb2.RunFinished | None:
        """The verdict, once the outputs too long to be sent live are stored.

        Raises SandboxFault when they were not for STORING_SECONDS: another attempt, elsewhere, may fare better.
        """
        if self._stopped:
            return self._ending
        if self._output.failed:
            return convert.fault(Cause.INFRASTRUCTURE, "this machine could not keep the program's output")
        names: dict[Stream, str] = {}
        for stream, kept in self._output.streams.items():
            if kept.spool is not None:
                names[stream] = object_names.output(self.job.evaluation_id, self.id, stream.value)
                await self._store(names[stream], kept.spool)
        finished = await asyncio.to_thread(self._finished, verdict)
        finished.stdout_object = names.get(Stream.STDOUT, "")
        finished.stderr_object = names.get(Stream.STDERR, "")
        return finished

    async def _store(self, name: str, file: IO[bytes]) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        give_up = time.monotonic() + STORING_SECONDS
        while True:
            try:
                await self._tools.objects.put(name, file)
            except ObjectError as exc:
                log.warning("output.not_stored", **self._names(), error=repr(exc.__cause__))
                if time.monotonic() > give_up:
                    raise SandboxFault(Cause.INFRASTRUCTURE, "the object store did not take the output") from exc
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)
            else:
                return

    def _tell(self, finished: attempt_pb2.RunFinished) -> None:
        self._told = True
        self.journal.finish(finished)

    def _record(self, finished: attempt_pb2.RunFinished) -> None:
        """In the span and the log, once it was told."""
        if finished.HasField("fault"):
            cause = ExecutionResult.Cause.Name(finished.fault.cause)
            self._span.set_attribute("crucible.cause", cause)
            self._span.set_status(trace.StatusCode.ERROR)
            log.warning("attempt.failed", **self._names(), cause=cause, detail=finished.fault.detail)
        else:
            outcome = ExecutionResult.Outcome.Name(finished.result.outcome)
            self._span.set_attribute("crucible.outcome", outcome)
            log.info("attempt.finished", **self._names(), outcome=outcome)

    def _names(self) -> dict[str, str | int]:
        return {"evaluation": self.job.evaluation_id, "attempt": self.job.attempt, "run": self.id}


class _Sampling:
    """Looks at a running program each second, until it is stopped."""

    def __init__(self, sandbox: Sandbox, journal: RunJournal) -> None:
        self._sandbox = sandbox
        self._journal = journal
        self._timer = asyncio.get_running_loop().call_later(SAMPLE_SECONDS, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if (sample := self._sandbox.sample()) is not None:
            self._journal.sample(sample)
        self._timer = asyncio.get_running_loop().call_later(SAMPLE_SECONDS, self._look)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)

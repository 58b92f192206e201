"""Where the port's plain data meets the contract: jobs in, messages and results out."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from crucible.internal.v1 import attempt_pb2, job_pb2
from crucible.v1 import containment_pb2, evaluation_pb2, event_pb2, execution_pb2, executor_pb2
from crucible_executor.outputs import Chunk, Elision, RunOutput
from crucible_executor.sandbox.containment.report import Check, Containment, Found, Look
from crucible_executor.sandbox.port import (
    Cause,
    Outcome,
    Program,
    ProgramFile,
    SandboxLimits,
    Stream,
    StreamSummary,
    Usage,
    UsageSample,
    Verdict,
)

MAX_DETAIL_BYTES = 1024
"""Of `RunFault.detail`."""

_OF_PROGRAM = frozenset({Outcome.SUCCEEDED, Outcome.NONZERO_EXIT, Outcome.SIGNALED})
_OUTCOMES = {outcome: execution_pb2.ExecutionResult.Outcome.Value(outcome.value) for outcome in Outcome}
_CAUSES = {cause: execution_pb2.ExecutionResult.Cause.Value(cause.value) for cause in Cause}
_CHECKS = {check: containment_pb2.Containment.Check.Value(check.value) for check in Check}
_FOUND = {found: containment_pb2.Containment.Verdict.Value(found.value) for found in Found}
_STREAMS = {Stream.STDOUT: event_pb2.OutputChunk.STDOUT, Stream.STDERR: event_pb2.OutputChunk.STDERR}


def limits(job: evaluation_pb2.Limits) -> SandboxLimits:
    """A job's limits; none of them is absent."""
    return SandboxLimits(
        wall_time=job.wall_time.ToNanoseconds() / 1e9,
        cpu_time=job.cpu_time.ToNanoseconds() / 1e9,
        memory_bytes=job.memory_bytes,
        disk_bytes=job.disk_bytes,
        output_bytes=job.output_bytes,
        processes=job.processes,
        open_files=job.open_files,
    )


def program(runtime: str, given: job_pb2.Program) -> Program:
    """A job's program."""
    return Program(
        runtime=runtime,
        files=[ProgramFile(file.path, file.data) for file in given.files],
        entrypoint=given.entrypoint,
        args=tuple(given.args),
        env=dict(given.env),
        stdin=given.stdin,
    )


def digest(image: str) -> str:
    """An image's digest as the contract has it: without the name of its hash."""
    return image.removeprefix("sha256:")


def output(taken: Chunk | Elision) -> attempt_pb2.AttemptMessage:
    """Output as a message without its envelope."""
    stream = _STREAMS[taken.stream]
    if isinstance(taken, Elision):
        return attempt_pb2.AttemptMessage(output_elided=event_pb2.OutputElided(stream=stream, offset=taken.offset))
    chunk = event_pb2.OutputChunk(stream=stream, offset=taken.offset)
    if isinstance(taken.content, str):
        chunk.text = taken.content
    else:
        chunk.data = taken.content
    return attempt_pb2.AttemptMessage(output=chunk)


def usage_sample(sample: UsageSample) -> attempt_pb2.AttemptMessage:
    """A look at a running program as a message without its envelope."""
    return attempt_pb2.AttemptMessage(
        usage=event_pb2.UsageSample(
            wall_time=duration(sample.elapsed),
            cpu_time=duration(sample.cpu_time),
            memory_bytes=sample.memory_bytes,
        )
    )


def fault(cause: Cause, detail: str) -> attempt_pb2.RunFinished:
    """The end of a run without a verdict."""
    cut = detail.encode()[:MAX_DETAIL_BYTES].decode(errors="ignore")
    return attempt_pb2.RunFinished(fault=attempt_pb2.RunFault(cause=_CAUSES[cause], detail=cut))


def result(
    verdict: Verdict, streams: RunOutput, asked: SandboxLimits, job: job_pb2.Job, pulled: datetime
) -> execution_pb2.ExecutionResult:
    """The verdict as it is published. Reads spooled output: not for the event loop where there is any. OSError."""
    used = usage(verdict.usage)
    stage = execution_pb2.Stage(name="run", outcome=_OUTCOMES[verdict.outcome], usage=used)
    converted = execution_pb2.ExecutionResult(
        outcome=_OUTCOMES[verdict.outcome],
        findings=[_finding(outcome, verdict, asked) for outcome in verdict.findings],
        cause=_CAUSES[verdict.cause],
        stdout=_output(streams, Stream.STDOUT, verdict.stdout),
        stderr=_output(streams, Stream.STDERR, verdict.stderr),
        usage=used,
        timings=execution_pb2.Timings(
            started=timestamp(pulled),
            ready=timestamp(verdict.phases.started),
            finished=timestamp(verdict.phases.finished),
        ),
        image_digest=digest(verdict.image_digest),
        containment=None if verdict.containment is None else containment(verdict.containment),
    )
    if job.HasField("queue_time"):
        converted.timings.queued.CopyFrom(job.queue_time)
    if job.HasField("dispatch_time"):
        converted.timings.dispatched.CopyFrom(job.dispatch_time)
    if verdict.outcome in _OF_PROGRAM:  # a program that the platform stopped did not end by itself
        if verdict.exit_code is not None:
            converted.exit_code = stage.exit_code = verdict.exit_code
        elif verdict.signal is not None:
            converted.signal = stage.signal = verdict.signal
    converted.stages.append(stage)
    return converted


def containment(known: Containment) -> containment_pb2.Containment:
    """What is known of a sandbox's confinement as the contract has it."""
    return containment_pb2.Containment(inside=look(known.inside), before=look(known.before))


def look(made: Look) -> containment_pb2.Containment.Look:
    """One look as the contract has it."""
    return containment_pb2.Containment.Look(
        time=timestamp(made.time),
        held=[_CHECKS[each.check] for each in made.findings if each.found is Found.HELD],
        exceptions=[
            containment_pb2.Containment.Exception(
                check=_CHECKS[each.check], verdict=_FOUND[each.found], detail=each.detail
            )
            for each in made.findings
            if each.found is not Found.HELD
        ],
    )


def usage(used: Usage) -> execution_pb2.Usage:
    """What a run took; what the kernel did not tell stays absent."""
    converted = execution_pb2.Usage(
        wall_time=duration(used.wall_time),
        cpu_time=duration(used.cpu_time),
        peak_memory_bytes=used.peak_memory_bytes,
        user_time=_optional(used.user_time),
        system_time=_optional(used.system_time),
        throttled_time=_optional(used.throttled_time),
    )
    if (pressure := used.pressure) is not None:
        converted.pressure.CopyFrom(
            execution_pb2.Pressure(
                scope=execution_pb2.Pressure.Scope.Value(pressure.scope.value),
                cpu=_optional(pressure.cpu),
                memory=_optional(pressure.memory),
                io=_optional(pressure.io),
            )
        )
    return converted


def _optional(seconds: float | None) -> Duration | None:
    return None if seconds is None else duration(seconds)


def executor(identity: str, host: str) -> executor_pb2.ExecutorReference:
    """Who an executor is."""
    return executor_pb2.ExecutorReference(id=identity, host=host)


def _output(streams: RunOutput, stream: Stream, summary: StreamSummary) -> execution_pb2.Output:
    preview = streams.streams[stream].preview()
    return execution_pb2.Output(
        text=preview.text,
        size_bytes=summary.size_bytes,
        sha256=summary.sha256,
        truncated=summary.truncated,
        lossy=preview.lossy,
        omitted_bytes=preview.omitted,
    )


def _finding(outcome: Outcome, verdict: Verdict, asked: SandboxLimits) -> execution_pb2.Finding:
    cause = Cause.PROGRAM if outcome in _OF_PROGRAM else Cause.LIMIT
    return execution_pb2.Finding(
        outcome=_OUTCOMES[outcome], cause=_CAUSES[cause], detail=_detail(outcome, verdict, verdict.usage, asked)
    )


def _detail(outcome: Outcome, verdict: Verdict, used: Usage, asked: SandboxLimits) -> str:
    match outcome:
        case Outcome.SUCCEEDED:
            return "the program exited with code 0"
        case Outcome.NONZERO_EXIT:
            return f"the program exited with code {verdict.exit_code}"
        case Outcome.SIGNALED:
            return f"the signal {verdict.signal} ended the program"
        case Outcome.WALL_TIME_EXCEEDED:
            return f"it ran for {used.wall_time:.3f} s; the limit is {asked.wall_time:g} s"
        case Outcome.CPU_TIME_EXCEEDED:
            return f"it used {used.cpu_time:.3f} s of CPU time; the limit is {asked.cpu_time:g} s"
        case Outcome.MEMORY_EXCEEDED:
            return (
                f"it ran out of its {asked.memory_bytes} bytes; the sandbox's peak was {used.peak_memory_bytes} bytes"
            )
        case Outcome.OUTPUT_EXCEEDED:
            over = [
                stream.value
                for stream, summary in ((Stream.STDOUT, verdict.stdout), (Stream.STDERR, verdict.stderr))
                if summary.truncated
            ]
            return f"it wrote more than {asked.output_bytes} bytes to {' and '.join(over)}"


def duration(seconds: float) -> Duration:
    """Seconds as the contract has them."""
    converted = Duration()
    converted.FromNanoseconds(round(seconds * 1e9))
    return converted


def timestamp(moment: datetime) -> Timestamp:
    """A moment as the contract has it."""
    converted = Timestamp()
    converted.FromDatetime(moment)
    return converted

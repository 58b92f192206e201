"""Typed views of the contract's messages; `proto` is the whole message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from crucible.v1 import evaluation_pb2, event_pb2, execution_pb2, runtime_pb2


class Status(StrEnum):
    """Where an evaluation is in its life; the last three are final."""

    QUEUED = "QUEUED"
    DISPATCHED = "DISPATCHED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    """There is a verdict."""
    FAILED = "FAILED"
    """The platform could not reach one."""
    CANCELLED = "CANCELLED"
    UNRECOGNIZED = "UNRECOGNIZED"
    """A value that only a newer platform knows: see `proto`."""

    @property
    def final(self) -> bool:
        """Nothing changes it any more, except requeueing a FAILED one."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class StatusReason(StrEnum):
    """Why an evaluation has its status."""

    WAITING_FOR_CAPACITY = "WAITING_FOR_CAPACITY"
    RUNTIME_NOT_OFFERED = "RUNTIME_NOT_OFFERED"
    RETRY_BACKOFF = "RETRY_BACKOFF"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    DISPATCHES_EXHAUSTED = "DISPATCHES_EXHAUSTED"
    CANCELLED_BY_CALLER = "CANCELLED_BY_CALLER"
    UNRECOGNIZED = "UNRECOGNIZED"


class Outcome(StrEnum):
    """What happened to a program."""

    SUCCEEDED = "SUCCEEDED"
    NONZERO_EXIT = "NONZERO_EXIT"
    SIGNALED = "SIGNALED"
    WALL_TIME_EXCEEDED = "WALL_TIME_EXCEEDED"
    CPU_TIME_EXCEEDED = "CPU_TIME_EXCEEDED"
    MEMORY_EXCEEDED = "MEMORY_EXCEEDED"
    OUTPUT_EXCEEDED = "OUTPUT_EXCEEDED"
    UNRECOGNIZED = "UNRECOGNIZED"

    @property
    def limit(self) -> bool:
        """The program exceeded a limit of its request."""
        return self.value.endswith("_EXCEEDED")


class Cause(StrEnum):
    """Who is responsible."""

    PROGRAM = "PROGRAM"
    LIMIT = "LIMIT"
    SANDBOX = "SANDBOX"
    IMAGE = "IMAGE"
    INFRASTRUCTURE = "INFRASTRUCTURE"
    USER = "USER"
    POLICY = "POLICY"
    UNRECOGNIZED = "UNRECOGNIZED"


class Stream(StrEnum):
    """An output stream of a program."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Output:
    """What a program wrote to one stream; `Client.read_output` gives the exact bytes."""

    proto: execution_pb2.Output

    @property
    def text(self) -> str:
        """The first and the last 32 KiB, with invalid bytes replaced. Empty in lists, which leave it out."""
        return self.proto.text

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""
        return self.proto.size_bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes kept: 64 hex digits."""
        return self.proto.sha256

    @property
    def truncated(self) -> bool:
        """The program wrote more than was kept."""
        return self.proto.truncated

    @property
    def lossy(self) -> bool:
        """`text` does not show the kept bytes exactly."""
        return self.proto.lossy

    def __str__(self) -> str:
        return self.proto.text


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict."""

    proto: execution_pb2.ExecutionResult

    @property
    def outcome(self) -> Outcome:
        """What happened to the program."""
        return _member(Outcome, execution_pb2.ExecutionResult.Outcome, self.proto.outcome)

    @property
    def cause(self) -> Cause:
        """Who is responsible for it."""
        return _member(Cause, execution_pb2.ExecutionResult.Cause, self.proto.cause)

    @property
    def exit_code(self) -> int | None:
        """Exit code of the program; None when a signal or the platform ended it."""
        return self.proto.exit_code if self.proto.HasField("exit_code") else None

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended the program, such as `SIGSEGV`."""
        return self.proto.signal if self.proto.HasField("signal") else None

    @property
    def stdout(self) -> Output:
        """Standard output."""
        return Output(self.proto.stdout)

    @property
    def stderr(self) -> Output:
        """Standard error."""
        return Output(self.proto.stderr)

    @property
    def wall_time(self) -> float:
        """Seconds from the delivery of the program to its end."""
        return _seconds(self.proto.usage.wall_time)

    @property
    def cpu_time(self) -> float:
        """CPU seconds of the whole sandbox."""
        return _seconds(self.proto.usage.cpu_time)

    @property
    def peak_memory_bytes(self) -> int:
        """Peak memory."""
        return self.proto.usage.peak_memory_bytes

    def __repr__(self) -> str:
        end = f"signal={self.signal}" if self.signal else f"exit_code={self.exit_code}"
        return f"Result({self.outcome}, {end}, wall_time={self.wall_time:.3f})"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One program, run once, with its verdict."""

    proto: evaluation_pb2.Evaluation

    @property
    def id(self) -> str:
        """UUIDv7, assigned when it was accepted."""
        return self.proto.id

    @property
    def runtime(self) -> str:
        """Name of its runtime."""
        return self.proto.runtime

    @property
    def status(self) -> Status:
        """Where it is in its life."""
        return _member(Status, evaluation_pb2.Evaluation.Status, self.proto.status)

    @property
    def final(self) -> bool:
        """It has ended: with a verdict, without one, or cancelled."""
        return self.status.final

    @property
    def status_reason(self) -> StatusReason | None:
        """Why it has that status; None where the status says it all."""
        if not self.proto.HasField("status_reason"):
            return None
        return _member(StatusReason, evaluation_pb2.Evaluation.StatusReason, self.proto.status_reason)

    @property
    def cause(self) -> Cause | None:
        """Who is responsible for its end; None before it is final."""
        if not self.proto.HasField("cause"):
            return None
        return _member(Cause, execution_pb2.ExecutionResult.Cause, self.proto.cause)

    @property
    def result(self) -> Result | None:
        """The verdict, once it is COMPLETED."""
        return Result(self.proto.result) if self.proto.HasField("result") else None

    @property
    def succeeded(self) -> bool:
        """Its program ended with exit code 0."""
        return self.result is not None and self.result.outcome is Outcome.SUCCEEDED

    @property
    def attempt(self) -> int:
        """How many times it was dispatched."""
        return self.proto.attempt

    @property
    def generation(self) -> int:
        """1, plus one for each requeue."""
        return self.proto.generation

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        return self.proto.labels

    @property
    def create_time(self) -> datetime:
        """When it was accepted, in UTC."""
        return _time(self.proto.create_time)

    @property
    def start_time(self) -> datetime | None:
        """When its latest attempt started."""
        return _time(self.proto.start_time) if self.proto.HasField("start_time") else None

    @property
    def end_time(self) -> datetime | None:
        """When it became final."""
        return _time(self.proto.end_time) if self.proto.HasField("end_time") else None

    @property
    def trace_id(self) -> str:
        """Id of its W3C trace: 32 hex digits."""
        return self.proto.trace_id

    def __repr__(self) -> str:
        result = f", {self.result!r}" if self.result else ""
        return f"Evaluation({self.id}, {self.runtime}, {self.status}{result})"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to an evaluation."""

    proto: event_pb2.Event

    @property
    def sequence(self) -> int:
        """Its sequence number: 1, 2, 3 ... without gaps."""
        return self.proto.sequence

    @property
    def generation(self) -> int:
        """The generation it belongs to."""
        return self.proto.generation

    @property
    def attempt(self) -> int:
        """The attempt it belongs to; 0 before the first."""
        return self.proto.attempt

    @property
    def create_time(self) -> datetime:
        """When it happened, in UTC."""
        return _time(self.proto.create_time)

    @property
    def kind(self) -> str:
        """What happened: `queued`, `started`, `output`, `finished` ...: the field of `proto` that is set."""
        return self.proto.WhichOneof("kind") or ""

    @property
    def stream(self) -> Stream | None:
        """For `output` and `output_elided`: which stream."""
        if self.kind not in ("output", "output_elided"):
            return None
        number = self.proto.output.stream if self.kind == "output" else self.proto.output_elided.stream
        return Stream.STDERR if number == event_pb2.OutputChunk.STDERR else Stream.STDOUT

    @property
    def data(self) -> bytes:
        """For `output`: the bytes; else empty."""
        chunk = self.proto.output
        return chunk.data if chunk.WhichOneof("content") == "data" else chunk.text.encode()

    def __repr__(self) -> str:
        return f"Event({self.sequence}, {self.kind}, attempt={self.attempt})"


@dataclass(frozen=True, slots=True)
class Runtime:
    """A language or an environment that programs run in."""

    proto: runtime_pb2.Runtime

    @property
    def name(self) -> str:
        """Its name in `Program.runtime`."""
        return self.proto.name

    @property
    def display_name(self) -> str:
        """Its display name."""
        return self.proto.display_name

    @property
    def entrypoint(self) -> str:
        """The file name that a single source is given."""
        return self.proto.entrypoint

    @property
    def available(self) -> bool:
        """A live executor offers it now."""
        return self.proto.available

    def __repr__(self) -> str:
        return f"Runtime({self.name}, available={self.available})"


EnumT = TypeVar("EnumT", bound=StrEnum)
NumberT = TypeVar("NumberT", bound=int, contravariant=True)


class _Names(Protocol[NumberT]):
    def Name(self, number: NumberT) -> str: ...  # noqa: N802  protobuf's name


def _member(kind: type[EnumT], names: _Names[NumberT], number: NumberT) -> EnumT:
    try:
        return kind(names.Name(number))
    except ValueError:
        return kind("UNRECOGNIZED")


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)

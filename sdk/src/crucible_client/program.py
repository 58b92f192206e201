"""What a caller submits: a program, its input and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TypeAlias, TypedDict, Unpack

from google.protobuf.duration_pb2 import Duration

from crucible.v1 import evaluation_pb2
from crucible_client.messages import UNFIT, build_part, unfit


class Priority(StrEnum):
    """What runs first among queued evaluations."""

    LOW = "LOW"
    NORMAL = "NORMAL"
    HIGH = "HIGH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use. None means the runtime's default. A runtime may lower the maxima."""

    wall_time: float | timedelta | None = None
    """Wall-clock time in seconds, 0.1 to 3600. Default 10."""
    cpu_time: float | timedelta | None = None
    """CPU time of the whole sandbox in seconds, 0.1 to 3600. Default 10."""
    memory_bytes: int | None = None
    """Memory in bytes, 16 MiB to 4 GiB. Default 256 MiB."""
    disk_bytes: int | None = None
    """Bytes it may write to files, 1 MiB to 1 GiB. Default 64 MiB."""
    output_bytes: int | None = None
    """Bytes kept of each output stream, 1 B to 64 MiB; a program that writes more is stopped. Default 1 MiB."""
    processes: int | None = None
    """Processes and threads at one time, 1 to 512. Default 64."""
    open_files: int | None = None
    """Open files per process, 16 to 1024. Default 256."""

    def to_proto(self) -> evaluation_pb2.Limits:
        """The message of the contract. Raises InvalidRequestError for a value that no field of it can hold."""
        place = "evaluation.limits"
        return build_part(
            place,
            evaluation_pb2.Limits,
            wall_time=None if self.wall_time is None else to_duration(self.wall_time, f"{place}.wall_time"),
            cpu_time=None if self.cpu_time is None else to_duration(self.cpu_time, f"{place}.cpu_time"),
            memory_bytes=self.memory_bytes,
            disk_bytes=self.disk_bytes,
            output_bytes=self.output_bytes,
            processes=self.processes,
            open_files=self.open_files,
        )


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run: either `source`, or `files`."""

    source: str | None = None
    """The program as one file, which the runtime names (`main.py`). Up to 256 KiB."""
    _: KW_ONLY
    runtime: str
    """Name of its runtime, as listed by `Client.runtimes`: `python`, `bash`."""
    files: Mapping[str, str | bytes] = field(default_factory=dict[str, "str | bytes"])
    """The program as several files: relative path to content. Up to 100 of 1 MiB each."""
    entrypoint: str | None = None
    """Which of `files` to run. Default: the name that the runtime gives to a single source."""
    args: Sequence[str] = ()
    """Command-line arguments. Up to 256, 64 KiB in total."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Environment variables, added to those of the runtime. Up to 128, 64 KiB in total."""
    stdin: str | bytes | None = None
    """Standard input. Up to 1 MiB. Default: empty."""
    limits: Limits = field(default_factory=Limits)
    """What it may use."""
    priority: Priority | None = None
    """Priority in the queue. Default NORMAL."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """Labels to filter by. Up to 32."""
    display_name: str | None = None
    """A name for humans. Up to 255 characters."""

    def to_proto(self) -> evaluation_pb2.Evaluation:
        """The message of the contract; its rules are the platform's to check.

        Raises InvalidRequestError for a value that no field of it can hold.
        """
        priority = self.priority.value if self.priority else "PRIORITY_UNSPECIFIED"
        return build_part(
            "evaluation",
            evaluation_pb2.Evaluation,
            runtime=self.runtime,
            source=self.source,
            files=[
                build_part(f"evaluation.files[{index}]", evaluation_pb2.File, path=path, text=content)
                if isinstance(content, str)
                else build_part(f"evaluation.files[{index}]", evaluation_pb2.File, path=path, data=content)
                for index, (path, content) in enumerate(self.files.items())
            ],
            entrypoint=self.entrypoint,
            args=self.args,
            env=self.env,
            stdin=self.stdin if isinstance(self.stdin, str) else None,
            stdin_bytes=self.stdin if isinstance(self.stdin, bytes) else None,
            limits=self.limits.to_proto(),
            priority=evaluation_pb2.Evaluation.Priority.Value(priority),
            labels=self.labels,
            display_name=self.display_name,
        )


class ProgramOptions(TypedDict, total=False):
    """The fields of `Program` as keyword arguments; they mean the same."""

    runtime: str
    files: Mapping[str, str | bytes]
    entrypoint: str | None
    args: Sequence[str]
    env: Mapping[str, str]
    stdin: str | bytes | None
    limits: Limits
    priority: Priority | None
    labels: Mapping[str, str]
    display_name: str | None


Submittable: TypeAlias = "str | Program | evaluation_pb2.Evaluation | None"
"""What can be submitted: a source (or None beside `files`) with options, a Program, or a message of the contract."""


def to_evaluation(program: Submittable, **options: Unpack[ProgramOptions]) -> evaluation_pb2.Evaluation:
    """The message to submit. Raises TypeError for options beside a whole program, or a missing runtime."""
    if isinstance(program, str) or program is None:
        if "runtime" not in options:
            raise TypeError("a program needs a runtime, such as runtime='python'")
        return Program(program, **options).to_proto()
    if options:
        raise TypeError(f"{', '.join(options)}: set these in the {type(program).__name__} itself")
    return program.to_proto() if isinstance(program, Program) else program


def to_duration(seconds: float | timedelta, field: str = "timeout") -> Duration:
    """Seconds as a protobuf duration. Raises InvalidRequestError, with the field's name."""
    duration = Duration()
    try:
        duration.FromTimedelta(seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds))
    except UNFIT as exc:
        raise unfit(field, exc) from exc
    return duration

"""Admission: may an evaluation be accepted, with which limits, as which program. Owns no id, no clock, no store."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from google.protobuf.message import Message

from crucible.internal.v1 import job_pb2
from crucible.v1 import evaluation_pb2, runtime_pb2
from crucible_contracts.limits import DISK_PAGE_BYTES, disk_taken

REQUEST_HASH_VERSION = "v1"
"""How `request_hash` is made. A change of it makes every older request id unusable for a retry."""

FIRST_PLATFORM_FIELD = 20
"""The contract numbers what callers set below this and what the platform sets from here on."""

_PLATFORM_FIELDS = [
    cast("Any", descriptor.name)  # typed as a union of literals where it is used
    for descriptor in evaluation_pb2.Evaluation.DESCRIPTOR.fields
    if descriptor.number >= FIRST_PLATFORM_FIELD
]


@dataclass(frozen=True)
class RefusedError(Exception):
    """An evaluation that is not accepted."""

    reason: str
    """A name of `crucible.v1.ErrorReason`."""
    path: str
    """The field at fault, relative to the evaluation: `limits.memory_bytes`."""
    message: str
    """For the caller; names the field and what would be accepted."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Admitted:
    """An evaluation as it is to be stored, and its program as an executor gets it."""

    evaluation: evaluation_pb2.Evaluation
    """What the caller set, with limits and priority as applied; what the platform sets is empty."""
    program: job_pb2.Program
    request_hash: str


def find_runtime(name: str, runtimes: Mapping[str, runtime_pb2.Runtime]) -> runtime_pb2.Runtime:
    """The runtime of that name. RefusedError: UNKNOWN_RUNTIME, with the nearest known name."""
    runtime = runtimes.get(name)
    if runtime is not None:
        return runtime
    known = ", ".join(sorted(runtimes)) or "none"
    nearest = difflib.get_close_matches(name, runtimes, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"the runtimes are: {known}"
    raise RefusedError(
        "UNKNOWN_RUNTIME",
        "runtime",
        f"there is no runtime {name!r}; {hint}",
        {"runtime": name, "known": known},
    )


def admit(submitted: evaluation_pb2.Evaluation, runtime: runtime_pb2.Runtime) -> Admitted:
    """Applies the runtime's defaults and maxima and lays out the program.

    `submitted` has passed the rules of the contract and is not changed. RefusedError: LIMIT_TOO_LARGE, INVALID_FIELD.
    """
    evaluation = evaluation_pb2.Evaluation()
    evaluation.CopyFrom(submitted)
    for name in _PLATFORM_FIELDS:
        evaluation.ClearField(name)
    request_hash = _hash(evaluation)
    program = _program(evaluation, runtime.entrypoint)
    evaluation.limits.CopyFrom(_limits(evaluation.limits, runtime))
    _refuse_files_without_room(program, evaluation.limits.disk_bytes)
    if evaluation.priority == evaluation_pb2.Evaluation.PRIORITY_UNSPECIFIED:
        evaluation.priority = evaluation_pb2.Evaluation.NORMAL
    return Admitted(evaluation, program, request_hash)


def _hash(sent: Message) -> str:
    """Identity of what the caller sent, before defaults: a default that changes breaks no retry."""
    return f"{REQUEST_HASH_VERSION}:{hashlib.sha256(sent.SerializeToString(deterministic=True)).hexdigest()}"


def _limits(asked: evaluation_pb2.Limits, runtime: runtime_pb2.Runtime) -> evaluation_pb2.Limits:
    """The runtime's defaults, with what is asked for in their place; every field is set."""
    applied = evaluation_pb2.Limits()
    applied.CopyFrom(runtime.default_limits)
    applied.MergeFrom(asked)
    # Durations are messages, which MergeFrom merges field by field: 500 ms over 10 s would become 10.5 s.
    if asked.HasField("wall_time"):
        applied.wall_time.CopyFrom(asked.wall_time)
    if asked.HasField("cpu_time"):
        applied.cpu_time.CopyFrom(asked.cpu_time)
    maxima = _figures(runtime.maximum_limits)
    for name, figure in _figures(applied).items():
        if figure > maxima[name]:
            maximum = f"{maxima[name]:g}s" if name.endswith("_time") else str(maxima[name])
            raise RefusedError(
                "LIMIT_TOO_LARGE",
                f"limits.{name}",
                f"must be at most {maximum} for the runtime {runtime.name!r}",
                {"limit": name, "maximum": maximum},
            )
    return applied


def _figures(limits: evaluation_pb2.Limits) -> dict[str, float]:
    return {
        "wall_time": limits.wall_time.ToNanoseconds() / 1e9,
        "cpu_time": limits.cpu_time.ToNanoseconds() / 1e9,
        "memory_bytes": limits.memory_bytes,
        "disk_bytes": limits.disk_bytes,
        "output_bytes": limits.output_bytes,
        "processes": limits.processes,
        "open_files": limits.open_files,
    }


def _program(evaluation: evaluation_pb2.Evaluation, default_entrypoint: str) -> job_pb2.Program:
    program = job_pb2.Program(args=evaluation.args, env=evaluation.env)
    program.stdin = evaluation.stdin.encode() if evaluation.HasField("stdin") else evaluation.stdin_bytes
    if evaluation.HasField("source"):
        program.entrypoint = default_entrypoint
        program.files.add(path=default_entrypoint, data=evaluation.source.encode())
        return program
    for file in evaluation.files:
        program.files.add(path=file.path, data=file.text.encode() if file.HasField("text") else file.data)
    paths = [file.path for file in evaluation.files]
    _refuse_files_that_are_folders(paths)
    program.entrypoint = evaluation.entrypoint or default_entrypoint
    if program.entrypoint not in paths:
        raise RefusedError(
            "INVALID_FIELD",
            "entrypoint",
            f"none of the files is {program.entrypoint!r}, which is to be run; add it, or choose another one here",
        )
    return program


def _refuse_files_without_room(program: job_pb2.Program, disk_bytes: int) -> None:
    needed = disk_taken(len(file.data) for file in program.files)
    if needed > disk_bytes:
        raise RefusedError(
            "INVALID_FIELD",
            "limits.disk_bytes",
            f"the files take {needed} bytes of disk, each a multiple of {DISK_PAGE_BYTES}, and the limit is "
            f"{disk_bytes}; raise it, or send less",
        )


def _refuse_files_that_are_folders(paths: Iterable[str]) -> None:
    known = {path: number for number, path in enumerate(paths)}
    for path, number in known.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) in known:
                raise RefusedError(
                    "INVALID_FIELD", f"files[{number}].path", f"{folder!r} is a file, so it cannot hold {path!r}"
                )

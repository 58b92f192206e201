"""Reads what the operator says of runtimes: `<folder>/<name>/runtime.toml`. How they are built is the executor's."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crucible.v1 import evaluation_pb2, runtime_pb2


class RuntimeFileError(Exception):
    """A file cannot be read; the message names it and what is wrong."""


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wall_time: float = Field(gt=0)
    cpu_time: float = Field(gt=0)
    memory_bytes: int = Field(gt=0)
    disk_bytes: int = Field(gt=0)
    output_bytes: int = Field(gt=0)
    processes: int = Field(gt=0)
    open_files: int = Field(gt=0)

    def proto(self) -> evaluation_pb2.Limits:
        limits = evaluation_pb2.Limits(
            memory_bytes=self.memory_bytes,
            disk_bytes=self.disk_bytes,
            output_bytes=self.output_bytes,
            processes=self.processes,
            open_files=self.open_files,
        )
        limits.wall_time.FromNanoseconds(int(self.wall_time * 1e9))
        limits.cpu_time.FromNanoseconds(int(self.cpu_time * 1e9))
        return limits


class _BothLimits(BaseModel):
    default: _Limits
    maximum: _Limits


class _RuntimeFile(BaseModel):
    """The keys the store reads; the others are the image's."""

    name: str = Field(pattern=r"^[a-z][a-z0-9.-]{0,62}$")
    display_name: str = Field(min_length=1)
    default_entrypoint: str = Field(min_length=1)
    limits: _BothLimits


def read_runtimes(folder: Path) -> list[runtime_pb2.Runtime]:
    """Every runtime of a folder, by name. Raises RuntimeFileError."""
    paths = sorted(folder.glob("*/runtime.toml"))
    if not paths:
        msg = f"{folder} holds no <name>/runtime.toml"
        raise RuntimeFileError(msg)
    found: dict[str, runtime_pb2.Runtime] = {}
    for path in paths:
        runtime = _read(path)
        if runtime.name in found:
            msg = f"{path}: another file names the runtime {runtime.name} as well"
            raise RuntimeFileError(msg)
        found[runtime.name] = runtime
    return [found[name] for name in sorted(found)]


def _read(path: Path) -> runtime_pb2.Runtime:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text())
        parsed = _RuntimeFile.model_validate(content)
    except (OSError, ValueError) as exc:
        detail = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()) if isinstance(
            exc, ValidationError
        ) else str(exc)  # fmt: skip
        msg = f"{path}: {detail}"
        raise RuntimeFileError(msg) from exc
    return runtime_pb2.Runtime(
        name=parsed.name,
        display_name=parsed.display_name,
        entrypoint=parsed.default_entrypoint,
        default_limits=parsed.limits.default.proto(),
        maximum_limits=parsed.limits.maximum.proto(),
    )

"""Runtimes as data: what `deploy/runtimes/<name>/runtime.toml` may say, read strictly."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from crucible_executor.sandbox.command_line import command_line
from crucible_executor.sandbox.port import Program, ProgramFile, SandboxLimits

StarterKind = Literal["python", "sh"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LimitValues(_Strict):
    """One full set of limits; the units are those of `SandboxLimits`."""

    wall_time: float = Field(gt=0)
    cpu_time: float = Field(gt=0)
    memory_bytes: int = Field(gt=0)
    disk_bytes: int = Field(gt=0)
    output_bytes: int = Field(gt=0)
    processes: int = Field(gt=0)
    open_files: int = Field(gt=0)

    def as_limits(self) -> SandboxLimits:
        """The same as the port's dataclass."""
        return SandboxLimits(
            wall_time=self.wall_time,
            cpu_time=self.cpu_time,
            memory_bytes=self.memory_bytes,
            disk_bytes=self.disk_bytes,
            output_bytes=self.output_bytes,
            processes=self.processes,
            open_files=self.open_files,
        )


class RuntimeLimits(_Strict):
    """What a program gets when it says nothing, and the most it may ask for."""

    default: LimitValues
    maximum: LimitValues


class SelfTest(_Strict):
    """A program with its exact output: a runtime is offered only after it ran so in the sandbox."""

    source: str
    args: tuple[str, ...] = Field(default=(), strict=False)
    env: dict[str, str] = Field(default_factory=dict)
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""

    def expected(self) -> tuple[bytes, bytes]:
        """Standard output and error; the line break that opens a multi-line text is no part of it."""
        return self.stdout.lstrip("\n").encode(), self.stderr.lstrip("\n").encode()


class RuntimeDefinition(_Strict):
    """One runtime: what is in its image and how a program starts in it."""

    name: str = Field(pattern=r"^[a-z][a-z0-9.-]{0,62}$")
    display_name: str
    starter: StarterKind
    packages: tuple[str, ...] = Field(strict=False)
    command: tuple[str, ...] = Field(strict=False, min_length=1)
    version_command: tuple[str, ...] = Field(strict=False, min_length=1)
    default_entrypoint: str
    env: dict[str, str] = Field(default_factory=dict)
    limits: RuntimeLimits
    self_test: SelfTest

    def argv(self, entrypoint: str, args: tuple[str, ...]) -> tuple[str, ...]:
        """The command line of a program."""
        return command_line(self.command, entrypoint, args)

    def self_test_program(self) -> Program:
        """The self-test as a program."""
        return Program(
            runtime=self.name,
            files=(ProgramFile(self.default_entrypoint, self.self_test.source.encode()),),
            args=self.self_test.args,
            env=self.self_test.env,
            stdin=self.self_test.stdin.encode(),
        )


class RuntimeDataError(Exception):
    """A runtime's data cannot be read; the message names the file and what is wrong in it."""


def load_definitions(folder: Path) -> Mapping[str, RuntimeDefinition]:
    """Read every `<folder>/<name>/runtime.toml`; raises RuntimeDataError."""
    definitions: dict[str, RuntimeDefinition] = {}
    for path in sorted(folder.glob("*/runtime.toml")):
        try:
            definition = RuntimeDefinition.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, pydantic.ValidationError) as error:
            raise RuntimeDataError(f"{path}: {error}") from error
        if definition.name != path.parent.name:
            raise RuntimeDataError(f"{path}: its name is {definition.name!r}, its folder {path.parent.name!r}")
        definitions[definition.name] = definition
    if not definitions:
        raise RuntimeDataError(f"{folder}: no runtime.toml in it")
    return definitions

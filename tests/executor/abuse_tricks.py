"""The tricks under `abuse/`, read: one program each, with what is expected of it in its first lines.

A line that begins with `#: ` is TOML; together they are a `Trick`. The folder is the trick's class, the suffix tells
its runtime.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from crucible_executor.sandbox.port import Outcome, Program, ProgramFile, SandboxLimits, Verdict

from .conftest import LIMITS, SLOWNESS

FOLDER = Path(__file__).with_name("abuse")
SHARED = FOLDER / "syscalls.py"
"""Lies beside every Python program: system calls by number, each with its error's name printed."""
_RUNTIMES = {".py": ("python", "main.py"), ".sh": ("bash", "main.sh")}
_MARK = "#: "


class Trick(BaseModel):
    """What a program's header may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tries: str
    """For people."""
    outcomes: Sequence[str] = ("SUCCEEDED",)
    """Any of these is right."""
    exit_code: int | None = None
    signal: str | None = None
    stdout: str | None = None
    """All of it; a pattern for `re.fullmatch`, with DOTALL."""
    stderr: str = ""
    """The same; by default nothing may come."""
    stdin: str = ""
    env: Mapping[str, str] = {}
    limits: Mapping[str, int | float] = {}
    """Instead of the common ones; wall_time is multiplied by the machine's slowness."""

    # Not in the header.
    name: str
    runtime: str
    file: str
    source: str

    @property
    def chosen(self) -> SandboxLimits:
        """Its limits."""
        changed: dict[str, Any] = dict(self.limits)
        if "wall_time" in changed:
            changed["wall_time"] *= SLOWNESS
        return replace(LIMITS, **changed)

    def program(self, env: Mapping[str, str]) -> Program:
        """As it is handed in."""
        files = [ProgramFile(self.file, self.source.encode())]
        if self.runtime == "python":
            files.append(ProgramFile(SHARED.name, SHARED.read_bytes()))
        return Program(self.runtime, files, env={**self.env, **env}, stdin=self.stdin.encode())

    def complaints(self, verdict: Verdict, stdout: bytes, stderr: bytes) -> list[str]:
        """What is not as expected."""
        found: list[str] = []
        if verdict.outcome not in self.outcomes:
            found.append(f"outcome {verdict.outcome}, not {' or '.join(self.outcomes)}")
        if verdict.outcome in (Outcome.NONZERO_EXIT, Outcome.SIGNALED) and (
            (self.exit_code is not None and verdict.exit_code != self.exit_code)
            or (self.signal is not None and verdict.signal != self.signal)
        ):
            found.append(f"ended by {verdict.exit_code} or {verdict.signal}, not {self.exit_code} or {self.signal}")
        for name, pattern, written in (("stdout", self.stdout, stdout), ("stderr", self.stderr, stderr)):
            text = written.decode(errors="backslashreplace")
            if pattern is not None and not re.fullmatch(pattern, text, re.DOTALL):
                found.append(f"{name} is {text[:1000]!r}, not {pattern!r}")
        return found


def load_tricks() -> Mapping[str, Sequence[Trick]]:
    """By class, those that may take long first, so that they wait for each other."""
    classes: dict[str, list[Trick]] = {}
    for path in sorted(FOLDER.glob("*/*.*")):
        if path.suffix in _RUNTIMES:
            classes.setdefault(path.parent.name, []).append(_load(path))
    return {
        name: sorted(tricks, key=lambda trick: -trick.limits.get("wall_time", 0)) for name, tricks in classes.items()
    }


def _load(path: Path) -> Trick:
    source = path.read_text(encoding="utf-8")
    header = "\n".join(line.removeprefix(_MARK) for line in source.splitlines() if line.startswith(_MARK))
    runtime, file = _RUNTIMES[path.suffix]
    try:
        said = tomllib.loads(header)
        return Trick(**said, name=f"{path.parent.name}/{path.name}", runtime=runtime, file=file, source=source)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

"""A program as the bytes that its starter reads: the one way in which anything of a caller's enters a sandbox.

The formats are those that `deploy/runtimes/starters` describe.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crucible_contracts.limits import disk_taken
from crucible_executor.sandbox.gvisor.spec import CHANNEL_FD, WORK_DIR, environment, starter_command
from crucible_executor.sandbox.port import InvalidProgramError, Program, ProgramFile, SandboxLimits
from crucible_executor.sandbox.runtimes import RuntimeDefinition

_NAME_BYTES = 255
_READ_AT_START = re.compile(r"PYTHON|LD_|LC_|LANG|TZ|HOME$|GLIBC_|MALLOC_|LOC")
"""Environment variables that Python, its C library or the dynamic loader read before the program is there."""
_USER_SITE = ".local/"
"""Where `site` looks, before the program is there, for packages of the user whose home is the working folder."""
_SAFE_WORD = re.compile(r"[A-Za-z0-9_@%+:,./-]+")


@dataclass(frozen=True, slots=True)
class Launch:
    """A checked program, ready to be put into bytes."""

    argv: Sequence[str]
    env: Mapping[str, str]
    files: Sequence[ProgramFile]
    processes: int
    open_files: int
    in_place: bool
    """The interpreter that waits may run it; else a new one must be started."""


def prepare(definition: RuntimeDefinition, program: Program, limits: SandboxLimits) -> Launch:
    """Check a program against the port's rules; raises InvalidProgramError naming the field."""
    if program.runtime != definition.name:
        raise InvalidProgramError(f"runtime: this sandbox is of {definition.name!r}, not {program.runtime!r}")
    _check_limits(limits, definition.limits.maximum.as_limits())
    entrypoint = program.entrypoint or definition.default_entrypoint
    _check_files(program.files, entrypoint, limits.disk_bytes)
    for place, word in (("args", arg) for arg in program.args):
        _check_word(place, word)
    for name, value in program.env.items():
        _check_word("env", name)
        _check_word("env", value)
        if not name or "=" in name:
            raise InvalidProgramError(f"env: {name!r} is no name")
    argv = definition.argv(entrypoint, tuple(program.args))
    booted = starter_command(definition)
    return Launch(
        argv=argv,
        env={**environment(definition), **program.env},
        files=program.files,
        processes=limits.processes,
        open_files=limits.open_files,
        in_place=list(argv[: len(booted)]) == booted
        and not any(map(_READ_AT_START.match, program.env))
        and not any(file.path.startswith(_USER_SITE) for file in program.files),
    )


def _check_limits(limits: SandboxLimits, maximum: SandboxLimits) -> None:
    for name in ("wall_time", "cpu_time", "memory_bytes", "disk_bytes", "output_bytes", "processes", "open_files"):
        value, most = getattr(limits, name), getattr(maximum, name)
        if not 0 < value <= most:
            raise InvalidProgramError(f"limits.{name}: {value} is not above 0 and at most {most}")


def _check_files(files: Sequence[ProgramFile], entrypoint: str, disk_bytes: int) -> None:
    seen: set[str] = set()
    folders: set[str] = set()
    for file in files:
        _check_word("files", file.path)
        parts = file.path.split("/")
        if any(part in ("", ".", "..") or len(part.encode()) > _NAME_BYTES for part in parts):
            raise InvalidProgramError(f"files: {file.path!r} is no relative path")
        if file.path in seen:
            raise InvalidProgramError(f"files: {file.path!r} occurs twice")
        seen.add(file.path)
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if clash := seen & folders:
        raise InvalidProgramError(f"files: {min(clash)!r} is both a file and a folder")
    if entrypoint not in seen:
        raise InvalidProgramError(f"entrypoint: {entrypoint!r} is none of the files")
    needed = disk_taken(len(file.data) for file in files)
    if needed > disk_bytes:
        raise InvalidProgramError(f"files: they need {needed} bytes of disk, the limit is {disk_bytes}")


def _check_word(place: str, word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise InvalidProgramError(f"{place}: not encodable as UTF-8") from error
    if "\0" in word:
        raise InvalidProgramError(f"{place}: holds NUL")


def for_python(launch: Launch) -> bytes:
    """The length-framed bundle that `starters/python.py` reads."""
    out = bytearray()

    def put(data: bytes) -> None:
        out.extend(len(data).to_bytes(8, "big"))
        out.extend(data)

    def put_list(members: Sequence[bytes]) -> None:
        put(str(len(members)).encode())
        for member in members:
            put(member)

    put(b"here" if launch.in_place else b"exec")
    put(str(launch.processes).encode())
    put(str(launch.open_files).encode())
    put_list([word.encode() for word in launch.argv])
    put_list([f"{name}={value}".encode() for name, value in launch.env.items()])
    put_list([part for file in launch.files for part in (file.path.encode(), file.data)])
    return bytes(out)


def for_sh(launch: Launch) -> bytes:
    """The tar archive that `starters/sh.sh` unpacks: the program's files, and the script that becomes the program."""
    words = [f"{name}={value}" for name, value in launch.env.items()]
    script = "\n".join(
        (
            "rm -f /tmp/launch",
            f"cd {WORK_DIR}",
            f"ulimit -n {launch.open_files}",
            # Debian's sh (dash) spells the limit of processes -p.
            f"ulimit -p {launch.processes}",
            f"printf G >&{CHANNEL_FD}",
            f"exec {CHANNEL_FD}>&-",
            f"exec env -i {' '.join(map(quote, words))} {' '.join(map(quote, launch.argv))}",
            "",
        )
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive:
        _add(archive, "tmp/launch", script.encode())
        for file in launch.files:
            _add(archive, f"{WORK_DIR[1:]}/{file.path}", file.data)
    return buffer.getvalue()


def quote(word: str) -> str:
    """A word for a POSIX shell: single quotes around it, whatever is in it."""
    return word if _SAFE_WORD.fullmatch(word) else "'" + word.replace("'", "'\\''") + "'"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(data))

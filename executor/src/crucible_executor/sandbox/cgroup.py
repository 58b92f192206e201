"""The port to the kernel's control groups: a tree of one executor's, and one group per sandbox in it.

Version 1 and version 2 stand behind the same small protocols; `cgroup_tree` picks what this machine has. A tree
lies at `<mount>/<parent>/executor-<id>/`, so that a later executor finds what a dead one left. All of this writes or
reads a kernel file: microseconds, apart from joining (version 1 stalls up to 10 ms for each hierarchy).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from crucible_executor.sandbox.contention import Contention

SUPERVISORS = "supervisors"
"""The group beside the sandboxes' for the `runsc run` processes: without a limit, so none is killed for memory."""

READ_BYTES = 64 * 1024
"""More than any file of statistics holds."""

EMPTY_WAIT = 5.0
"""Seconds that the killed processes of an executor's groups get to be gone."""

_HELD = 64
"""Processes that are held by a descriptor at one time."""


class CgroupError(Exception):
    """A control group cannot be made, written, emptied or removed; the message names the path."""


@dataclass(frozen=True, slots=True)
class OomFacts:
    """What the kernel counted about a group's memory limit."""

    kills: int
    """Processes killed, for whatever reason there was no memory."""
    limit_reached: bool
    """The group's own limit stood in the way; kills without it were the host's lack of memory."""


class Cgroup(Protocol):
    """The group of one sandbox."""

    @property
    def join_files(self) -> Sequence[Path]:
        """Files to write `0` into for the writing process to become a member."""
        ...

    def limit_memory(self, memory_bytes: int) -> None:
        """Bound memory, with no swap beside it where the kernel can tell."""
        ...

    def limit_processes(self, count: int) -> None:
        """Bound host processes and threads: a backstop, since reaching it makes the sentry panic."""
        ...

    def weigh(self, weight: int) -> None:
        """The group's part of the CPU beside others that want it: 1 to 10000, where 100 is everybody's."""
        ...

    def cpu_seconds(self) -> float:
        """CPU time used since the group was made."""
        ...

    def contention(self) -> Contention:
        """In which mode it used the CPU since it was made, and what stood in its way; raises CgroupError."""
        ...

    def memory_bytes(self) -> int:
        """Memory in use now, without page cache."""
        ...

    def reset_peak(self) -> None:
        """Begin a new peak, where the kernel can."""
        ...

    def peak_memory_bytes(self) -> int:
        """A lower bound of the most memory since `reset_peak`, without page cache; 0 where the kernel cannot tell."""
        ...

    def oom(self) -> OomFacts:
        """Counted since the group was made; the limit, since `reset_peak` at least."""
        ...

    def pids(self) -> set[int]:
        """Members now."""
        ...

    def open_freezer(self) -> int:
        """A descriptor to which `frozen` and `thawed` can be written; the caller closes it. Raises CgroupError."""
        ...

    @property
    def frozen(self) -> bytes:
        """What lets no member run until `thaw`: without a signal, which the sentry would hand on to its program."""
        ...

    @property
    def thawed(self) -> bytes:
        """The same as `thaw`, where it is written to that descriptor."""
        ...

    def thaw(self) -> None:
        """Let them go on."""
        ...

    def release(self, pid: int) -> None:
        """Move one process out of the memory limit, to the supervisors' group; a dead one is no error."""
        ...

    def kill(self) -> None:
        """SIGKILL to every member, frozen or not; returns at once."""
        ...

    def remove(self) -> None:
        """Remove the emptied group; one that is gone is no error. Raises CgroupError while it has members."""
        ...


class CgroupTree(Protocol):
    """The groups of one executor."""

    @property
    def version(self) -> int:
        """1 or 2."""
        ...

    def prepare(self) -> None:
        """Make the tree; raises CgroupError naming what is not writable or not delegated."""
        ...

    def create(self, name: str, *, memory_bytes: int, processes: int) -> Cgroup:
        """Make a sandbox's group with its limits in force."""
        ...

    def group(self, name: str) -> Cgroup:
        """A sandbox's group by its name, there or not; its figures are for everybody to read."""
        ...

    def existing(self) -> Sequence[Cgroup]:
        """The groups found under the tree, the supervisors' included: what a dead executor left."""
        ...

    def remove(self) -> None:
        """Remove the tree, once every group in it is gone."""
        ...


def write(path: Path, value: str) -> None:
    """Write a kernel file in one call; raises CgroupError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CgroupError(f"{path}: cannot write {value!r}: {error.strerror}") from error


def open_for_writing(path: Path) -> int:
    """A descriptor of a kernel file; raises CgroupError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CgroupError(f"{path}: cannot be opened: {error.strerror}") from error


def read(path: Path) -> str:
    """Read a kernel file; raises CgroupError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, READ_BYTES).decode("ascii")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CgroupError(f"{path}: cannot be read: {error.strerror}") from error


def read_table(path: Path) -> dict[str, int]:
    """Read a kernel file of `name number` lines."""
    return {name: int(number) for name, number in (line.split() for line in read(path).splitlines())}


def read_throttled(folder: Path, name: str, unit: float) -> float | None:
    """Seconds that a quota, the group's own or one above it, kept a group from the CPU; None where nothing tells.

    `cpu.stat.local` (Linux 6.5) knows of quotas above the group as well.
    """
    for file in ("cpu.stat.local", "cpu.stat"):
        if (folder / file).exists() and (value := read_table(folder / file).get(name)) is not None:
            return value / unit
    return None


def read_pids(folder: Path) -> set[int]:
    """Members of a group; one that is gone has none."""
    try:
        return {int(line) for line in (folder / "cgroup.procs").read_text(encoding="ascii").split()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed between opening and reading
            return set()
        raise CgroupError(f"{folder}: members cannot be read: {error.strerror}") from error


def kill_members(members: Callable[[], set[int]]) -> None:
    """SIGKILL to each of a group's members; returns at once. Raises CgroupError, OSError.

    Each is held by a descriptor before the members are read a second time: a number that became a stranger's in
    between is not among them. Members of another PID namespace have no number here, and 0 would mean ourselves.
    """
    found = sorted(members() - {0})
    for first in range(0, len(found), _HELD):
        with contextlib.ExitStack() as stack:
            held: dict[int, int] = {}
            for pid in found[first : first + _HELD]:
                with contextlib.suppress(ProcessLookupError):
                    held[pid] = os.pidfd_open(pid)
                    stack.callback(os.close, held[pid])
            for pid in members() & held.keys():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(held[pid], signal.SIGKILL)


def make(folder: Path) -> None:
    """Make a group, with its parents; one that exists is no error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CgroupError(f"{folder}: cannot be made: {error.strerror}") from error


def remove(folder: Path) -> None:
    """Remove one empty group; one that is gone is no error."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CgroupError(f"{folder}: cannot be removed: {error.strerror}") from error


def remove_if_empty(folder: Path) -> None:
    """Remove a group that other executors may share; one that is in use stays."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def move(pid: int, folder: Path) -> None:
    """Make a process a member of a group; a dead one is no error."""
    try:
        (folder / "cgroup.procs").write_text(f"{pid}", encoding="ascii")
    except ProcessLookupError:
        return
    except OSError as error:
        raise CgroupError(f"{folder}: cannot move a process there: {error.strerror}") from error


def empty(groups: Sequence[Cgroup], *, seconds: float = EMPTY_WAIT) -> None:
    """Kill the groups' members until there are none; blocks, for sweeps.

    Raises CgroupError when some do not go, OSError.
    """
    deadline = time.monotonic() + seconds
    for group in groups:
        group.kill()
    while left := sorted({pid for group in groups for pid in group.pids()}):
        if time.monotonic() > deadline:
            raise CgroupError(f"processes {left} of control groups do not end")
        time.sleep(0.01)
        for group in groups:
            group.kill()

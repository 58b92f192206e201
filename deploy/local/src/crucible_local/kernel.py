"""Processes as Linux knows them: who is who beyond a reused pid, whose descendants live, and who adopts orphans."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process for good: pids are used again, a pid with its start time in one boot of the machine is not."""

    pid: int
    start_ticks: int
    boot_id: str

    @staticmethod
    def of(pid: int) -> "ProcessIdentity | None":
        """The identity of the process that has that pid now; None when there is none, or only a zombie."""
        stat = _stat(pid)
        if stat is None or stat.state == "Z":
            return None
        return ProcessIdentity(pid=pid, start_ticks=stat.start_ticks, boot_id=BOOT_ID.read_text().strip())

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return ProcessIdentity.of(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, and never to a process that came after it."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive:  # the descriptor holds the process that was just compared
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


def user_id(pid: int) -> int | None:
    """The user that a process runs as; None when there is none. Its folder in /proc may be root's all the same."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return _Stat(state=fields[0], parent=int(fields[1]), start_ticks=int(fields[19]))


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent dies: none can get out of sight."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(pid: int) -> set[int]:
    """All living and dead children of a process, theirs, and so on."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            parents[int(entry.name)] = stat.parent
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def dead_children() -> set[int]:
    """Children of this process, born or adopted, that have ended and were not collected."""
    own = os.getpid()
    stats = {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return {pid for pid, stat in stats.items() if stat is not None and stat.parent == own and stat.state == "Z"}


def reap(pids: Iterable[int]) -> None:
    """Collects those dead children."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def end_descendants(timeout: float = 10) -> set[int]:
    """Kills every descendant of this process and reaps it; gives those that are still there at the end of the time."""
    deadline = time.monotonic() + timeout
    while left := descendants(os.getpid()):
        for pid in left:
            if (identity := ProcessIdentity.of(pid)) is not None:
                identity.send(signal.SIGKILL)
        reap(dead_children())
        if time.monotonic() > deadline:
            return left
        time.sleep(0.02)
    return set()


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether the condition came true within the time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True

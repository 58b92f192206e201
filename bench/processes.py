"""What the processes of a stack cost: resident memory, CPU time, and the sandboxes that wait in its pool."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from crucible_testkit.freezing import frozen_group
from crucible_testkit.stack import Stack

FULL_SECONDS = 60.0
ENDED_SECONDS = 0.05
"""A sandbox whose program has ended is frozen too, until it is removed a moment later."""
SERVICES = ("gateway", "scheduler", "store", "executor")


def pids(stack: Stack) -> Mapping[str, int]:
    """The processes of a stack, the launcher of its sandboxes among them."""
    found = {each.name: each.identity.pid for each in stack.state.processes if each.identity is not None}
    launchers = list(_children(found["executor"]))
    return {**found, **({"launcher": launchers[0]} if launchers else {})}


def resident_bytes(pid: int) -> int:
    """Resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("VmRSS:"))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far; that of a server of PostgreSQL or of a launcher is without what it started."""
    return sum(_thread_seconds(thread) for thread in _entries(Path(f"/proc/{pid}/task")))


def cpu_seconds_below(pid: int) -> float:
    """CPU time of a process and all that it started and that lives."""
    return cpu_seconds(pid) + sum(map(cpu_seconds_below, list(_children(pid))))


def waiting_sandboxes(executor: int) -> int:
    """Sandboxes booted ahead: they are frozen."""
    below = [pid for child in _children(executor) for pid in _descendants(child)]
    return len({group for pid in below if (group := frozen_group(pid))})


def until_full(executor: int, size: int) -> None:
    """Wait until so many sandboxes wait. Raises TimeoutError."""
    begun = full_since = time.monotonic()
    while (now := time.monotonic()) < full_since + ENDED_SECONDS:
        waiting = waiting_sandboxes(executor)
        if waiting < size:
            full_since = now
        if now > begun + FULL_SECONDS:
            raise TimeoutError(f"the pool has {waiting} of {size} sandboxes")
        time.sleep(0.01)


def _thread_seconds(thread: Path) -> float:
    try:
        return int((thread / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    except OSError:
        return 0.0


def _children(pid: int) -> Iterator[int]:
    for thread in _entries(Path(f"/proc/{pid}/task")):
        try:
            yield from map(int, (thread / "children").read_text(encoding="ascii").split())
        except OSError:
            continue


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []

"""What an executor holds of its machine at one moment, and whether that grew over many runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_CGROUP_MOUNT: Final = Path("/sys/fs/cgroup")
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Ground:
    """Where an executor leaves what it leaves: its state folder, and its control groups below every mount of them."""

    state_root: Path
    cgroup_parent: str


@dataclass(frozen=True, slots=True)
class Footprint:
    """Counts at one moment, with as many sandboxes waiting as at any other.

    The executor's processes are this one and those it started, without the members of its control groups: sandboxes
    and their supervisors are what comes and goes.
    """

    runs: int
    """Done before it."""
    memory_kib: int
    """Resident memory of this process."""
    launcher_kib: int
    """That of the processes it started, which hold the privileges."""
    objects: int
    """Python objects of this process that the garbage collector knows."""
    descriptors: int
    threads: int
    processes: int
    zombies: int
    sandbox_processes: int
    """Members of the control groups."""
    cgroups: int
    mounts: int
    files: int
    """Files and folders below the state folder."""

    @classmethod
    def now(cls, ground: Ground, runs: int) -> Footprint:
        """Look; takes some 30 ms."""
        gc.collect()
        groups = list(_groups(ground.cgroup_parent))
        members = {pid for group in groups for pid in _members(group)}
        tree = _descendants(os.getpid())
        zombies = sum(_state(pid) == "Z" for pid in tree)
        started = [pid for pid in tree if pid not in members and _state(pid) not in ("", "Z")]
        own = [os.getpid(), *started]
        return cls(
            runs=runs,
            memory_kib=_resident(os.getpid()),
            launcher_kib=sum(map(_resident, started)),
            objects=len(gc.get_objects()),
            descriptors=sum(_count(Path(f"/proc/{pid}/fd")) for pid in own),
            threads=sum(_count(Path(f"/proc/{pid}/task")) for pid in own),
            processes=len(own),
            zombies=zombies,
            sandbox_processes=len(members),
            cgroups=len(groups),
            mounts=len(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()),
            files=sum(1 for _ in ground.state_root.rglob("*")),
        )


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a figure may grow by: `at_once`, whatever the number of runs, and `per_thousand` of them."""

    at_once: float = 0
    per_thousand: float = 0

    def over(self, runs: int) -> float:
        """The most that so many runs may add."""
        return self.at_once + self.per_thousand * runs / 1000


ALLOWANCES: Final[Mapping[str, Allowance]] = {
    # An allocator keeps and splits what it once had: that ends, a leak does not.
    "memory_kib": Allowance(at_once=4 * _KIB, per_thousand=512),
    "launcher_kib": Allowance(at_once=4 * _KIB, per_thousand=512),
    "objects": Allowance(at_once=1500, per_thousand=100),
    # Sandboxes that boot at the moment of the look have more than one that waits.
    "sandbox_processes": Allowance(at_once=8),
    **{name: Allowance() for name in ("descriptors", "threads", "processes", "zombies", "cgroups", "mounts", "files")},
}


@dataclass(frozen=True, slots=True)
class Growth:
    """One figure between two moments."""

    name: str
    before: int
    after: int
    runs: int
    """Between them."""

    @property
    def per_thousand(self) -> float:
        """Added by a thousand runs."""
        return (self.after - self.before) * 1000 / self.runs

    @property
    def allowed(self) -> bool:
        """Whether it stays within `ALLOWANCES`."""
        return self.after - self.before <= ALLOWANCES[self.name].over(self.runs)


def growth(seen: Sequence[Footprint]) -> list[Growth]:
    """Each figure's growth over the second part of a soak: caches and pools have filled in its first third.

    The lowest of the looks on either side counts, so that one look at a bad moment hides nothing and accuses nobody.
    """
    last = seen[-1].runs
    settled = [each for each in seen if each.runs >= last / 3]
    half = max(1, len(settled) // 2)
    early, late = settled[:half], settled[-half:]
    runs = late[0].runs - early[0].runs
    if runs <= 0:
        raise ValueError("growth needs looks at two moments")
    names = (each.name for each in fields(Footprint) if each.name != "runs")
    return [
        Growth(name, min(getattr(one, name) for one in early), min(getattr(one, name) for one in late), runs)
        for name in names
    ]


def _groups(parent: str) -> Iterator[Path]:
    """Every control group of the executors below `parent`, in each hierarchy."""
    mounts = [_CGROUP_MOUNT, *(each for each in _CGROUP_MOUNT.iterdir() if each.is_dir())]
    for mount in mounts:
        yield from (each for each in (mount / parent).rglob("*") if each.is_dir())


def _members(group: Path) -> set[int]:
    try:
        return {int(line) for line in (group / "cgroup.procs").read_text(encoding="ascii").split()}
    except OSError:
        return set()


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    ahead = [root]
    while ahead:
        below = children.get(ahead.pop(), [])
        found.update(below)
        ahead += below
    return found


def _state(pid: int) -> str:
    """`R`, `S`, `Z` and so on; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _resident(pid: int) -> int:
    """KiB."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE // _KIB
    except OSError:
        return 0


def _count(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0

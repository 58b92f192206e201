"""Control groups, version 1: one hierarchy each for memory, pids, CPU shares, CPU accounting and freezing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from crucible_executor.sandbox import cgroup
from crucible_executor.sandbox.cgroup import SUPERVISORS, Cgroup, CgroupError, OomFacts
from crucible_executor.sandbox.contention import Contention, machine_pressure

CONTROLLERS: Final = ("memory", "pids", "cpu", "cpuacct", "freezer")
NORMAL_SHARES: Final = 1024
"""What a group has unless told: the other version's weight of 100."""
CHARGE_BYTES: Final = 4 * 1024 * 1024
"""The kernel asks for memory in batches and huge pages of less than this: so near below its limit a group stops."""


def find_hierarchies() -> Mapping[str, Path]:
    """Where each controller that we use is mounted; raises CgroupError when one is missing."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mounted, _, kind = line.partition(" - ")
        fields = kind.split()
        if fields[0] == "cgroup":
            for option in fields[2].split(","):
                if option in CONTROLLERS:
                    found.setdefault(option, Path(mounted.split()[4]))
    missing = [name for name in CONTROLLERS if name not in found]
    if missing:
        raise CgroupError(f"no control groups here: neither version 2 nor version 1's {', '.join(missing)} is mounted")
    return found


class CgroupV1:
    """One sandbox's group: a folder of the same name in each hierarchy."""

    def __init__(self, memory: Path, pids: Path, cpu: Path, cpuacct: Path, freezer: Path, supervisors: Path) -> None:
        self._memory = memory
        self._pids = pids
        self._cpu = cpu
        self._cpuacct = cpuacct
        self._freezer = freezer
        self._supervisors = supervisors

    @property
    def join_files(self) -> Sequence[Path]:
        """See `Cgroup`."""
        return [folder / "cgroup.procs" for folder in self._folders]

    @property
    def _folders(self) -> list[Path]:
        return list(dict.fromkeys((self._memory, self._pids, self._cpu, self._cpuacct, self._freezer)))

    def limit_memory(self, memory_bytes: int) -> None:
        """See `Cgroup`; memory and swap together get the same bound, in the order that the kernel demands."""
        limit = self._memory / "memory.limit_in_bytes"
        both = self._memory / "memory.memsw.limit_in_bytes"
        value = str(memory_bytes)
        if not both.exists():
            cgroup.write(limit, value)
        elif memory_bytes > int(cgroup.read(both)):
            cgroup.write(both, value)
            cgroup.write(limit, value)
        else:
            cgroup.write(limit, value)
            cgroup.write(both, value)

    def limit_processes(self, count: int) -> None:
        """See `Cgroup`."""
        cgroup.write(self._pids / "pids.max", str(count))

    def weigh(self, weight: int) -> None:
        """See `Cgroup`."""
        cgroup.write(self._cpu / "cpu.shares", str(max(2, weight * NORMAL_SHARES // 100)))

    def cpu_seconds(self) -> float:
        """See `Cgroup`."""
        return int(cgroup.read(self._cpuacct / "cpuacct.usage")) / 1e9

    def contention(self) -> Contention:
        """See `Cgroup`; this version counts no pressure by group."""
        user, system = (int(cgroup.read(self._cpuacct / f"cpuacct.usage_{mode}")) / 1e9 for mode in ("user", "sys"))
        throttled = cgroup.read_throttled(self._cpu, "throttled_time", 1e9)
        return Contention(user, system, throttled, machine_pressure())

    def memory_bytes(self) -> int:
        """See `Cgroup`."""
        statistics = cgroup.read_table(self._memory / "memory.stat")
        return statistics["rss"] + statistics["shmem"]

    def reset_peak(self) -> None:
        """See `Cgroup`."""
        cgroup.write(self._memory / "memory.max_usage_in_bytes", "0")

    def peak_memory_bytes(self) -> int:
        """See `Cgroup`: the kernel's peak less the page cache of now, which was hardly more at the peak."""
        statistics = cgroup.read_table(self._memory / "memory.stat")
        page_cache = max(0, statistics["cache"] - statistics["shmem"])
        return max(0, int(cgroup.read(self._memory / "memory.max_usage_in_bytes")) - page_cache)

    def oom(self) -> OomFacts:
        """See `Cgroup`; failcnt does not count on every kernel, so a peak just below the limit says the same."""
        control = cgroup.read_table(self._memory / "memory.oom_control")
        peak = int(cgroup.read(self._memory / "memory.max_usage_in_bytes"))
        limit = int(cgroup.read(self._memory / "memory.limit_in_bytes"))
        hits = int(cgroup.read(self._memory / "memory.failcnt"))
        return OomFacts(kills=control["oom_kill"], limit_reached=hits > 0 or peak > limit - CHARGE_BYTES)

    def pids(self) -> set[int]:
        """See `Cgroup`; a member of any hierarchy is one of these: memory is joined first, and alone ever left."""
        return cgroup.read_pids(self._memory) | cgroup.read_pids(self._pids)

    def open_freezer(self) -> int:
        """See `Cgroup`."""
        return cgroup.open_for_writing(self._freezer / "freezer.state")

    @property
    def frozen(self) -> bytes:
        """See `Cgroup`."""
        return b"FROZEN"

    @property
    def thawed(self) -> bytes:
        """See `Cgroup`."""
        return b"THAWED"

    def thaw(self) -> None:
        """See `Cgroup`."""
        cgroup.write(self._freezer / "freezer.state", "THAWED")

    def release(self, pid: int) -> None:
        """See `Cgroup`; it stays a member of the others, where it costs nothing."""
        cgroup.move(pid, self._supervisors)

    def kill(self) -> None:
        """See `Cgroup`; who is frozen dies when thawed, and does nothing else any more."""
        cgroup.kill_members(self.pids)
        if self._freezer.exists():
            self.thaw()

    def remove(self) -> None:
        """See `Cgroup`."""
        for folder in self._folders:
            cgroup.remove(folder)


class CgroupTreeV1:
    """One executor's groups, in each hierarchy at the same path."""

    version = 1

    def __init__(self, hierarchies: Mapping[str, Path], parent: str, name: str) -> None:
        self._roots = {controller: mount / parent / name for controller, mount in hierarchies.items()}

    def prepare(self) -> None:
        """See `CgroupTree`."""
        for root in self._roots.values():
            cgroup.make(root)
        cgroup.make(self._roots["memory"] / SUPERVISORS)

    def create(self, name: str, *, memory_bytes: int, processes: int) -> Cgroup:
        """See `CgroupTree`."""
        for root in self._roots.values():
            cgroup.make(root / name)
        group = self.group(name)
        group.limit_memory(memory_bytes)
        group.limit_processes(processes)
        return group

    def group(self, name: str) -> CgroupV1:
        """See `CgroupTree`."""
        folders = {controller: root / name for controller, root in self._roots.items()}
        memory, pids, cpu, cpuacct, freezer = (folders[controller] for controller in CONTROLLERS)
        return CgroupV1(memory, pids, cpu, cpuacct, freezer, self._roots["memory"] / SUPERVISORS)

    def existing(self) -> Sequence[Cgroup]:
        """See `CgroupTree`."""
        roots = [root for root in self._roots.values() if root.is_dir()]
        names = {entry.name for root in roots for entry in root.iterdir() if entry.is_dir()}
        return [self.group(name) for name in sorted(names)]

    def remove(self) -> None:
        """See `CgroupTree`."""
        cgroup.remove(self._roots["memory"] / SUPERVISORS)
        for root in dict.fromkeys(self._roots.values()):
            cgroup.remove(root)
            cgroup.remove_if_empty(root.parent)

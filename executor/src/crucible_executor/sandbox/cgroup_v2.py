"""Control groups, version 2: the one unified hierarchy."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from crucible_executor.sandbox import cgroup
from crucible_executor.sandbox.cgroup import SUPERVISORS, Cgroup, CgroupError, OomFacts
from crucible_executor.sandbox.contention import RESOURCES, Contention, machine_pressure, pressure_of
from crucible_executor.sandbox.port import PressureScope

CONTROLLERS: Final = ("memory", "pids", "cpu")
MAIN = "crucible-main"
"""Where the processes of a delegated group go, so that it may have groups below it: inner groups hold no process."""


def find_unified() -> Path | None:
    """Where version 2 is mounted with the controllers that we use; None where the machine runs version 1."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mounted, _, kind = line.partition(" - ")
        if kind.split()[0] == "cgroup2":
            mount = Path(mounted.split()[4])
            if set(CONTROLLERS) <= set(cgroup.read(mount / "cgroup.controllers").split()):
                return mount
    return None


class CgroupV2:
    """One sandbox's group."""

    def __init__(self, folder: Path, supervisors: Path) -> None:
        self._folder = folder
        self._supervisors = supervisors

    @property
    def join_files(self) -> Sequence[Path]:
        """See `Cgroup`."""
        return [self._folder / "cgroup.procs"]

    def limit_memory(self, memory_bytes: int) -> None:
        """See `Cgroup`; one process killed for memory takes the others with it."""
        cgroup.write(self._folder / "memory.max", str(memory_bytes))
        cgroup.write(self._folder / "memory.oom.group", "1")
        swap = self._folder / "memory.swap.max"
        if swap.exists():
            cgroup.write(swap, "0")

    def limit_processes(self, count: int) -> None:
        """See `Cgroup`."""
        cgroup.write(self._folder / "pids.max", str(count))

    def weigh(self, weight: int) -> None:
        """See `Cgroup`."""
        cgroup.write(self._folder / "cpu.weight", str(weight))

    def cpu_seconds(self) -> float:
        """See `Cgroup`."""
        return cgroup.read_table(self._folder / "cpu.stat")["usage_usec"] / 1e6

    def contention(self) -> Contention:
        """See `Cgroup`."""
        times = cgroup.read_table(self._folder / "cpu.stat")
        files = {resource: self._folder / f"{resource}.pressure" for resource in RESOURCES}
        return Contention(
            user=times["user_usec"] / 1e6,
            system=times["system_usec"] / 1e6,
            throttled=cgroup.read_throttled(self._folder, "throttled_usec", 1e6),
            pressure=pressure_of(PressureScope.SANDBOX, files) or machine_pressure(),
        )

    def memory_bytes(self) -> int:
        """See `Cgroup`."""
        statistics = cgroup.read_table(self._folder / "memory.stat")
        return statistics["anon"] + statistics["shmem"]

    def reset_peak(self) -> None:
        """See `Cgroup`; before Linux 6.12 a peak cannot begin anew and is the group's whole life."""

    def peak_memory_bytes(self) -> int:
        """See `Cgroup`: the kernel's peak less the page cache of now, which was hardly more at the peak."""
        peak = self._folder / "memory.peak"
        if not peak.exists():
            return 0
        statistics = cgroup.read_table(self._folder / "memory.stat")
        page_cache = max(0, statistics["file"] - statistics["shmem"])
        return max(0, int(cgroup.read(peak)) - page_cache)

    def oom(self) -> OomFacts:
        """See `Cgroup`; with memory.oom.group one lack of memory counts several kills."""
        events = cgroup.read_table(self._folder / "memory.events")
        return OomFacts(kills=events["oom_kill"], limit_reached=events["oom"] > 0)

    def pids(self) -> set[int]:
        """See `Cgroup`."""
        return cgroup.read_pids(self._folder)

    def open_freezer(self) -> int:
        """See `Cgroup`."""
        return cgroup.open_for_writing(self._folder / "cgroup.freeze")

    @property
    def frozen(self) -> bytes:
        """See `Cgroup`."""
        return b"1"

    @property
    def thawed(self) -> bytes:
        """See `Cgroup`."""
        return b"0"

    def thaw(self) -> None:
        """See `Cgroup`."""
        cgroup.write(self._folder / "cgroup.freeze", "0")

    def release(self, pid: int) -> None:
        """See `Cgroup`."""
        cgroup.move(pid, self._supervisors)

    def kill(self) -> None:
        """See `Cgroup`; `cgroup.kill` came with Linux 5.14."""
        if (self._folder / "cgroup.kill").exists():
            cgroup.write(self._folder / "cgroup.kill", "1")
        else:
            cgroup.kill_members(self.pids)

    def remove(self) -> None:
        """See `Cgroup`."""
        cgroup.remove(self._folder)


class CgroupTreeV2:
    """One executor's groups below one folder, to which every controller is handed down."""

    version = 2

    def __init__(self, mount: Path, parent: str, name: str) -> None:
        self._mount = mount
        self._root = mount / parent / name

    def prepare(self) -> None:
        """See `CgroupTree`."""
        cgroup.make(self._root)
        below = self._root.relative_to(self._mount).parts
        for depth in range(len(below) + 1):
            _hand_down(self._mount.joinpath(*below[:depth]))
        cgroup.make(self._root / SUPERVISORS)

    def create(self, name: str, *, memory_bytes: int, processes: int) -> Cgroup:
        """See `CgroupTree`."""
        folder = self._root / name
        cgroup.make(folder)
        group = self.group(name)
        group.limit_memory(memory_bytes)
        group.limit_processes(processes)
        return group

    def group(self, name: str) -> CgroupV2:
        """See `CgroupTree`."""
        return CgroupV2(self._root / name, self._root / SUPERVISORS)

    def existing(self) -> Sequence[Cgroup]:
        """See `CgroupTree`."""
        if not self._root.is_dir():
            return []
        return [self.group(entry.name) for entry in sorted(self._root.iterdir()) if entry.is_dir()]

    def remove(self) -> None:
        """See `CgroupTree`."""
        cgroup.remove(self._root / SUPERVISORS)
        cgroup.remove(self._root)
        cgroup.remove_if_empty(self._root.parent)


def _hand_down(folder: Path) -> None:
    control = folder / "cgroup.subtree_control"
    enabled = set(cgroup.read(control).split())
    wanted = " ".join(f"+{name}" for name in CONTROLLERS if name not in enabled)
    if not wanted:
        return
    try:
        cgroup.write(control, wanted)
    except CgroupError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EBUSY:
            raise
        # A delegated group (a container's root, a systemd unit with Delegate=yes) holds the very processes that run us.
        main = folder / MAIN
        cgroup.make(main)
        for pid in cgroup.read_pids(folder):
            cgroup.move(pid, main)
        cgroup.write(control, wanted)

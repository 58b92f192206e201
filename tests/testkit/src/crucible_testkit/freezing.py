"""Whether a process is frozen by its control group, of either version."""

from __future__ import annotations

import contextlib
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")


def frozen_group(pid: int) -> Path | None:
    """The group that a process is frozen in; None for one that runs, or is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "freezer":
                group = MOUNT / "freezer" / path[1:]
                if (group / "freezer.state").read_text(encoding="ascii") == "FROZEN\n":
                    return group
            elif not controllers:
                group = MOUNT / path[1:]
                if (group / "cgroup.events").exists() and "frozen 1" in (group / "cgroup.events").read_text("ascii"):
                    return group
    return None

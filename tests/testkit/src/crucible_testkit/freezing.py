"""Whether a process is frozen by its control group, of either version."""

from __future__ import annotations

import contextlib
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")


def frozen_group(pid: int) -> Path | None:
    """The group that a process is frozen in; None for one that runs, or is gone.

    The kernel may go on telling that it is still freezing: a thread of gVisor's that attaches to another, which was
    frozen first, waits for it and counts as running.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "freezer":
                group = MOUNT / "freezer" / path[1:]
                if (group / "freezer.state").read_text(encoding="ascii") != "THAWED\n":
                    return group
            elif not controllers:
                group = MOUNT / path[1:]
                if (group / "cgroup.freeze").exists() and (group / "cgroup.freeze").read_text("ascii") == "1\n":
                    return group
    return None

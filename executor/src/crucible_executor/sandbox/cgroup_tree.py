"""Which version of control groups this machine has."""

from __future__ import annotations

from crucible_executor.sandbox.cgroup import CgroupTree
from crucible_executor.sandbox.cgroup_v1 import CgroupTreeV1, find_hierarchies
from crucible_executor.sandbox.cgroup_v2 import CgroupTreeV2, find_unified


def open_cgroup_tree(parent: str, name: str) -> CgroupTree:
    """The tree `<parent>/<name>` under whichever version this machine has; touches nothing yet.

    Raises CgroupError when neither is usable.
    """
    unified = find_unified()
    if unified is not None:
        return CgroupTreeV2(unified, parent, name)
    return CgroupTreeV1(find_hierarchies(), parent, name)

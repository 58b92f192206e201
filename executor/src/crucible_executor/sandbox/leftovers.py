"""What executors that died left on this machine, and sweeping it: by our own folders and control groups alone.

An executor holds a lock on a file in its folder for as long as it lives. A folder whose lock is free belongs to a dead
one: the members of its control groups are killed, the groups removed, then the folder. No process is found by name or
by a recorded id, and a folder counts as an executor's only if its lock says so, so no stranger's is ever touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from crucible_executor.sandbox import cgroup
from crucible_executor.sandbox.cgroup import CgroupTree
from crucible_executor.sandbox.cgroup_tree import open_cgroup_tree

PREFIX: Final = "executor-"
_LOCK: Final = "lock"
_MAKING: Final = "."
"""Begins the name of a folder that has no lock yet."""
_MARK_BYTES: Final = 256
"""More than a mark has."""


def folder_name(identity: str) -> str:
    """Name of an executor's folder, and of its control groups."""
    return f"{PREFIX}{identity}"


class Instance:
    """One executor's folder under the state folder, and its control groups; both are its own while the lock is held."""

    def __init__(self, state_root: Path, cgroup_parent: str, identity: str) -> None:
        self.dir = state_root / folder_name(identity)
        self.cgroups: CgroupTree = open_cgroup_tree(cgroup_parent, self.dir.name)
        self._state_root = state_root
        self._lock = -1

    def take(self) -> None:
        """Make the folder, lock it, make the control groups; raises OSError, CgroupError."""
        self._state_root.mkdir(parents=True, exist_ok=True)
        with _exclusive(self._state_root):
            # Under its own name there is never a folder without its lock, whenever this is interrupted.
            folder = self.dir.with_name(f"{_MAKING}{self.dir.name}")
            folder.mkdir(mode=0o700)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(self._lock, _mark(self.dir))
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            folder.rename(self.dir)
            self.cgroups.prepare()

    def give_back(self) -> None:
        """Remove all of it; everything in it must have ended. Raises OSError, CgroupError."""
        with _exclusive(self._state_root):
            self.cgroups.remove()
            shutil.rmtree(self.dir)
            os.close(self._lock)


def sweep(state_root: Path, cgroup_parent: str) -> list[str]:
    """Remove what dead executors left and name them; blocks until their processes are gone.

    Raises ExceptionGroup with what could not be removed; the rest is removed all the same.
    """
    if not state_root.is_dir():
        return []
    swept: list[str] = []
    errors: list[Exception] = []
    with _exclusive(state_root):
        for folder in sorted((*state_root.glob(f"{_MAKING}{PREFIX}*"), *state_root.glob(f"{PREFIX}*"))):
            named = folder.with_name(folder.name.removeprefix(_MAKING))
            try:
                if not _is_ours(folder, named):
                    continue
                if folder != named:
                    shutil.rmtree(folder)
                elif not _alive(folder):
                    _remove(folder, cgroup_parent)
                    swept.append(folder.name)
            except (OSError, cgroup.CgroupError) as error:
                error.add_note(f"while sweeping {folder}")
                errors.append(error)
    if errors:
        raise ExceptionGroup("what dead executors left cannot be removed", errors)
    return swept


def _mark(folder: Path) -> bytes:
    return f"{folder.name} is a folder of Crucible's\n".encode()


def _is_ours(folder: Path, named: Path) -> bool:
    """An executor made it under that name; one that was interrupted while it made it had not written much."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    interrupted = folder != named
    try:
        lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            written = os.read(lock, _MARK_BYTES)
        finally:
            os.close(lock)
    except OSError:
        return interrupted and not any(folder.iterdir())
    return written == _mark(named) or (interrupted and not written)


def _alive(folder: Path) -> bool:
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def _remove(folder: Path, cgroup_parent: str) -> None:
    tree = open_cgroup_tree(cgroup_parent, folder.name)
    groups = tree.existing()
    cgroup.empty(groups)
    for group in groups:
        group.remove()
    tree.remove()
    shutil.rmtree(folder)


@contextmanager
def _exclusive(state_root: Path) -> Generator[None]:
    """One executor at a time makes, removes or sweeps."""
    lock = os.open(state_root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)

"""Giving up what a process of root's can do, for good: capabilities, the way to get them back, the user id.

All of it is a thread's own in Linux, so it is done while a process has one thread. Raises PrivilegeError, and checks in
`/proc` that what was given up is gone.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from crucible_executor.sandbox.gvisor.spec import SANDBOX_UID

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_LAST_CAPABILITY: Final = Path("/proc/sys/kernel/cap_last_cap")


class Capability(IntEnum):
    """Those that a launcher may keep, by the kernel's numbers."""

    DAC_OVERRIDE = 1
    SETGID = 6
    SETUID = 7
    SYS_ADMIN = 21


class PrivilegeError(Exception):
    """The process cannot become what it should; the message says why."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who a service runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Account:
        """The account of that name; raises PrivilegeError for one that root or a sandbox has as well."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise PrivilegeError(f"there is no user {name}") from None
        if entry.pw_uid == 0:
            raise PrivilegeError(f"{name} is root: name a user without privileges, or none")
        if entry.pw_uid == SANDBOX_UID:
            raise PrivilegeError(f"{name} is who gVisor's kernels run as: name a user of the service's own")
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def keep_only(kept: Collection[Capability]) -> None:
    """Keep these capabilities of root's and no others, in this process and in all it will ever start."""
    _require_one_thread()
    _forbid_new()
    _bound(kept)
    _set(kept)
    mask = sum(1 << number for number in kept)
    _verify({"CapEff": mask, "CapPrm": mask, "CapBnd": mask, "CapInh": 0, "CapAmb": 0})


def drop_all(account: Account | None) -> None:
    """Become the account, or stay who one is, without one capability and without a way to any.

    The signal at the parent's death stays what it was, although the kernel forgets it when the user id changes.
    """
    _require_one_thread()
    signal_at_death = ctypes.c_int()
    _prctl("PR_GET_PDEATHSIG", _PR_GET_PDEATHSIG, ctypes.byref(signal_at_death))
    parent = os.getppid()
    _forbid_new()
    _bound(())
    if account is not None:
        try:
            os.setgroups([])
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
        except OSError as error:
            raise PrivilegeError(f"cannot become {account.name}: {error.strerror}") from error
    _set(())
    _verify(dict.fromkeys(("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"), 0))
    if account is not None and os.getresuid() != (account.uid,) * 3:
        raise PrivilegeError(f"this process did not become {account.name}")
    if signal_at_death.value:
        _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal_at_death.value)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal_at_death.value)


def status(pid: int | None = None) -> Mapping[str, str]:
    """The fields of a process's `/proc/<pid>/status`; raises OSError."""
    lines = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _require_one_thread() -> None:
    threads = int(status()["Threads"])
    if threads != 1:
        raise PrivilegeError(f"privileges are given up before any thread is started: there are {threads}")


def _forbid_new() -> None:
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def _bound(kept: Collection[Capability]) -> None:
    for number in range(int(_LAST_CAPABILITY.read_text(encoding="ascii")) + 1):
        if number not in kept and _libc().prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _prctl("PR_CAPBSET_DROP, which needs CAP_SETPCAP,", _PR_CAPBSET_DROP, number)


def _set(kept: Collection[Capability]) -> None:
    sets = (_Sets * 2)()
    for number in kept:
        sets[number // 32].effective |= 1 << number % 32
        sets[number // 32].permitted |= 1 << number % 32
    if _libc().capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets) != 0:
        raise PrivilegeError(f"capset: {os.strerror(ctypes.get_errno())}")


def _verify(wanted: Mapping[str, int]) -> None:
    found = status()
    wrong = {name: found[name] for name, mask in wanted.items() if int(found[name], 16) != mask}
    if wrong or found["NoNewPrivs"] != "1":
        raise PrivilegeError(f"privileges are not what they should be: {wrong or 'NoNewPrivs'}")


def _prctl(what: str, option: int, first: object, second: int = 0) -> None:
    # The third word of prctl is a long: a bare Python int would do on x86_64, a typed one does everywhere.
    value = ctypes.c_ulong(first) if isinstance(first, int) else first
    if _libc().prctl(option, value, ctypes.c_ulong(second), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise PrivilegeError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

"""What the kernel says of a sandbox from outside: before its program comes, and after it was removed.

Runs in the launcher, which made the sandbox and may look at its processes. It takes next to no time, and decides
nothing from what a sandbox wrote.
"""

# ruff: noqa: PTH115, PTH208
# pathlib takes longer than all that is asked of the kernel here, and a launcher has but one thread.

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from crucible_executor.sandbox.cgroup import READ_BYTES
from crucible_executor.sandbox.containment import agent
from crucible_executor.sandbox.containment.report import Check, Look, dump, judged
from crucible_executor.sandbox.gvisor.spec import SANDBOX_UID
from crucible_executor.sandbox.launcher.catalogue import identity
from crucible_executor.sandbox.launcher.subject import Subject

BEFORE: Final = (
    Check.SENTRY_USER,
    Check.SENTRY_CAPABILITIES,
    Check.SENTRY_SYSTEM_CALL_FILTER,
    Check.SENTRY_NO_NEW_PRIVILEGES,
    Check.SENTRY_NAMESPACES,
    Check.SENTRY_ROOT,
    Check.SENTRY_DESCRIPTORS,
    Check.SENTRY_OPTIONS,
    Check.SANDBOX_PROCESSES,
    Check.SUPERVISOR,
    Check.ROOT_IMAGE,
    Check.CONTROL_GROUP,
    Check.MEMORY_LIMIT,
    Check.PROCESS_LIMIT,
)
"""What `inspect` checks."""

LOOKS_AGAIN: Final = 3
AGAIN_SECONDS: Final = 0.002
"""After a look at which something seemed to be wrong."""

_NAMESPACES: Final = ("user", "mnt", "net", "ipc", "uts")
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

_OPTIONS: Final[Mapping[str, str]] = {
    "network": "none",
    "directfs": "false",
    "overlay2": "none",
    "oci-seccomp": "true",
    "ignore-cgroups": "true",
}
"""Options of runsc without which a sandbox is not what it must be."""
_OTHER_OPTIONS: Final[Mapping[str, str]] = {
    "host-uds": "none",
    "host-fifo": "none",
    "allow-suid": "false",
    "character-device-policy": "emulated-only",
}
"""Those that are right by default, or that not every release knows."""
_FREE_OPTIONS: Final = frozenset({"root", "log", "log-format", "panic-log", "platform", "pod-init-config"})
_OF_RUNSC_ITSELF: Final = re.compile(r"[a-z-]+-fd$")
"""Descriptors that `runsc run` hands to its kernel."""

_OWN_FILES: Final = frozenset({"etc/localtime"})
"""What runsc puts into the folder in memory that is its kernel's root."""
_HARMLESS_LINKS: Final = re.compile(
    r"(pipe|socket):\[\d+\]|anon_inode:\[(eventfd|eventpoll|timerfd|signalfd|pidfd)\]|/dev/null"
    r"|anon_inode:seccomp notify"  # of the filters that newer releases put on the processes of a sandbox
    rf"|/memfd:(runsc-memory|systrap-memory|memory-usage|{agent.FILE_NAME}) \(deleted\)"
)


def inspect(subject: Subject) -> dict[str, object]:
    """A look at a sandbox that waits for its program, as JSON; raises OSError when it is gone.

    What seems to be wrong is looked at again: a process that is just beginning or ending is not what it is otherwise,
    and what is said here may stop a node.
    """
    look = _look(subject)
    for _ in range(LOOKS_AGAIN):
        if not look.broken:
            break
        time.sleep(AGAIN_SECONDS)
        look = _look(subject)
    if look.broken:
        for pid in (subject.sentry, subject.supervisor):
            if _status(pid)["State"].startswith("Z"):
                raise ProcessLookupError(f"process {pid} died meanwhile")
    return dump(look)


def _look(subject: Subject) -> Look:
    status = _status(subject.sentry)
    links = _links(subject.sentry)
    limits = _limits(subject)
    wrong: dict[Check, str] = {
        Check.SENTRY_USER: _user(status),
        Check.SENTRY_CAPABILITIES: _capabilities(status),
        Check.SENTRY_SYSTEM_CALL_FILTER: "" if status["Seccomp"] == "2" else f"its mode is {status['Seccomp']}",
        Check.SENTRY_NO_NEW_PRIVILEGES: "" if status["NoNewPrivs"] == "1" else "it is not set",
    }
    looks: Mapping[Check, Callable[[Subject], str]] = {
        Check.SENTRY_NAMESPACES: _namespaces,
        Check.SENTRY_ROOT: _root,
        Check.SENTRY_DESCRIPTORS: lambda subject: _descriptors(subject, links),
        Check.SENTRY_OPTIONS: _options,
        Check.SANDBOX_PROCESSES: _processes,
        Check.SUPERVISOR: _supervisor,
        Check.ROOT_IMAGE: lambda subject: _image(subject, links),
        Check.CONTROL_GROUP: _control_group,
        Check.MEMORY_LIMIT: lambda subject: _memory_limit(subject, limits),
        Check.PROCESS_LIMIT: lambda subject: _process_limit(subject, limits),
    }
    return judged(wrong | {check: look(subject) for check, look in looks.items()})


def inspect_after(subject: Subject) -> dict[str, object]:
    """A look for what is left of a sandbox that was removed, as JSON."""
    processes = [pid for pid in (subject.supervisor, subject.sentry) if _is_still(pid, subject.identity)]
    members = subject.cgroup.pids()
    groups = [file.parent for file in subject.cgroup.join_files if file.parent.exists()]
    left = sorted({*processes, *members})
    wrong = {
        Check.PROCESSES_GONE: f"there are {', '.join(map(str, left))}" if left else "",
        Check.CONTROL_GROUP_GONE: f"there is {', '.join(map(str, groups))}" if groups else "",
        Check.FOLDER_GONE: f"there is {subject.folder}" if subject.folder.exists() else "",
    }
    try:
        found = identity(subject.image.stat())
    except FileNotFoundError:
        found = ()
    if found[:2] != subject.image_identity[:2]:  # an operator may build images while sandboxes run
        return dump(judged(wrong, {Check.IMAGE_UNCHANGED: "another was put in its place, or none"}))
    wrong[Check.IMAGE_UNCHANGED] = "" if found == subject.image_identity else "it was written to"
    return dump(judged(wrong))


# The sentry


def _user(status: Mapping[str, str]) -> str:
    wrong = [f"{name} {status[name]}" for name in ("Uid", "Gid") if set(status[name].split()) != {str(SANDBOX_UID)}]
    groups = set(status["Groups"].split()) - {str(SANDBOX_UID)}
    if groups:
        wrong.append(f"groups {' '.join(sorted(groups))}")
    return "; ".join(wrong)


def _capabilities(status: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {status[name]}" for name in _CAPABILITIES if int(status[name], 16) != 0)


def _namespaces(subject: Subject) -> str:
    shared = [
        name
        for name in _NAMESPACES
        if os.readlink(f"/proc/{subject.sentry}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
    ]
    return f"it shares the host's: {', '.join(shared)}" if shared else ""


def _root(subject: Subject) -> str:
    wrong: list[str] = []
    for line in _read(f"/proc/{subject.sentry}/mountinfo").splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] != "tmpfs" or "ro" not in fields[5].split(","):
            wrong.append(f"{fields[4]} is mounted")
    if not wrong:
        root = f"/proc/{subject.sentry}/root"
        for folder, _, names in os.walk(root):
            files = {os.path.relpath(f"{folder}/{name}", root) for name in names} - _OWN_FILES
            wrong += [f"there is {name}" for name in sorted(files)]
    return "; ".join(wrong[:5])


def _descriptors(subject: Subject, links: Mapping[str, str]) -> str:
    allowed = {*_names(subject.image), *(str(subject.folder / name) for name in ("log", "panic"))}
    others = sorted({link for link in links.values() if link not in allowed and not _HARMLESS_LINKS.fullmatch(link)})
    return f"it holds {', '.join(others[:10])}" if others else ""


def _names(image: Path) -> tuple[str, str]:
    """Of a file that is held, and of one that was replaced since."""
    return (str(image), f"{image} (deleted)")


def _links(pid: int) -> dict[str, str]:
    """What a process holds, by its descriptors."""
    folder = f"/proc/{pid}/fd/"
    return {number: os.readlink(folder + number) for number in os.listdir(folder)}


def _options(subject: Subject) -> str:
    words = _read(f"/proc/{subject.sentry}/cmdline").split("\0")
    given: dict[str, str] = {}
    for word in words[1:]:
        if not word.startswith("-"):
            break
        name, _, value = word.lstrip("-").partition("=")
        given[name] = value
    wrong = [f"{name} is {given.get(name)!r}" for name, value in _OPTIONS.items() if given.get(name) != value]
    for name, value in given.items():
        if name in _OPTIONS or name in _FREE_OPTIONS or _OF_RUNSC_ITSELF.fullmatch(name):
            continue
        if _OTHER_OPTIONS.get(name) != value:
            wrong.append(f"{name} is {value!r}")
    return "; ".join(wrong)


# What is around it


def _processes(subject: Subject) -> str:
    family = {subject.sentry, *subject.stubs}
    wrong: list[str] = []
    for pid in subject.stubs:
        try:
            status = _status(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # an address space that is no more
        what = _user(status) or _capabilities(status)
        if status["Seccomp"] != "2" or status["NoNewPrivs"] != "1":
            what = "it is not filtered"
        if int(status["PPid"]) not in family:
            what = f"{status['Name']} is none of gVisor's kernel"
        if what:
            wrong.append(f"process {pid}: {what}")
    return "; ".join(wrong[:5])


def _supervisor(subject: Subject) -> str:
    own, its = _status("self"), _status(subject.supervisor)
    most = int(own["CapBnd"], 16)
    wrong = [f"{name} {its[name]}" for name in _CAPABILITIES if int(its[name], 16) & ~most]
    if its["NoNewPrivs"] != own["NoNewPrivs"]:
        wrong.append("it may gain privileges")
    return "; ".join(wrong)


def _image(subject: Subject, links: Mapping[str, str]) -> str:
    held = [number for number, link in links.items() if link in _names(subject.image)]
    if not held:
        return "the root is another"
    for number in held:
        found = Path(f"/proc/{subject.sentry}/fd/{number}").stat()
        if identity(found) != subject.image_identity:
            return "the file is not the one that was verified"
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others may write to {subject.image}"
        flags = _read(f"/proc/{subject.sentry}/fdinfo/{number}").split("flags:", 1)[1]
        if int(flags.split()[0], 8) & os.O_ACCMODE != os.O_RDONLY:
            return "it is opened to be written"
    return ""


def _control_group(subject: Subject) -> str:
    outside: list[str] = []
    for file in subject.cgroup.join_files:
        missing = {subject.sentry, *subject.stubs} - set(map(int, _read(file).split()))
        outside += [f"{pid} is not in {file.parent}" for pid in missing if os.access(f"/proc/{pid}", os.F_OK)]
    return "; ".join(outside[:5])


_LIMITS: Final = ("memory.max", "memory.swap.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max")


def _limits(subject: Subject) -> dict[str, float]:
    """What the control group bounds, in whichever version's files."""
    found: dict[str, float] = {}
    for file in subject.cgroup.join_files:
        for name in _LIMITS:
            try:
                text = _read(file.with_name(name)).strip()
            except FileNotFoundError:
                continue
            found[name] = float("inf") if text == "max" else int(text)
    return found


def _memory_limit(subject: Subject, limits: Mapping[str, float]) -> str:
    most = subject.memory_bytes
    wrong = [
        f"{name} is {limits[name]:.0f}, not {bound}"
        for name, bound in (
            ("memory.max", most),
            ("memory.swap.max", 0),
            ("memory.limit_in_bytes", most),
            ("memory.memsw.limit_in_bytes", most),
        )
        if name in limits and limits[name] > bound
    ]
    return "; ".join(wrong) if limits.keys() & {"memory.max", "memory.limit_in_bytes"} else "there is none"


def _process_limit(subject: Subject, limits: Mapping[str, float]) -> str:
    limit = limits.get("pids.max", float("inf"))
    return "" if limit <= subject.processes else f"it is {limit:.0f}, not {subject.processes}"


# The kernel's files


def _read(path: str | Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, READ_BYTES).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def _status(process: int | str) -> dict[str, str]:
    """The fields of `/proc/<process>/status`."""
    lines = _read(f"/proc/{process}/status").split("\n")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# Afterwards


def _is_still(pid: int, name: str) -> bool:
    try:
        return name in _read(f"/proc/{pid}/cmdline")
    except (FileNotFoundError, ProcessLookupError):
        return False

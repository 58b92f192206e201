"""What the kernel says of a sandbox from outside: before its program comes, and after it was removed.

Runs in the launcher, which made the sandbox and may look at its processes. It takes next to no time, and decides
nothing from what a sandbox wrote.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from crucible_executor.sandbox.containment import agent
from crucible_executor.sandbox.containment.report import Check, Look, dump, judged
from crucible_executor.sandbox.gvisor.spec import SANDBOX_UID
from crucible_executor.sandbox.launcher import privileges
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
            if privileges.status(pid)["State"].startswith("Z"):
                raise ProcessLookupError(f"process {pid} died meanwhile")
    return dump(look)


def _look(subject: Subject) -> Look:
    status = privileges.status(subject.sentry)
    links = _links(subject.sentry)
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
        Check.MEMORY_LIMIT: _memory_limit,
        Check.PROCESS_LIMIT: _process_limit,
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
        if Path(f"/proc/{subject.sentry}/ns/{name}").readlink() == Path(f"/proc/self/ns/{name}").readlink()
    ]
    return f"it shares the host's: {', '.join(shared)}" if shared else ""


def _root(subject: Subject) -> str:
    wrong: list[str] = []
    for line in Path(f"/proc/{subject.sentry}/mountinfo").read_text(encoding="utf-8").splitlines():
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
    return {str(file.name): str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}


def _options(subject: Subject) -> str:
    words = Path(f"/proc/{subject.sentry}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
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
            status = privileges.status(pid)
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
    own, its = privileges.status(), privileges.status(subject.supervisor)
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
        flags = Path(f"/proc/{subject.sentry}/fdinfo/{number}").read_text(encoding="ascii").split("flags:", 1)[1]
        if int(flags.split()[0], 8) & os.O_ACCMODE != os.O_RDONLY:
            return "it is opened to be written"
    return ""


def _control_group(subject: Subject) -> str:
    outside: list[str] = []
    for file in subject.cgroup.join_files:
        members = set(file.read_text(encoding="ascii").split())
        outside += [f"{pid} is not in {file.parent}" for pid in (subject.sentry,) if str(pid) not in members]
        outside += [
            f"{pid} is not in {file.parent}"
            for pid in subject.stubs
            if str(pid) not in members and Path(f"/proc/{pid}").exists()
        ]
    return "; ".join(outside[:5])


def _memory_limit(subject: Subject) -> str:
    limit = _bound(subject, "memory.max", "memory.limit_in_bytes")
    if limit is None or limit > subject.memory_bytes:
        return f"it is {limit or 'none'}, not {subject.memory_bytes}"
    swap = _bound(subject, "memory.swap.max")
    both = _bound(subject, "memory.memsw.limit_in_bytes")
    if swap or (both is not None and both > subject.memory_bytes):
        return "swap is not bounded"
    return ""


def _process_limit(subject: Subject) -> str:
    limit = _bound(subject, "pids.max")
    return "" if limit is not None and limit <= subject.processes else f"it is {limit or 'none'}"


def _bound(subject: Subject, *names: str) -> int | None:
    """A limit of the control group, of whichever version; None where there is none."""
    for file in subject.cgroup.join_files:
        for name in names:
            try:
                text = (file.parent / name).read_text(encoding="ascii").strip()
            except FileNotFoundError:
                continue
            return None if text == "max" else int(text)
    return None


# Afterwards


def _is_still(pid: int, name: str) -> bool:
    try:
        return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False

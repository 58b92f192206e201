"""A launcher that builds weak sandboxes, in one way: `weak_launcher.py WEAKNESS FOLDER DESCRIPTOR CONFIG`.

Each weakness is put in where the launcher makes specifications, options, groups or removals. FOLDER is a test's own.
"""

# pyright: reportPrivateUsage=false
# ruff: noqa: ANN401
# What is weakened is private to the launcher, and what is passed through is not looked at.

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from crucible_executor.sandbox.cgroup_v1 import CgroupV1
from crucible_executor.sandbox.cgroup_v2 import CgroupV2
from crucible_executor.sandbox.containment import posture
from crucible_executor.sandbox.gvisor import spec
from crucible_executor.sandbox.launcher import server
from crucible_executor.sandbox.launcher.cell import Cell
from crucible_executor.sandbox.launcher.config import LauncherConfig
from crucible_executor.sandbox.launcher.loop import Job
from crucible_executor.sandbox.launcher.subject import Subject

FOLDER: Final = Path(sys.argv[2])
PRIVILEGES: Final = ["CAP_SYS_ADMIN", "CAP_SYS_TIME", "CAP_SYS_BOOT", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_SETUID"]
Spec = dict[str, Any]


def put(owner: object, name: str, function: object) -> None:
    """In the place of the real one."""
    setattr(owner, name, function)


def nothing(*_arguments: Any) -> None:
    """Instead of doing it."""


def with_option(name: str, value: str) -> None:
    """runsc gets this option, whatever it got before."""
    real = Cell._command

    def command(self: Cell, channel: int) -> list[str]:
        words = [word for word in real(self, channel) if not word.startswith(f"--{name}=")]
        return [words[0], f"--{name}={value}", *words[1:]]

    put(Cell, "_command", command)


def with_spec(change: Callable[[Spec], None]) -> None:
    """The specification is changed at the end."""
    real = spec.build

    def build(*args: Any, **kwargs: Any) -> Spec:
        made: Spec = real(*args, **kwargs)
        change(made)
        return made

    put(spec, "build", build)


def with_subject(change: Callable[[Subject], Subject]) -> None:
    """The launcher looks at something else."""
    real = Cell.subject

    def subject(self: Cell) -> Subject:
        return change(real(self))

    put(Cell, "subject", subject)


def mounted(destination: str, source: Path, kind: str = "bind") -> None:
    mount = {"destination": destination, "type": kind, "source": str(source), "options": ["rbind", "rw"]}
    with_spec(lambda made: made["mounts"].append(mount))


def privileged(made: Spec) -> None:
    for kind in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        made["process"]["capabilities"][kind] = PRIVILEGES


def privileged_root(made: Spec) -> None:
    privileged(made)
    made["process"]["user"] = {"uid": 0, "gid": 0}


def writable_root(made: Spec) -> None:
    made["root"]["readonly"] = False
    made["annotations"]["dev.gvisor.spec.rootfs.overlay"] = "memory"


def unsized(made: Spec) -> None:
    for mount in made["mounts"]:
        mount["options"] = [option for option in mount["options"] if not option.startswith("size=")]


def host_folder(name: str) -> Path:
    """A folder of the host with something of this name in it."""
    (FOLDER / "host" / name).mkdir(parents=True, exist_ok=True)
    return FOLDER / "host"


def other_image(made: Spec) -> None:
    annotations = made["annotations"]
    copy = FOLDER / "copy.erofs"
    copy.write_bytes(Path(annotations["dev.gvisor.spec.rootfs.source"]).read_bytes())
    annotations["dev.gvisor.spec.rootfs.source"] = str(copy)


def extra_descriptor() -> None:
    real = Cell._command
    held = os.open(host_folder("secret"), os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(held, True)
    start = subprocess.Popen.__init__

    def keeping(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("pass_fds"):
            kwargs["pass_fds"] = (*kwargs["pass_fds"], held)
        start(self, *args, **kwargs)

    def command(self: Cell, channel: int) -> list[str]:
        words = real(self, channel)
        return [*words[:-1], f"--pass-fd={held}:9", words[-1]]

    put(subprocess.Popen, "__init__", keeping)
    put(Cell, "_command", command)


def unlimited() -> None:
    for group in (CgroupV1, CgroupV2):
        put(group, "limit_memory", nothing)
        put(group, "limit_processes", nothing)


def sentry_set_free() -> None:
    real = Cell.subject

    def subject(self: Cell) -> Subject:
        found = real(self)
        self._group.release(found.sentry)
        return found

    put(Cell, "subject", subject)


def stranger_in_the_group() -> None:
    real = Cell.subject

    def subject(self: Cell) -> Subject:
        stranger = subprocess.Popen(["sleep", "60"])
        for file in self._group.join_files:
            file.write_text(str(stranger.pid))
        return real(self)

    put(Cell, "subject", subject)


def never_removed() -> None:
    def remove(_self: Cell, done: Callable[[Exception | None], None]) -> Job:
        done(None)
        yield 0.0

    put(Cell, "remove", remove)


def image_touched() -> None:
    real = Cell.remove

    def remove(self: Cell, done: Callable[[Exception | None], None]) -> Job:
        if self.image is not None:
            os.utime(self.image.path)
        yield from real(self, done)

    put(Cell, "remove", remove)


def no_agent() -> None:
    put(server, "open_agent", nothing)


def no_look() -> None:
    def inspect(_subject: Subject) -> object:
        raise OSError("nobody can look")

    put(posture, "inspect", inspect)


def folder_kept() -> None:
    put(shutil, "rmtree", nothing)


WEAKNESSES: Final[Mapping[str, Callable[[], object]]] = {
    "the host's network": lambda: with_option("network", "host"),
    "files opened by the sentry": lambda: with_option("directfs", "true"),
    "sockets of the host": lambda: with_option("host-uds", "all"),
    "privileges by executing": lambda: with_option("allow-suid", "true"),
    "no filter of system calls": lambda: with_option("oci-seccomp", "false"),
    "no list of denied calls": lambda: with_spec(lambda made: made["linux"].pop("seccomp")),
    "raw sockets": lambda: (with_option("net-raw", "true"), with_spec(privileged_root)),
    "capabilities": lambda: with_spec(privileged),
    "capabilities and no filter": lambda: (with_option("oci-seccomp", "false"), with_spec(privileged_root)),
    "root inside": lambda: with_spec(lambda made: made["process"].update(user={"uid": 0, "gid": 0})),
    "further groups": lambda: with_spec(lambda made: made["process"]["user"].update(additionalGids=[0, 4])),
    "a writable root": lambda: with_spec(writable_root),
    "another image": lambda: with_spec(other_image),
    "a folder of the host": lambda: mounted("/mnt", host_folder("secret")),
    "the host's state": lambda: mounted("/run", host_folder("crucible")),
    "the host's name servers": lambda: mounted("/etc", host_folder("resolv.conf")),
    "the host's devices": lambda: mounted("/dev", host_folder("sda")),
    "one more file system": lambda: mounted("/mnt", Path("tmpfs"), "tmpfs"),
    "no size of files": lambda: with_spec(unsized),
    "no limits of resources": lambda: with_spec(lambda made: made["process"].update(rlimits=[])),
    "the host's name": lambda: with_spec(lambda made: made.update(hostname=os.uname().nodename)),
    "a descriptor of the host": extra_descriptor,
    "no limits of the group": unlimited,
    "a sentry outside of the group": sentry_set_free,
    "a stranger in the group": stranger_in_the_group,
    "a sentry like any process": lambda: with_subject(lambda subject: replace(subject, sentry=os.getppid())),
    "a privileged supervisor": lambda: with_subject(lambda subject: replace(subject, supervisor=os.getppid())),
    "no agent": no_agent,
    "no look": no_look,
    "never removed": never_removed,
    "its folder kept": folder_kept,
    "its image touched": image_touched,
}


if __name__ == "__main__":
    WEAKNESSES[sys.argv[1]]()
    sys.exit(server.main(int(sys.argv[3]), LauncherConfig.load(sys.argv[4])))

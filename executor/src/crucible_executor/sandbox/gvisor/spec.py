"""The OCI specification of a sandbox. Nothing of a caller's reaches it: it depends on runtime and disk size alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from crucible_executor.sandbox.command_line import command_line
from crucible_executor.sandbox.port import SandboxLimits

SANDBOX_UID: Final = 65534
WORK_DIR: Final = "/work"
HOSTNAME: Final = "sandbox"
TMPFS_FOLDERS: Final = ("/dev/shm", "/tmp", WORK_DIR)  # noqa: S108 - folders inside the sandbox
"""What can be written to: each holds `disk_bytes`."""
CHANNEL_FD: Final = 3
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_BASE_ENVIRONMENT: Final = {"PATH": PATH, "HOME": WORK_DIR, "LANG": "C.UTF-8", "TMPDIR": "/tmp"}  # noqa: S108 - a folder inside the sandbox

_EPERM: Final = 1

_DENIED_SYSCALLS: Final = (
    "add_key",
    "bpf",
    "chroot",
    "init_module",
    "keyctl",
    "mount",
    "open_by_handle_at",
    "perf_event_open",
    "pivot_root",
    "reboot",
    "request_key",
    "setns",
    "umount2",
    "unshare",
)
"""Of no use to a program, and each a way into more of the sentry.

`clone3` hides its flags in memory, so no filter can refuse it a user namespace; there is no network to use one for.
"""


class Startable(Protocol):
    """What of a runtime's definition says how its sandboxes are booted."""

    @property
    def starter(self) -> str:
        """`python` or `sh`."""
        ...

    @property
    def command(self) -> Sequence[str]:
        """The command line of a program, with its entrypoint to be put in."""
        ...

    @property
    def default_entrypoint(self) -> str:
        """The entrypoint of a program that names none."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """Environment variables of every program."""
        ...


def starter_command(runtime: Startable) -> list[str]:
    """What is booted. Python's starter waits inside the start of the interpreter that runs the program."""
    if runtime.starter == "python":
        return list(command_line(runtime.command, runtime.default_entrypoint))
    return ["/bin/sh", "/usr/lib/crucible/sh.sh"]


def environment(runtime: Startable) -> Mapping[str, str]:
    """The environment of a program that adds nothing of its own, and of the starter before it."""
    return {**_BASE_ENVIRONMENT, **runtime.env}


def session(endpoint: Path) -> str:
    """What `--pod-init-config` names: send the endpoint each task's beginning and exit."""
    # Fields that a release does not know make it send nothing at all, silently: these have been there from the start.
    points = [{"name": "sentry/task_exit", "context_fields": ["group_id"]}, {"name": "sentry/clone"}]
    patience = {"retries": 25, "backoff": "1ms", "backoff_max": "50ms"}
    sink = {"name": "remote", "config": {"endpoint": str(endpoint), **patience}}
    return json.dumps({"trace_session": {"name": "Default", "points": points, "sinks": [sink]}})


def build(
    runtime: Startable, *, most: SandboxLimits, image: Path, empty_root: Path, disk_bytes: int
) -> dict[str, object]:
    """The specification for `config.json`.

    `empty_root` is an empty folder that the specification must name although the root is the image. Processes and open
    files are the most that any program may get: the starter inside lowers them to the program's own.
    """
    limits = {
        "RLIMIT_NPROC": most.processes,
        "RLIMIT_NOFILE": most.open_files,
        "RLIMIT_FSIZE": file_size_bound(disk_bytes),
        "RLIMIT_CORE": 0,
    }
    return {
        "ociVersion": "1.0.2",
        "hostname": HOSTNAME,
        "root": {"path": str(empty_root), "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": SANDBOX_UID, "gid": SANDBOX_UID},
            "args": starter_command(runtime),
            "env": [f"{name}={value}" for name, value in environment(runtime).items()],
            "cwd": WORK_DIR,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "noNewPrivileges": True,
            # When the machine as a whole runs out of memory, a sandbox goes before any service of the machine.
            "oomScoreAdj": 1000,
            "rlimits": [{"type": name, "hard": value, "soft": value} for name, value in limits.items()],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            *(_tmpfs(folder, disk_bytes) for folder in TMPFS_FOLDERS),
        ],
        "annotations": {
            "dev.gvisor.spec.rootfs.source": str(image),
            "dev.gvisor.spec.rootfs.type": "erofs",
        },
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": list(_DENIED_SYSCALLS), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM}],
            },
        },
    }


def file_size_bound(disk_bytes: int) -> int:
    """The most that one file may hold: beyond what fits, so that the disk's own bound is met first."""
    return 2 * disk_bytes


def _tmpfs(destination: str, size: int) -> dict[str, object]:
    options = ["nosuid", "nodev", "mode=1777", f"size={size}"]
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}

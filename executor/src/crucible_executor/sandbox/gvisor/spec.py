"""The OCI specification of a sandbox. Nothing of a caller's reaches it: it depends on runtime and disk size alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from crucible_executor.sandbox.runtimes import LauncherKind

SANDBOX_UID: Final = 65534
WORK_DIR: Final = "/work"
CHANNEL_FD: Final = 3
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_LAUNCHER_ARGS: Final[dict[LauncherKind, list[str]]] = {
    "python": ["/usr/bin/python3", "-I", "-S", "-B", "/usr/lib/crucible/python.py"],
    "sh": ["/bin/sh", "/usr/lib/crucible/sh.sh"],
}

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


def build(
    launcher: LauncherKind, *, image: Path, empty_root: Path, disk_bytes: int, processes: int, open_files: int
) -> dict[str, object]:
    """The specification for `config.json`.

    `empty_root` is an empty folder that the specification must name although the root is the image. `processes` and
    `open_files` are the most that any program may get: the launcher lowers them to the program's own.
    """
    limits = {"RLIMIT_NPROC": processes, "RLIMIT_NOFILE": open_files, "RLIMIT_FSIZE": 2 * disk_bytes, "RLIMIT_CORE": 0}
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": str(empty_root), "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": SANDBOX_UID, "gid": SANDBOX_UID},
            "args": _LAUNCHER_ARGS[launcher],
            "env": [f"PATH={PATH}", "LANG=C.UTF-8"],
            "cwd": WORK_DIR,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "noNewPrivileges": True,
            # When the machine as a whole runs out of memory, a sandbox goes before any service of the machine.
            "oomScoreAdj": 1000,
            "rlimits": [{"type": name, "hard": value, "soft": value} for name, value in limits.items()],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            _tmpfs("/dev/shm", disk_bytes),  # noqa: S108 - a folder inside the sandbox
            _tmpfs("/tmp", disk_bytes),  # noqa: S108 - same
            _tmpfs(WORK_DIR, disk_bytes),
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


def _tmpfs(destination: str, size: int) -> dict[str, object]:
    options = ["nosuid", "nodev", "mode=1777", f"size={size}"]
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}

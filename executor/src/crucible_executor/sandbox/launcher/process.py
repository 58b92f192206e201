"""Starting a launcher: the one thing that an executor does before it gives up its own privileges."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from crucible_executor.sandbox.launcher.config import LauncherConfig


@dataclass(frozen=True, slots=True)
class LauncherProcess:
    """A launcher and this end of the line to it; `gvisor.link` speaks over it."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    config: LauncherConfig


def start_launcher(config: LauncherConfig) -> LauncherProcess:
    """Start one; whether it could take its ground it says later, over the socket. Raises OSError.

    It gets nothing of this process's environment but where programs are found: no address, no secret.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "crucible_executor.sandbox.launcher", str(far.fileno()), config.dump()],
                pass_fds=(far.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "PYTHONPATH") if name in os.environ},
            )
        except BaseException:
            near.close()
            raise
    return LauncherProcess(process, near, config)

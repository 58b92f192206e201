"""The `runsc run` process of one sandbox: started inside the sandbox's control group, and gone when we are."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

REAP_TIMEOUT: Final = 10.0

_JOIN: Final = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 126; shift; done; shift; exec "$@"'
"""Joins the control groups named before `--`, then becomes the command after it: no limit comes late."""


class Supervisor:
    """Start it from a thread that lives as long as the executor: it is killed when that thread ends (`--pdeathsig`)."""

    def __init__(self, on_exit: Callable[[], None]) -> None:
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._exited = asyncio.Event()

    def start(
        self, command: Sequence[str], *, join: Sequence[Path], stdio: tuple[int, int, int], pass_fds: Sequence[int]
    ) -> None:
        """Start it; raises OSError. The descriptors stay the caller's to close."""
        wrapped = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            "/bin/sh",
            "-c",
            _JOIN,
            "join",
            *map(str, join),
            "--",
            *command,
        ]
        self._process = subprocess.Popen(
            wrapped,
            stdin=stdio[0],
            stdout=stdio[1],
            stderr=stdio[2],
            pass_fds=pass_fds,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Its process id; valid until it was reaped."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.returncode if self._process is not None else None

    def kill(self) -> None:
        """SIGKILL; one that is gone, or was never started, is no error."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and wait until it is reaped; raises TimeoutError when it does not go."""
        if self._pidfd >= 0:
            self.kill()
            await asyncio.wait_for(self._exited.wait(), REAP_TIMEOUT)

    def _reap(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._exited.set()
        self._on_exit()

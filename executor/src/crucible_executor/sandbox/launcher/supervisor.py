"""The `runsc run` process of one sandbox: started inside the sandbox's control group, and gone when the launcher is."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from crucible_executor.sandbox.launcher.loop import Loop

_JOIN: Final = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 126; shift; done; shift; exec "$@"'
"""Joins the control groups named before `--`, then becomes the command after it: no limit comes late."""


class Supervisor:
    """Start it from the main thread: it is killed when the thread that started it ends (`--pdeathsig`)."""

    def __init__(self, loop: Loop, on_exit: Callable[[int], None]) -> None:
        """`on_exit` gets its return code, negative for a signal, once it is reaped."""
        self._loop = loop
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

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
        self._loop.watch(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Its process id; valid until it was reaped."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """It was started and is not reaped yet."""
        return self._pidfd >= 0

    def kill(self) -> None:
        """SIGKILL; one that is gone, or was never started, is no error."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _reap(self) -> None:
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._on_exit(code)

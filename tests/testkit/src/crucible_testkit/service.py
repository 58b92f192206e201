"""A service of Crucible as a real process: `python -m crucible_x`."""

import asyncio
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from crucible_local.confinement import Privileges, confined
from crucible_testkit.child import START_TIMEOUT, STOP_TIMEOUT, Child, ChildError

POLL_SECONDS = 0.05


class ServiceProcess:
    """One service, its settings by environment variables, its output in `log`; an async context manager.

    `ready_url` is its /readyz; without one it counts as ready once started. The environment is ours plus `env`, less
    our own CRUCIBLE_* and OTEL_* variables.
    """

    def __init__(
        self,
        module: str,
        *,
        env: Mapping[str, str],
        log: Path,
        ready_url: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.module = module
        self.ready_url = ready_url
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CRUCIBLE_", "OTEL_"))}
        command = confined([sys.executable, "-m", module, *arguments], privileges=Privileges.ALL)
        self._child = Child(command, log=log, env=kept | {"PYTHONUNBUFFERED": "1", **env})

    async def __aenter__(self) -> "ServiceProcess":
        try:
            self.start()
            await self.wait_ready()
        except BaseException:
            self._child.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.terminate()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._child.running

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._child.exit_code

    @property
    def log_text(self) -> str:
        """All it wrote so far, over its restarts."""
        return self._child.log.read_text(errors="replace") if self._child.log.exists() else ""

    def start(self) -> None:
        """Starts it (again) and returns at once. From the main thread only."""
        self._child.start()

    async def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Waits for 200 from `ready_url`. Raises ChildError with the last it wrote."""
        deadline = time.monotonic() + timeout
        while self.ready_url is not None and not await asyncio.to_thread(_answers_ok, self.ready_url):
            if not self._child.running:
                raise ChildError(f"{self.module} ended with {self.exit_code}\n{self._child.tail()}")
            if time.monotonic() > deadline:
                raise ChildError(f"{self.module} was not ready within {timeout} s\n{self._child.tail()}")
            await asyncio.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self._child.kill()

    def pause(self) -> None:
        """SIGSTOP: it is alive, and deaf."""
        self._child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Ends `pause`."""
        self._child.send(signal.SIGCONT)

    async def terminate(self, timeout: float = STOP_TIMEOUT) -> int | None:
        """SIGTERM; gives its exit code. One that does not end in time is killed and ChildError raised."""
        self._child.send(signal.SIGTERM)
        await self.wait_ended(timeout)
        return self._child.exit_code

    async def wait_ended(self, timeout: float = STOP_TIMEOUT) -> None:
        """Waits until it has ended. One that does not is killed and ChildError raised."""
        deadline = time.monotonic() + timeout
        while self._child.running:
            if time.monotonic() > deadline:
                self._child.kill()
                raise ChildError(f"{self.module} did not end within {timeout} s\n{self._child.tail()}")
            await asyncio.sleep(POLL_SECONDS)

    async def restart(self) -> None:
        """SIGTERM, a start, and readiness."""
        await self.terminate()
        self.start()
        await self.wait_ready()


def _answers_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False

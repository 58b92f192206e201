"""The `crucible` command as people run it: a process of its own, in a pipe or on a terminal."""

import asyncio
import os
import pty
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Ended:
    """How a command ended. On a terminal `stdout` is what the terminal got, `stderr` included."""

    code: int
    stdout: bytes
    stderr: str


def environment(address: str, home: Path) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CRUCIBLE_", "GRPC_", "NO_COLOR"))
    }
    return kept | {
        "CRUCIBLE_SCHEDULER_URL": address,
        "CRUCIBLE_STORE_URL": address,
        "XDG_CONFIG_HOME": str(home),
        "TERM": "xterm",
        "COLUMNS": "200",
        "PYTHONWARNINGS": "error",
    }


class Command:
    """Runs it against one platform."""

    def __init__(self, address: str, home: Path) -> None:
        self.home = home
        self._environment = environment(address, home)

    async def start(
        self, *arguments: str, env: dict[str, str] | None = None, stdin: int = PIPE, stdout: int | IO[bytes] = PIPE
    ) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "crucible_client.cli", *arguments,
            stdin=stdin, stdout=stdout, stderr=PIPE, env=self._environment | (env or {}), cwd=self.home,
        )  # fmt: skip

    async def __call__(self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ended:
        return await end(await self.start(*arguments, env=env), stdin)

    async def on_terminal(self, *arguments: str, env: dict[str, str] | None = None) -> Ended:
        """All three streams are one terminal."""
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "crucible_client.cli", *arguments,
            stdin=theirs, stdout=theirs, stderr=theirs, env=self._environment | (env or {}), cwd=self.home,
        )  # fmt: skip
        os.close(theirs)
        try:
            content = await asyncio.to_thread(_read_terminal, ours)
            async with asyncio.timeout(60):
                return Ended(await process.wait(), content, "")
        finally:
            os.close(ours)


async def end(process: Process, stdin: bytes = b"") -> Ended:
    async with asyncio.timeout(60):
        stdout, stderr = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, stdout or b"", stderr.decode())


def _read_terminal(descriptor: int) -> bytes:
    content = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # EIO: the last process that had it open is gone
            return content
        if not part:
            return content
        content += part


def full_disk() -> IO[bytes]:
    """What takes no byte."""
    return Path("/dev/full").open("wb")


def lines(stdout: bytes) -> Sequence[str]:
    return stdout.decode().splitlines()

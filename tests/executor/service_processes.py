"""A driver of the sandbox port that runs programs as plain processes of this machine: for the service around it.

It keeps what the port promises of order, output, limits of time and output, and abandoning. It contains nothing, so it
is for programs of the tests alone. As a script it is an executor with such sandboxes.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from crucible_executor.app import main
from crucible_executor.sandbox.port import (
    Cause,
    Offerable,
    Outcome,
    OutputSink,
    Phases,
    Program,
    RuntimeOffer,
    SandboxAbandoned,
    SandboxFault,
    SandboxLimits,
    Stream,
    StreamSummary,
    Usage,
    UsageSample,
    Verdict,
)
from crucible_executor.settings import ExecutorSettings

IMAGE = "sha256:" + "ab" * 32
LIMITS = SandboxLimits(
    wall_time=10,
    cpu_time=10,
    memory_bytes=256 << 20,
    disk_bytes=64 << 20,
    output_bytes=1 << 20,
    processes=64,
    open_files=256,
)


class ProcessSandbox:
    """One process in a folder of its own."""

    def __init__(self, disk_bytes: int) -> None:
        self.id = secrets.token_hex(8)
        self.runtime = "python"
        self.image_digest = IMAGE
        self.disk_bytes = disk_bytes
        self.alive = True
        self._folder = Path(tempfile.mkdtemp(prefix="crucible-process-"))
        self._booted = datetime.now(UTC)
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[StreamSummary]] = []
        self._feeder: asyncio.Task[None] | None = None
        self._stopped: Outcome | None = None
        self._abandoned = False
        self._limits = LIMITS
        self._started_at = 0.0

    async def deliver(self, program: Program, limits: SandboxLimits, sink: OutputSink) -> None:
        for file in program.files:
            path = self._folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.data)
        self._limits = limits
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", program.entrypoint, *program.args,
            cwd=self._folder, env=dict(program.env), start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        if self._abandoned:
            process.kill()
            raise SandboxAbandoned
        self._started, self._started_at = datetime.now(UTC), time.monotonic()
        assert process.stdout is not None
        assert process.stderr is not None
        pipes = {Stream.STDOUT: process.stdout, Stream.STDERR: process.stderr}
        self._readers = [asyncio.create_task(self._read(stream, pipe, sink)) for stream, pipe in pipes.items()]
        self._feeder = asyncio.create_task(self._feed(process, program.stdin))

    async def observe(self) -> Verdict:
        process = self._process
        assert process is not None
        try:
            async with asyncio.timeout(self._limits.wall_time):
                await process.wait()
        except TimeoutError:
            self._stop(Outcome.WALL_TIME_EXCEEDED)
            await process.wait()
        finished, ended = datetime.now(UTC), time.monotonic()
        stdout, stderr = await asyncio.gather(*self._readers)
        if self._abandoned:
            raise SandboxAbandoned
        code = process.returncode
        assert code is not None
        own = Outcome.SIGNALED if code < 0 else Outcome.NONZERO_EXIT if code else Outcome.SUCCEEDED
        outcome = self._stopped or own
        return Verdict(
            outcome=outcome,
            findings=(outcome,),
            cause=Cause.LIMIT if self._stopped else Cause.PROGRAM,
            exit_code=code if code >= 0 else None,
            signal=signal.Signals(-code).name if code < 0 else None,
            usage=Usage(ended - self._started_at, 0.0, 1 << 20),
            stdout=stdout,
            stderr=stderr,
            phases=Phases(self._booted, self._booted, self._started, finished),
            image_digest=IMAGE,
        )

    def sample(self) -> UsageSample | None:
        return UsageSample(time.monotonic() - self._started_at, 0.0, 1 << 20)

    def abandon(self) -> None:
        self._abandoned = True
        self._kill()

    async def close(self) -> None:
        self.alive = False
        self._kill()
        if self._process is not None:
            await self._process.wait()
        for task in (*self._readers, self._feeder):
            if task is not None:
                await task
        shutil.rmtree(self._folder)

    def _stop(self, outcome: Outcome) -> None:
        self._stopped = outcome
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _read(self, stream: Stream, pipe: asyncio.StreamReader, sink: OutputSink) -> StreamSummary:
        size, digest, truncated = 0, hashlib.sha256(), False
        while data := await pipe.read(128 * 1024):
            kept = data[: self._limits.output_bytes - size]
            if kept:
                sink.write(stream, kept)
            size += len(kept)
            digest.update(kept)
            if len(kept) < len(data):
                truncated = True
                self._stop(Outcome.OUTPUT_EXCEEDED)
        return StreamSummary(size, digest.hexdigest(), truncated)

    async def _feed(self, process: asyncio.subprocess.Process, data: bytes) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(data)
            await process.stdin.drain()
            process.stdin.close()
            await process.stdin.wait_closed()
        except ConnectionError:
            return


class ProcessDriver:
    """Offers `python`; its boots take `boot_seconds`."""

    def __init__(self, *, boot_seconds: float = 0.0) -> None:
        self.boot_seconds = boot_seconds
        self.open: set[ProcessSandbox] = set()

    async def boot(self, runtime: str, *, disk_bytes: int) -> ProcessSandbox:
        if runtime != "python":
            raise SandboxFault(Cause.IMAGE, f"no image of {runtime}")
        await asyncio.sleep(self.boot_seconds)
        return ProcessSandbox(disk_bytes)

    async def offerable_runtimes(self) -> Offerable:
        offer = RuntimeOffer("python", "Python", "3", IMAGE, LIMITS, LIMITS, "main.py")
        return Offerable((offer,), {"ruby": "no image of ruby"})


@asynccontextmanager
async def open_processes(_settings: ExecutorSettings) -> AsyncGenerator[ProcessDriver]:
    yield ProcessDriver()


if __name__ == "__main__":
    main(open_processes)

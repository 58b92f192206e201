"""How many fresh sandboxes a second, beside a bare loop of `runsc run` that has as many at once, turn by turn."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from bench.baseline import BareRunsc
from bench.latency import EXPECTED, PROGRAM, Submitter
from bench.report import Report
from crucible_executor.sandbox.gvisor.driver import GvisorDriver
from crucible_executor.sandbox.port import Program, ProgramFile, SandboxLimits, Stream
from crucible_executor.sandbox.run import run_program

ROUNDS = 4
HELLO = Program("python", (ProgramFile("main.py", PROGRAM.encode()),))


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, stream: Stream, data: bytes) -> None:
        """See `OutputSink`."""


async def measure_driver(
    report: Report, driver: GvisorDriver, limits: SandboxLimits, bare: BareRunsc, *, count: int, parallel: int
) -> None:
    """The executor's driver alone."""
    with ThreadPoolExecutor(parallel) as threads:
        loop = asyncio.get_running_loop()

        async def by_hand() -> None:
            await loop.run_in_executor(threads, bare.run, EXPECTED.encode())

        async def ours() -> None:
            await run_program(driver, HELLO, limits, Nowhere())

        await _compare(report, "executor alone", ours, by_hand, count=count, parallel=parallel)


async def measure_stack(report: Report, address: str, bare: BareRunsc, *, count: int, parallel: int) -> None:
    """The whole of it, over REST, with so many submits in flight."""
    with ThreadPoolExecutor(parallel) as threads:
        loop = asyncio.get_running_loop()
        submitters = [Submitter(address) for _ in range(parallel)]

        async def by_hand() -> None:
            await loop.run_in_executor(threads, bare.run, EXPECTED.encode())

        async def ours() -> None:
            submitter = submitters.pop()
            await loop.run_in_executor(threads, submitter.run)
            submitters.append(submitter)

        await _compare(report, "whole stack over REST", ours, by_hand, count=count, parallel=parallel)
        for submitter in submitters:
            submitter.close()


async def _compare(
    report: Report,
    name: str,
    ours: Callable[[], Awaitable[None]],
    bare: Callable[[], Awaitable[None]],
    *,
    count: int,
    parallel: int,
) -> None:
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        mine.append(await _rate(count // ROUNDS, parallel, ours))
        theirs.append(await _rate(count // ROUNDS, parallel, bare))
    report.heading(f"fresh sandboxes a second, {parallel} at once: {name}")
    report.figure("  crucible", statistics.median(mine))
    report.figure("  bare loop of runsc run, same flags, specification and image", statistics.median(theirs))
    ratio = statistics.median(one / other for one, other in zip(mine, theirs, strict=True))
    report.figure(f"  crucible / bare loop, {name}", ratio, "wanted: 0.95 or more")


async def _rate(count: int, parallel: int, run: Callable[[], Awaitable[None]]) -> float:
    """Runs a second, so many at once."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await run()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(parallel)))
    return count / (time.perf_counter() - began)

"""How many fresh sandboxes a second, beside a bare loop of `runsc run` that has as many at once, turn by turn.

A turn of ours begins and ends with a full pool, so that no more sandboxes are used in it than are made.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from bench.baseline import BareRunsc
from bench.latency import EXPECTED, PROGRAM, Client, Submitter
from bench.processes import until_full
from bench.report import Report
from crucible_executor.sandbox.port import Program, ProgramFile, SandboxDriver, SandboxLimits, Stream
from crucible_executor.sandbox.run import run_program

ROUNDS = 6
HELLO = Program("python", (ProgramFile("main.py", PROGRAM.encode()),))
Full = Callable[[], Awaitable[None]]
"""Waits until the pool is."""


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, stream: Stream, data: bytes) -> None:
        """See `OutputSink`."""


async def measure_executor(
    report: Report,
    driver: SandboxDriver,
    limits: SandboxLimits,
    bare: BareRunsc,
    *,
    full: Full,
    count: int,
    parallel: int,
) -> None:
    """The executor's sandboxes alone; `full` waits for their pool to be."""
    with ThreadPoolExecutor(parallel) as threads:
        loop = asyncio.get_running_loop()

        async def by_hand() -> None:
            await loop.run_in_executor(threads, bare.run, EXPECTED.encode())

        async def ours() -> None:
            await run_program(driver, HELLO, limits, Nowhere())

        wanted = "wanted: 0.95 or more"
        await _compare(report, "executor alone", ours, by_hand, full, count=count, parallel=parallel, wanted=wanted)


async def measure_stack(report: Report, client: Client, bare: BareRunsc, *, count: int, parallel: int) -> None:
    """The whole of it, over REST, with so many submits in flight."""
    with ThreadPoolExecutor(parallel) as threads:
        loop = asyncio.get_running_loop()
        submitters = [Submitter(client.stack.address) for _ in range(parallel)]

        async def by_hand() -> None:
            await loop.run_in_executor(threads, bare.run, EXPECTED.encode())

        async def ours() -> None:
            submitter = submitters.pop()
            await loop.run_in_executor(threads, submitter.run)
            submitters.append(submitter)

        async def full() -> None:
            await loop.run_in_executor(threads, until_full, client.executor, client.pool)

        await _compare(report, "whole stack over REST", ours, by_hand, full, count=count, parallel=parallel)
        for submitter in submitters:
            submitter.close()


async def _compare(
    report: Report,
    name: str,
    ours: Callable[[], Awaitable[None]],
    bare: Callable[[], Awaitable[None]],
    full: Full,
    *,
    count: int,
    parallel: int,
    wanted: str = "",
) -> None:
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        await full()
        mine.append(await _rate(count // ROUNDS, parallel, ours, full))
        theirs.append(await _rate(count // ROUNDS, parallel, bare, _nothing))
    report.heading(f"fresh sandboxes a second, {parallel} at once: {name}")
    report.figure("  crucible", statistics.median(mine))
    report.figure("  bare loop of runsc run, same flags, specification and image", statistics.median(theirs))
    ratio = statistics.median(one / other for one, other in zip(mine, theirs, strict=True))
    report.figure(f"  crucible / bare loop, {name}", ratio, wanted)


async def _nothing() -> None:
    """A bare loop keeps nothing ready."""


async def _rate(count: int, parallel: int, run: Callable[[], Awaitable[None]], last: Full) -> float:
    """Runs a second, so many at once, with what has to be done at the end."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await run()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(parallel)))
    await last()
    return count / (time.perf_counter() - began)

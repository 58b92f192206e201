"""`python -m bench soak`: runs of every kind in a row, and what they leave behind in the executor and on the machine.

Real sandboxes through the pool. Ends with each figure's growth; exit code 1 when one grew over its bound, or when a run
did not end as it must.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.footprint import ALLOWANCES, Footprint, Ground, Growth, growth
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, open_driver
from crucible_executor.sandbox.image import DEFAULT_IMAGES_DIR, ImageStore
from crucible_executor.sandbox.pool import SandboxPool, open_pool
from crucible_executor.sandbox.port import (
    Outcome,
    Program,
    ProgramFile,
    SandboxAbandoned,
    SandboxDriver,
    SandboxLimits,
    Stream,
)
from crucible_executor.sandbox.run import run_program

MIB: Final = 1024 * 1024
LIMITS: Final = SandboxLimits(
    wall_time=30,
    cpu_time=30,
    memory_bytes=256 * MIB,
    disk_bytes=64 * MIB,
    output_bytes=MIB,
    processes=64,
    open_files=256,
)
POOL_SIZE: Final = 2
SETTLE_SECONDS: Final = 100.0
"""A look at the figures waits so long at most for every sandbox of a run to be gone and the pool to be full."""
BOOT_TIMEOUT: Final = 90.0
"""Boots ahead of a program give way to whatever else the machine does, which on a shared one is a lot."""

Run = Callable[[SandboxDriver], Awaitable[str]]
"""One run; what it ended as, by the name of an outcome or of an end without one."""


class Discarded:
    """A sink that keeps nothing."""

    def write(self, stream: Stream, data: bytes) -> None:
        """See `OutputSink`."""


def ends(source: str, runtime: str = "python", **limits: float) -> Run:
    """A program that is run to its verdict."""
    program = made(source, runtime)
    chosen = replace(LIMITS, **limits)  # pyright: ignore[reportArgumentType] - the table below names fields of the dataclass

    async def run(driver: SandboxDriver) -> str:
        return (await run_program(driver, program, chosen, Discarded())).outcome.value

    return run


def made(source: str, runtime: str = "python") -> Program:
    """A program of one file."""
    return Program(runtime, (ProgramFile({"python": "main.py", "bash": "main.sh"}[runtime], source.encode()),))


SLEEPER: Final = made("import time\ntime.sleep(1000)")


async def abandoned(driver: SandboxDriver) -> str:
    """A program that is given up while it runs, as for an evaluation that was cancelled."""
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    try:
        await sandbox.deliver(SLEEPER, LIMITS, Discarded())
        asyncio.get_running_loop().call_later(random.uniform(0, 0.05), sandbox.abandon)
        await sandbox.observe()
    except SandboxAbandoned:
        return "abandoned"
    finally:
        await sandbox.close()
    return "ran"


async def unused(driver: SandboxDriver) -> str:
    """A sandbox that is taken and never gets a program."""
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    await sandbox.close()
    return "unused"


async def cancelled(driver: SandboxDriver) -> str:
    """A run whose task is cancelled in whatever phase it is."""
    task = asyncio.create_task(run_program(driver, SLEEPER, LIMITS, Discarded()), name="cancelled run")
    await asyncio.sleep(random.uniform(0, 0.2))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return "cancelled" if task.cancelled() else "ran"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of run, how it must end, and how many of a round are of it."""

    name: str
    run: Run
    end: str
    share: int = 1


FORKS = "import os, time\nfor _ in range(5):\n    if os.fork() == 0: time.sleep(100)"
FLOOD = "import sys\nwhile True: sys.stdout.write('x' * 10000)"
KINDS: Final = (
    Kind("python", ends("print('hello')"), Outcome.SUCCEEDED, share=8),
    Kind("bash", ends("echo hello", "bash"), Outcome.SUCCEEDED, share=2),
    Kind("another disk, so a cold boot", ends("print(1)", disk_bytes=32 * MIB), Outcome.SUCCEEDED),
    Kind("exit code", ends("raise SystemExit(3)"), Outcome.NONZERO_EXIT),
    Kind("signal", ends("import os; os.abort()"), Outcome.SIGNALED),
    Kind("children left behind", ends(FORKS), Outcome.SUCCEEDED),
    Kind("wall time", ends("import time; time.sleep(100)", wall_time=0.3), Outcome.WALL_TIME_EXCEEDED),
    Kind("cpu time", ends("while True: pass", cpu_time=0.2), Outcome.CPU_TIME_EXCEEDED),
    Kind("memory", ends("x = bytearray(1 << 30)", memory_bytes=48 * MIB), Outcome.MEMORY_EXCEEDED),
    Kind("output", ends(FLOOD, output_bytes=100_000), Outcome.OUTPUT_EXCEEDED),
    Kind("abandoned", abandoned, "abandoned"),
    Kind("never used", unused, "unused"),
    Kind("cancelled", cancelled, "cancelled"),
)


def order(runs: int) -> list[Kind]:
    """So many runs, every kind at its share, shuffled within each round."""
    whole = [kind for kind in KINDS for _ in range(kind.share)]
    chosen: list[Kind] = []
    while len(chosen) < runs:
        chosen += random.sample(whole, len(whole))
    return chosen[:runs]


async def settled(pool: SandboxPool) -> None:
    """Wait until every sandbox handed out is gone and the pool is full: then two moments compare."""
    async with asyncio.timeout(SETTLE_SECONDS):
        while any(count < POOL_SIZE for count in pool.waiting.values()):  # noqa: ASYNC110 - the pool sets no event
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)  # the last boot's own odds and ends


async def soak(images: Path, runs: int, every: int, parallel: int) -> tuple[list[Footprint], list[str]]:
    """The looks, the first before any run, and the runs that ended otherwise than they must."""
    name = f"crucible-soak-{secrets.token_hex(4)}"
    config = GvisorConfig(
        images_dir=images, state_root=Path("/run") / name, cgroup_parent=name, boot_timeout=BOOT_TIMEOUT
    )
    ground = Ground(config.state_root, config.cgroup_parent)
    seen: list[Footprint] = []
    wrong: list[str] = []
    ended = Counter[str]()
    try:
        async with (
            open_driver(config, ImageStore(images)) as driver,
            open_pool(driver, size=POOL_SIZE) as pool,
        ):
            pool.keep(dict.fromkeys(("python", "bash"), LIMITS.disk_bytes))
            await settled(pool)
            seen.append(Footprint.now(ground, 0))
            print(heading())
            print(row(seen[-1], 0), flush=True)
            planned = order(runs)
            for first in range(0, runs, every):
                part = planned[first : first + every]
                left = iter(part)
                began = time.perf_counter()
                await asyncio.gather(*(_work(pool, left, wrong, ended) for _ in range(parallel)))
                rate = len(part) / (time.perf_counter() - began)
                await settled(pool)
                seen.append(Footprint.now(ground, first + len(part)))
                print(row(seen[-1], rate), flush=True)
    finally:
        shutil.rmtree(config.state_root, ignore_errors=True)
    print("\nended: " + ", ".join(f"{end} {count}" for end, count in sorted(ended.items())))
    return seen, wrong


async def _work(pool: SandboxPool, part: Iterator[Kind], wrong: list[str], ended: Counter[str]) -> None:
    for kind in part:
        end = await kind.run(pool)
        ended[end] += 1
        if end != kind.end:
            wrong.append(f"{kind.name}: ended {end}, not {kind.end}")


COLUMNS: Final[Sequence[tuple[str, Callable[[Footprint], object]]]] = (
    ("MiB", lambda each: f"{each.memory_kib / 1024:.1f}"),
    ("launch. MiB", lambda each: f"{each.launcher_kib / 1024:.1f}"),
    ("objects", lambda each: each.objects),
    ("fds", lambda each: each.descriptors),
    ("threads", lambda each: each.threads),
    ("processes", lambda each: each.processes),
    ("zombies", lambda each: each.zombies),
    ("in groups", lambda each: each.sandbox_processes),
    ("cgroups", lambda each: each.cgroups),
    ("mounts", lambda each: each.mounts),
    ("files", lambda each: each.files),
)


def heading() -> str:
    """The table's first line."""
    return f"{'runs':>6}{'runs/s':>8}" + "".join(f"{name:>12}" for name, _ in COLUMNS)


def row(seen: Footprint, rate: float) -> str:
    """One look, and how many runs a second there were before it."""
    return f"{seen.runs:6}{rate:8.1f}" + "".join(f"{figure(seen)!s:>12}" for _, figure in COLUMNS)


def verdict(figure: Growth) -> str:
    """One figure's line."""
    bound = ALLOWANCES[figure.name].over(figure.runs)
    word = "ok" if figure.allowed else "GREW"
    return (
        f"{figure.name.replace('_', ' '):20}{figure.before:10} -> {figure.after:<10}"
        f"{figure.per_thousand:+10.1f} per 1,000 runs   at most {bound:+.0f} over these {figure.runs}: {word}"
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the soak and prints it."""
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="runs in all (default 2000)")
    parser.add_argument("--every", type=int, default=0, help="look after so many (default: a twentieth, 20 at least)")
    parser.add_argument("--parallel", type=int, default=2, help="runs at once (default 2)")
    parser.add_argument("--images", type=Path, default=DEFAULT_IMAGES_DIR)
    chosen = parser.parse_args(arguments)
    every = chosen.every or max(20, chosen.runs // 20)
    if chosen.runs < 3 * every:
        parser.error("growth shows over three looks at least")
    seen, wrong = asyncio.run(soak(chosen.images, chosen.runs, every, chosen.parallel))
    figures = growth(seen)
    print(*map(verdict, figures), sep="\n")
    if wrong:
        print(f"\n{len(wrong)} runs did not end as they must:", *wrong[:20], sep="\n  ")
    grown = [figure.name.replace("_", " ") for figure in figures if not figure.allowed]
    print(f"\nverdict: {'grown: ' + ', '.join(grown) if grown else 'nothing grew over its bound'}")
    return 1 if grown or wrong else 0

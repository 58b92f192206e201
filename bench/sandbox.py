"""`python -m bench sandbox`: the executor's sandboxes alone, beside bare `runsc run` in the same invocation."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.baseline import BareRunsc, directory_root, require_tools
from bench.latency import EXPECTED, PROGRAM
from bench.percentiles import HEADER, line, percentile
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.image import DEFAULT_IMAGES_DIR, ImageStore
from crucible_executor.sandbox.pool import SandboxPool, open_pool
from crucible_executor.sandbox.port import Program, ProgramFile, SandboxDriver, SandboxLimits, Stream
from crucible_executor.sandbox.run import run_program

COMMAND = ["/usr/bin/python3", "-c", PROGRAM]
HELLO = Program("python", (ProgramFile("main.py", PROGRAM.encode()),))
IDLE_SECONDS = 5.0
POOL_SIZE = 2


class FirstByte:
    """Keeps output, and when it began."""

    def __init__(self) -> None:
        self.at = 0.0
        self.data = b""

    def write(self, stream: Stream, data: bytes) -> None:
        """See `OutputSink`."""
        self.at = self.at or time.perf_counter()
        self.data += data


class Phases:
    """Seconds of each phase, run by run."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def add(self, **phases: float) -> None:
        """One run's."""
        for name, seconds in phases.items():
            self.rows.setdefault(name, []).append(seconds)


async def timed(driver: SandboxDriver, limits: SandboxLimits, phases: Phases) -> float:
    """One run from claim to verdict; raises when the program did not print what it should."""
    sink = FirstByte()
    began = time.perf_counter()
    sandbox = await driver.boot("python", disk_bytes=limits.disk_bytes)
    try:
        claimed = time.perf_counter()
        await sandbox.deliver(HELLO, limits, sink)
        delivered = time.perf_counter()
        await sandbox.observe()
        judged = time.perf_counter()
    finally:
        before = time.perf_counter()
        await sandbox.close()
        closing = time.perf_counter() - before
    if sink.data != EXPECTED.encode():
        raise RuntimeError(f"the program printed {sink.data!r}")
    phases.add(
        claim=claimed - began,
        deliver=delivered - claimed,
        first_byte=sink.at - delivered,
        verdict=judged - sink.at,
        close=closing,
    )
    return judged - began


async def full(pool: SandboxPool) -> None:
    """Wait until the pool is."""
    while pool.waiting.get("python", 0) < POOL_SIZE:  # noqa: ASYNC110 - the pool sets no event for others
        await asyncio.sleep(0.005)


async def rate(count: int, parallel: int, run: Callable[[], Awaitable[object]]) -> float:
    """Runs a second, so many at once."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await run()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(parallel)))
    return count / (time.perf_counter() - began)


async def idle_share(pool: SandboxPool, driver: GvisorDriver) -> float:
    """Share of one core that a full pool takes."""
    await full(pool)
    before = sum(each.cpu_seconds() for each in driver.sandboxes)
    await asyncio.sleep(IDLE_SECONDS)
    return (sum(each.cpu_seconds() for each in driver.sandboxes) - before) / IDLE_SECONDS


async def measure(images: Path, runs: int, parallel: int) -> None:
    """Everything, printed."""
    name = f"crucible-bench-{secrets.token_hex(4)}"
    config = GvisorConfig(images_dir=images, state_root=Path("/run") / name, cgroup_parent=name)
    store = ImageStore(images)
    image, path = store.find("python")
    limits = image.definition.limits.default.as_limits()
    warm, cold, drained, bare = Phases(), Phases(), Phases(), list[float]()
    totals: dict[str, list[float]] = {"warm": [], "cold": [], "drained pool": []}
    with directory_root(path) as root, ThreadPoolExecutor(parallel) as threads:
        by_hand = BareRunsc(root, COMMAND)
        own_flags = BareRunsc(root, COMMAND, flags=OWN_FLAGS, annotations=erofs(path))
        loop = asyncio.get_running_loop()
        async with open_driver(config, store) as driver:
            async with open_pool(driver, size=POOL_SIZE) as pool:
                pool.keep({"python": limits.disk_bytes})
                for _ in range(runs):
                    await full(pool)
                    await asyncio.sleep(0.05)
                    totals["warm"].append(await timed(pool, limits, warm))
                    await full(pool)
                    bare.append(await asyncio.to_thread(by_hand.run, EXPECTED.encode()))
                for _ in range(runs):
                    totals["drained pool"].append(await timed(pool, limits, drained))
                share = await idle_share(pool, driver)
            totals["cold"] += [await timed(driver, limits, cold) for _ in range(runs // 2)]
            ours = await rate(2 * runs, parallel, lambda: run_program(driver, HELLO, limits, FirstByte()))
        theirs = await rate(2 * runs, parallel, lambda: loop.run_in_executor(threads, own_flags.run, EXPECTED.encode()))
    shutil.rmtree(config.state_root, ignore_errors=True)
    report(bare, totals, warm)
    print(f"\nbare p50 / warm p50: {percentile(bare, 0.5) / percentile(totals['warm'], 0.5):.1f}")
    print(f"warm p99 / p50: {percentile(totals['warm'], 0.99) / percentile(totals['warm'], 0.5):.2f}")
    print(f"fresh sandboxes: {ours:.1f}/s, bare loop with the same flags {theirs:.1f}/s, ratio {ours / theirs:.2f}")
    print(f"idle pool of {POOL_SIZE}: {share * 100:.2f} % of one core")


def report(bare: Sequence[float], totals: dict[str, list[float]], warm: Phases) -> None:
    """The table."""
    print(HEADER)
    print(line("bare cold runsc run, by hand", bare))
    for name, seconds in totals.items():
        print(line(f"{name}, claim to verdict", seconds))
    for name, seconds in warm.rows.items():
        print(line(f"  warm: {name.replace('_', ' ')}", seconds))


OWN_FLAGS = (
    "--platform=systrap",
    "--network=none",
    "--directfs=false",
    "--overlay2=none",
    "--ignore-cgroups=true",
    "--oci-seccomp=true",
)


def erofs(image: Path) -> dict[str, str]:
    """The annotations that make an image the root."""
    return {"dev.gvisor.spec.rootfs.source": str(image), "dev.gvisor.spec.rootfs.type": "erofs"}


def main(arguments: Sequence[str]) -> int:
    """Runs the measurement and prints it."""
    parser = argparse.ArgumentParser(prog="python -m bench sandbox", description=__doc__)
    parser.add_argument("--runs", type=int, default=40, help="counted runs of each (default 40)")
    parser.add_argument("--parallel", type=int, default=2, help="at once, for the rates (default 2)")
    parser.add_argument("--images", type=Path, default=DEFAULT_IMAGES_DIR)
    chosen = parser.parse_args(arguments)
    require_tools()
    sys.stderr.write("measuring; this takes about a minute ...\n")
    asyncio.run(measure(chosen.images, chosen.runs, chosen.parallel))
    return 0

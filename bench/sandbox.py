"""The executor's sandboxes alone, beside bare `runsc run`."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from functools import partial
from pathlib import Path

from bench.baseline import COMMAND, BareRunsc, directory_root, executors_own
from bench.latency import CALM_SECONDS, EXPECTED
from bench.percentiles import percentile
from bench.rates import HELLO, measure_executor
from bench.report import Report
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.image import ImageStore
from crucible_executor.sandbox.pool import SandboxPool, open_pool
from crucible_executor.sandbox.port import SandboxDriver, SandboxLimits, Stream

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


async def idle_share(pool: SandboxPool, driver: GvisorDriver) -> float:
    """Share of one core that a full pool takes."""
    await full(pool)
    before = sum(each.cpu_seconds() for each in driver.sandboxes)
    await asyncio.sleep(IDLE_SECONDS)
    return (sum(each.cpu_seconds() for each in driver.sandboxes) - before) / IDLE_SECONDS


async def measure(report: Report, images: Path, runs: int, parallel: int) -> None:
    """Everything."""
    name = f"crucible-bench-{secrets.token_hex(4)}"
    config = GvisorConfig(images_dir=images, state_root=Path("/run") / name, cgroup_parent=name)
    store = ImageStore(images)
    image, path = store.find("python")
    limits = image.definition.limits.default.as_limits()
    warm, ignored = Phases(), Phases()
    totals: dict[str, list[float]] = {"bare cold runsc run": [], "warm": [], "no pause": [], "cold boot": []}
    try:
        with directory_root(path) as root:
            by_hand = BareRunsc(root, COMMAND)
            own_flags = executors_own(root.parent, image, path)
            async with open_driver(config, store) as driver:
                async with open_pool(driver, size=POOL_SIZE) as pool:
                    pool.keep({"python": limits.disk_bytes})
                    for _ in range(runs):
                        await full(pool)
                        await asyncio.sleep(CALM_SECONDS)
                        totals["warm"].append(await timed(pool, limits, warm))
                        await full(pool)
                        bare = await asyncio.to_thread(by_hand.run, EXPECTED.encode())
                        totals["bare cold runsc run"].append(bare)
                    for _ in range(runs // 2):
                        totals["no pause"].append(await timed(pool, limits, ignored))
                    share = await idle_share(pool, driver)
                totals["cold boot"] += [await timed(driver, limits, ignored) for _ in range(runs // 2)]
                report.table("the executor's sandboxes alone, claim to verdict", totals)
                report.table("where the time of a warm one goes", warm.rows)
                bare_p50, warm_p50 = (percentile(totals[each], 0.5) for each in ("bare cold runsc run", "warm"))
                report.figure("bare p50 / warm p50, sandbox alone", bare_p50 / warm_p50)
                report.figure("warm p99 / warm p50, sandbox alone", percentile(totals["warm"], 0.99) / warm_p50)
                report.figure(f"idle pool of {POOL_SIZE} (% of one core)", share * 100, "wanted: under 1")
                async with open_pool(driver, size=POOL_SIZE) as pool:
                    pool.keep({"python": limits.disk_bytes})
                    await measure_executor(
                        report,
                        pool,
                        limits,
                        own_flags,
                        full=partial(full, pool),
                        count=2 * runs,
                        parallel=parallel,
                    )
    finally:
        shutil.rmtree(config.state_root, ignore_errors=True)

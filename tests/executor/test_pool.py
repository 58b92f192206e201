"""The pool: what is handed out, what is replaced, what is thrown away; on real sandboxes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import sys
import time
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crucible_executor.sandbox.cgroup_tree import open_cgroup_tree
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.leftovers import folder_name
from crucible_executor.sandbox.pool import COURTESY, PoolableDriver, SandboxPool, open_pool
from crucible_executor.sandbox.port import Cause, Outcome, Sandbox, SandboxAbandoned, SandboxFault
from crucible_executor.sandbox.run import run_program
from crucible_testkit.freezing import frozen_group

from .conftest import LIMITS, MIB, SLOWNESS, Collected, leftovers, program
from .test_sandbox_lifecycle import only_lasting, parent_of, sentry_pids, until

DISK = LIMITS.disk_bytes


@asynccontextmanager
async def filled(driver: GvisorDriver, *, size: int = 1, max_age: float = 600) -> AsyncGenerator[SandboxPool]:
    """A pool of Python sandboxes, full."""
    async with open_pool(driver, size=size, max_age=max_age) as pool:
        pool.keep({"python": DISK})
        await until(lambda: pool.waiting["python"] == size)
        yield pool


async def finish(sandbox: Sandbox, source: str = "print('ran')") -> bytes:
    sink = Collected()
    try:
        await sandbox.deliver(program(source), LIMITS, sink)
        assert (await sandbox.observe()).outcome is Outcome.SUCCEEDED
    finally:
        await sandbox.close()
    return sink.stdout


def frozen(config: GvisorConfig) -> list[int]:
    """The sentries that are frozen."""
    pids = sentry_pids(config)
    return [pid for pid in pids if frozen_group(pid) and parent_of(pid) not in pids]


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


async def test_one_that_is_ready_is_handed_out_and_replaced(driver: GvisorDriver) -> None:
    async with filled(driver, size=2) as pool:
        sandbox = await pool.boot("python", disk_bytes=DISK)
        assert pool.waiting["python"] == 1
        assert await finish(sandbox) == b"ran\n"
        await until(lambda: pool.waiting["python"] == 2)
        assert (pool.claims.ready, pool.claims.cold) == (1, 0)


async def test_no_moment_passes_unseen(driver: GvisorDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time at which a sandbox may be replaced passes while the pool looks what it should do."""
    looks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + next(looks) * 0.4 * COURTESY)
    async with filled(driver, size=2) as pool:
        monkeypatch.setattr("crucible_executor.sandbox.pool.time", clock)
        assert await finish(await pool.boot("python", disk_bytes=DISK)) == b"ran\n"
        await until(lambda: pool.waiting["python"] == 2)


async def test_two_programs_never_share_a_sandbox(driver: GvisorDriver) -> None:
    source = (
        "import os; print(sorted(os.listdir('/work') + os.listdir('/tmp'))); open('/tmp/mine', 'w'); open('mine', 'w')"
    )
    identities: set[str] = set()
    async with filled(driver) as pool:
        for _ in range(6):
            sandbox = await pool.boot("python", disk_bytes=DISK)
            identities.add(sandbox.id)
            assert await finish(sandbox, source) == b"['main.py']\n"
        assert len(identities) == 6
        assert pool.claims.ready + pool.claims.booting + pool.claims.cold == 6


async def test_more_at_once_than_are_ready(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    async with filled(driver) as pool:
        sinks = [Collected() for _ in range(5)]
        verdicts = await asyncio.gather(*(run_program(pool, program("print(1)"), LIMITS, sink) for sink in sinks))
        assert {verdict.outcome for verdict in verdicts} == {Outcome.SUCCEEDED}
        assert {sink.stdout for sink in sinks} == {b"1\n"}
        assert pool.claims.ready >= 1
        assert pool.claims.cold >= 1
    assert only_lasting(sandbox_config)


async def test_a_boot_under_way_is_taken_over(driver: GvisorDriver) -> None:
    async with open_pool(driver, size=1) as pool:
        pool.keep({"python": DISK})
        await until(lambda: len(driver.sandboxes) == 1)
        assert await finish(await pool.boot("python", disk_bytes=DISK)) == b"ran\n"
        assert (pool.claims.booting, pool.claims.cold) == (1, 0)


async def test_a_boot_that_is_waited_for_keeps_no_other_from_beginning(driver: GvisorDriver) -> None:
    async with open_pool(driver, size=1, cores=1) as pool:
        pool.keep({"python": DISK})
        await until(lambda: len(driver.sandboxes) == 1)
        claim = asyncio.create_task(pool.boot("python", disk_bytes=DISK), name="claim")
        await until(lambda: len(driver.sandboxes) == 2)
        assert not claim.done()
        assert await finish(await claim) == b"ran\n"
        assert (pool.claims.booting, pool.claims.cold) == (1, 0)


async def test_a_boot_that_gives_way_may_take_long_until_somebody_waits_for_it(sandbox_config: GvisorConfig) -> None:
    config = replace(sandbox_config, boot_timeout=4.0 * SLOWNESS)
    groups = open_cgroup_tree(config.cgroup_parent, folder_name(config.instance))
    async with open_driver(config) as driver:
        slow, slow_and_wanted = [await driver.prepare("python", disk_bytes=DISK) for _ in range(2)]
        boots = [asyncio.create_task(each.boot(), name=each.id) for each in (slow, slow_and_wanted)]
        await until(lambda: len({parent_of(pid) for pid in sentry_pids(config)}) >= 2)
        for each in (slow, slow_and_wanted):
            each.freeze()
        slow_and_wanted.hurry()
        with pytest.raises(SandboxFault, match="not ready after"):
            await boots[1]
        assert not boots[0].done()
        groups.group(slow.id).thaw()
        await boots[0]
        assert await finish(slow) == b"ran\n"


async def test_who_is_cancelled_leaves_the_boot_to_the_pool(driver: GvisorDriver) -> None:
    async with open_pool(driver, size=1) as pool:
        pool.keep({"python": DISK})
        await until(lambda: len(driver.sandboxes) == 1)
        claim = asyncio.create_task(pool.boot("python", disk_bytes=DISK), name="claim")
        await asyncio.sleep(0.01)
        claim.cancel()
        await asyncio.wait([claim])
        assert claim.cancelled()
        await until(lambda: pool.waiting["python"] == len(driver.sandboxes) == 1)


class Failing:
    """A driver whose sandboxes made ahead fail to boot, and are not removed before it is allowed."""

    def __init__(self, driver: GvisorDriver) -> None:
        self.begun = asyncio.Event()
        self.allowed = asyncio.Event()
        self._driver = driver

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the driver has
        return getattr(self._driver, name)

    async def prepare(self, runtime: str, *, disk_bytes: int) -> Any:  # noqa: ANN401 - a sandbox
        sandbox = await self._driver.prepare(runtime, disk_bytes=disk_bytes)
        remove = sandbox.close

        async def boot() -> None:
            self.begun.set()
            await asyncio.sleep(0.1)
            raise SandboxFault(Cause.SANDBOX, "it does not boot")

        async def close() -> None:
            await self.allowed.wait()
            await remove()

        setattr(sandbox, "boot", boot)  # noqa: B010 - of this one sandbox
        setattr(sandbox, "close", close)  # noqa: B010 - same
        return sandbox


async def test_nobody_waits_for_the_removal_of_a_boot_that_failed(driver: GvisorDriver) -> None:
    failing = Failing(driver)
    async with open_pool(cast("PoolableDriver", failing), size=1) as pool:
        pool.keep({"python": DISK})
        await failing.begun.wait()
        assert await finish(await pool.boot("python", disk_bytes=DISK)) == b"ran\n"
        assert (pool.claims.booting, pool.claims.cold) == (0, 1)
        failing.allowed.set()


async def test_a_pool_that_keeps_none_forgets_what_has_ended(driver: GvisorDriver) -> None:
    async with open_pool(driver, size=0) as pool:
        seen: list[weakref.ref[Sandbox]] = []
        for _ in range(2):
            sandbox = await pool.boot("python", disk_bytes=DISK)
            seen.append(weakref.ref(sandbox))
            await finish(sandbox)
            del sandbox
        gc.collect()
        assert seen[0]() is None


async def test_another_disk_is_a_boot_of_its_own(driver: GvisorDriver) -> None:
    async with filled(driver) as pool:
        verdict = await run_program(pool, program("print(1)"), replace(LIMITS, disk_bytes=8 * MIB), Collected())
        assert verdict.outcome is Outcome.SUCCEEDED
        assert pool.claims.cold == 1
        assert pool.waiting["python"] == 1


async def test_one_that_waits_uses_no_cpu_and_has_the_time_of_day(
    driver: GvisorDriver, sandbox_config: GvisorConfig
) -> None:
    async with filled(driver) as pool:
        await until(lambda: frozen(sandbox_config))
        (sentry,) = frozen(sandbox_config)
        before = cpu_ticks(sentry)
        await asyncio.sleep(2)
        assert cpu_ticks(sentry) - before <= 1
        began = time.time()
        told = await finish(await pool.boot("python", disk_bytes=DISK), "import time; print(time.time())")
        assert began - 0.1 < float(told) < time.time() + 0.1


async def test_a_frozen_one_runs_when_it_is_claimed(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    sandbox = await driver.boot("python", disk_bytes=DISK)
    sandbox.freeze()
    await until(lambda: frozen(sandbox_config))
    assert await finish(sandbox) == b"ran\n"


async def test_a_program_is_not_told_that_its_sandbox_waited(driver: GvisorDriver) -> None:
    """SIGCONT to a sentry reaches the program: one that stops itself would go on."""
    source = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGCONT, lambda *_: print('told', flush=True))\n"
        "time.sleep(0.2)\n"
        "print('ran')"
    )
    async with filled(driver) as pool:
        for _ in range(6):
            await until(lambda: pool.waiting["python"] == 1)
            assert await finish(await pool.boot("python", disk_bytes=DISK), source) == b"ran\n"
        assert pool.claims.ready == 6


async def test_none_that_waits_burns_a_core_for_being_frozen_in_a_bad_moment(driver: GvisorDriver) -> None:
    """Boots on busy cores, so that a sandbox is often frozen while something in it calls on its kernel."""
    burners = [await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass") for _ in range(2)]
    try:
        sandboxes = [await driver.prepare(runtime, disk_bytes=DISK) for runtime in ("python", "bash") * 4]
        for sandbox in sandboxes:
            await sandbox.boot()
            sandbox.freeze()
    finally:
        for burner in burners:
            burner.kill()
            await burner.wait()
    used: list[float] = []

    def quiet() -> bool:
        before, used[:] = list(used), [sandbox.cpu_seconds() for sandbox in sandboxes]
        return used == before

    async with asyncio.timeout(30):
        while not quiet():  # noqa: ASYNC110 - only the kernel knows
            await asyncio.sleep(0.2)
    assert await finish(sandboxes[0]) == b"ran\n"


async def test_limits_hold_in_one_that_waited(driver: GvisorDriver) -> None:
    async with filled(driver) as pool:
        sink = Collected()
        limits = replace(LIMITS, memory_bytes=32 * MIB, processes=7, open_files=20)
        source = (
            "from resource import *; print(getrlimit(RLIMIT_NPROC), getrlimit(RLIMIT_NOFILE)); bytearray(160 << 20)"
        )
        verdict = await run_program(pool, program(source), limits, sink)
        assert (verdict.outcome, sink.stdout) == (Outcome.MEMORY_EXCEEDED, b"(7, 7) (20, 20)\n")
        await until(lambda: pool.waiting["python"] == 1)
        verdict = await run_program(pool, program("while True: pass"), replace(LIMITS, cpu_time=0.3), Collected())
        assert verdict.outcome is Outcome.CPU_TIME_EXCEEDED
        assert verdict.usage.cpu_time >= 0.3
        assert verdict.phases.ready < verdict.phases.started


async def test_time_runs_from_delivery(driver: GvisorDriver) -> None:
    async with filled(driver) as pool:
        await asyncio.sleep(0.5)
        verdict = await run_program(pool, program("print(1)"), LIMITS, Collected())
        assert verdict.usage.wall_time < 0.45
        assert verdict.usage.cpu_time < 0.2
        assert (verdict.phases.started - verdict.phases.ready).total_seconds() >= 0.5


async def test_what_is_too_old_is_replaced(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    async with filled(driver, max_age=1) as pool:
        await until(lambda: frozen(sandbox_config))
        first = frozen(sandbox_config)
        await until(lambda: frozen(sandbox_config) not in ([], first))
        assert pool.waiting["python"] <= 1


async def test_what_died_is_not_handed_out(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    async with filled(driver) as pool:
        await until(lambda: frozen(sandbox_config))
        (sentry,) = frozen(sandbox_config)
        group = frozen_group(sentry)
        os.kill(sentry, signal.SIGKILL)
        if group and (group / "freezer.state").exists():
            (group / "freezer.state").write_text("THAWED")  # as the kernel does for whom it kills for memory
        await until(lambda: not Path(f"/proc/{sentry}").exists())
        await asyncio.sleep(0.05)
        assert await finish(await pool.boot("python", disk_bytes=DISK)) == b"ran\n"
        await until(lambda: pool.waiting["python"] == 1)


async def test_one_that_waits_can_be_abandoned(driver: GvisorDriver) -> None:
    async with filled(driver) as pool:
        sandbox = await pool.boot("python", disk_bytes=DISK)
        sandbox.abandon()
        try:
            await sandbox.deliver(program("print(1)"), LIMITS, Collected())
        except SandboxAbandoned:
            pass
        else:
            raise AssertionError("it ran")
        await sandbox.close()


async def test_one_that_has_ended_stands_still_until_it_is_removed(
    driver: GvisorDriver, sandbox_config: GvisorConfig
) -> None:
    seen = False
    for _ in range(20):  # on busy cores a sandbox may be gone before anybody can stop it
        sandbox = await driver.boot("python", disk_bytes=DISK)
        try:
            await sandbox.deliver(program("print('ran')"), LIMITS, Collected())
            assert (await sandbox.observe()).outcome is Outcome.SUCCEEDED
            await asyncio.sleep(0.1)
            seen = bool(frozen(sandbox_config))
        finally:
            await sandbox.close()
        assert only_lasting(sandbox_config)
        if seen:
            break
    assert seen


async def test_a_frozen_one_can_be_closed(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    async with filled(driver, size=2):
        await until(lambda: len(frozen(sandbox_config)) == 2)
    assert only_lasting(sandbox_config)


async def test_closing_while_it_fills(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    for delay in (0, 0.02, 0.1):
        async with open_pool(driver, size=2) as pool:
            pool.keep({"python": DISK, "bash": DISK})
            await asyncio.sleep(delay)
        assert only_lasting(sandbox_config)


async def test_a_pool_of_none(driver: GvisorDriver) -> None:
    async with open_pool(driver, size=0) as pool:
        pool.keep({"python": DISK})
        assert await finish(await pool.boot("python", disk_bytes=DISK)) == b"ran\n"
        assert (pool.claims.cold, pool.waiting) == (1, {"python": 0})


async def test_every_runtime_that_is_offered_is_kept(driver: GvisorDriver) -> None:
    async with open_pool(driver, size=1) as pool:
        offered = {offer.name for offer in (await pool.offerable_runtimes()).offers}
        await until(lambda: pool.waiting == dict.fromkeys(offered, 1))
        verdict = await run_program(pool, program("echo $((1 + 1))", "bash"), LIMITS, sink := Collected())
        assert (verdict.outcome, sink.stdout) == (Outcome.SUCCEEDED, b"2\n")
        assert pool.claims.ready == 1


CHILD = """
import asyncio, sys
from pathlib import Path
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, open_driver
from crucible_executor.sandbox.pool import open_pool

async def main():
    config = GvisorConfig(images_dir=Path(sys.argv[1]), state_root=Path(sys.argv[2]), cgroup_parent=sys.argv[3])
    async with open_driver(config) as driver, open_pool(driver, size=2) as pool:
        pool.keep({"python": 1 << 26})
        while pool.waiting["python"] < 2:
            await asyncio.sleep(0.01)
        print("full", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_a_killed_executors_frozen_sandboxes_are_removed(sandbox_config: GvisorConfig) -> None:
    where = (str(sandbox_config.images_dir), str(sandbox_config.state_root), sandbox_config.cgroup_parent)
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *where, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    async with asyncio.timeout(60):
        assert await child.stdout.readline() == b"full\n"
    await until(lambda: len(frozen(sandbox_config)) == 2)
    child.kill()
    await child.wait()
    await until(lambda: leftovers(sandbox_config) == [])

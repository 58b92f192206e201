"""Ends that no program chose: cancelled, abandoned, killed from outside, a dead executor. Nothing is ever left."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crucible_executor.sandbox import leftovers as sweeping
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.gvisor.sandbox import GvisorSandbox
from crucible_executor.sandbox.image import INDEX_NAME, ImageStore
from crucible_executor.sandbox.port import (
    Cause,
    InvalidProgramError,
    Outcome,
    ProgramFile,
    SandboxAbandoned,
    SandboxFault,
    SandboxLimits,
    Stream,
)
from crucible_executor.sandbox.run import run_program

from .conftest import LIMITS, MIB, SLOWNESS, Collected, leftovers, open_descriptors, program

SLEEPER = program("print('up', flush=True)\nimport time\ntime.sleep(1000)")


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something that happens soon."""
    async with asyncio.timeout(seconds * SLOWNESS):
        while not condition():  # noqa: ASYNC110 - what is waited for is the machine's, it sets no event
            await asyncio.sleep(0.01)


def only_lasting(config: GvisorConfig) -> bool:
    """Of an open driver nothing of a sandbox is there: only its lock and its empty root."""
    (instance,) = [path for path in config.state_root.iterdir() if path.is_dir()]
    return {path.name for path in instance.iterdir()} == {"lock", "empty"}


async def running(driver: GvisorDriver, sink: Collected, limits: SandboxLimits = LIMITS) -> GvisorSandbox:
    sandbox = await driver.boot("python", disk_bytes=limits.disk_bytes)
    await sandbox.deliver(SLEEPER, limits, sink)
    await until(lambda: sink.stdout == b"up\n")
    return sandbox


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3])
async def test_a_run_that_is_cancelled_at_any_moment_leaves_nothing(
    driver: GvisorDriver, sandbox_config: GvisorConfig, delay: float
) -> None:
    task = asyncio.create_task(run_program(driver, SLEEPER, LIMITS, Collected()), name="run")
    await asyncio.sleep(delay)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert only_lasting(sandbox_config)


async def test_a_run_that_is_cancelled_twice_is_cleaned_up_all_the_same(
    driver: GvisorDriver, sandbox_config: GvisorConfig
) -> None:
    sink = Collected()
    task = asyncio.create_task(run_program(driver, SLEEPER, LIMITS, sink), name="run")
    await until(lambda: sink.stdout)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: only_lasting(sandbox_config))


async def test_a_waiting_sandbox_can_be_abandoned(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    assert sandbox.alive
    sandbox.abandon()
    assert not sandbox.alive
    with pytest.raises(SandboxAbandoned):
        await sandbox.deliver(SLEEPER, LIMITS, Collected())
    await sandbox.close()
    await sandbox.close()
    assert only_lasting(sandbox_config)


async def test_a_running_sandbox_can_be_abandoned(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    sandbox = await running(driver, Collected())
    observer = asyncio.create_task(sandbox.observe(), name="observe")
    await asyncio.sleep(0.05)
    sandbox.abandon()
    sandbox.abandon()
    with pytest.raises(SandboxAbandoned):
        await observer
    await sandbox.close()
    assert only_lasting(sandbox_config)


async def test_abandoning_after_the_verdict_changes_nothing(driver: GvisorDriver) -> None:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    await sandbox.deliver(program("print(1)"), LIMITS, Collected())
    verdict = await sandbox.observe()
    sandbox.abandon()
    await sandbox.close()
    assert verdict.outcome is Outcome.SUCCEEDED


async def test_a_sandbox_takes_one_program_and_one_watcher(driver: GvisorDriver) -> None:
    sink = Collected()
    sandbox = await running(driver, sink)
    with pytest.raises(RuntimeError):
        await sandbox.deliver(SLEEPER, LIMITS, sink)
    await sandbox.close()
    with pytest.raises(RuntimeError):
        await sandbox.observe()


async def test_limits_beyond_the_runtimes_and_another_disk_are_refused(driver: GvisorDriver) -> None:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    for broken in (replace(LIMITS, processes=513), replace(LIMITS, wall_time=0), replace(LIMITS, disk_bytes=1 << 20)):
        with pytest.raises(InvalidProgramError, match=r"^limits"):
            await sandbox.deliver(SLEEPER, broken, Collected())
    await sandbox.close()


def sentry_pids(config: GvisorConfig) -> list[int]:
    """The sentry of the one sandbox on a ground, and its stubs; not the `runsc run` before it."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"boot" in words and any(str(config.state_root).encode() in word for word in words):
                found.append(int(process.name))
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


async def test_a_sentry_killed_from_outside_is_a_fault_and_no_verdict(
    driver: GvisorDriver, sandbox_config: GvisorConfig
) -> None:
    sink = Collected()
    sandbox = await running(driver, sink)
    pids = sentry_pids(sandbox_config)
    assert pids
    os.kill(min(pids), signal.SIGKILL)
    with pytest.raises(SandboxFault) as caught:
        await sandbox.observe()
    assert caught.value.cause is Cause.SANDBOX
    await sandbox.close()
    assert sink.chunks == [(Stream.STDOUT, b"up\n")]
    assert only_lasting(sandbox_config)


async def test_a_sentry_killed_while_it_waits_is_noticed(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    os.kill(min(sentry_pids(sandbox_config)), signal.SIGKILL)
    await until(lambda: not sandbox.alive)
    with pytest.raises(SandboxFault) as caught:
        await sandbox.deliver(SLEEPER, LIMITS, Collected())
    assert caught.value.cause is Cause.SANDBOX
    await sandbox.close()


async def test_a_supervisor_killed_from_outside_takes_the_sandbox_with_it(
    driver: GvisorDriver, sandbox_config: GvisorConfig
) -> None:
    sandbox = await running(driver, Collected())
    os.kill(parent_of(min(sentry_pids(sandbox_config))), signal.SIGKILL)
    with pytest.raises(SandboxFault) as caught:
        await sandbox.observe()
    assert caught.value.cause is Cause.SANDBOX
    await sandbox.close()
    assert only_lasting(sandbox_config)


async def test_a_driver_that_closes_ends_what_still_runs(sandbox_config: GvisorConfig, images: ImageStore) -> None:
    async with open_driver(sandbox_config, images) as driver:
        await running(driver, Collected())
    assert leftovers(sandbox_config) == []


async def test_a_runtime_without_an_image(driver: GvisorDriver) -> None:
    with pytest.raises(SandboxFault, match="cobol") as caught:
        await driver.boot("cobol", disk_bytes=LIMITS.disk_bytes)
    assert caught.value.cause is Cause.IMAGE


async def test_a_machine_without_runsc(sandbox_config: GvisorConfig) -> None:
    with pytest.raises(SandboxFault, match="not installed") as caught:
        async with open_driver(replace(sandbox_config, runsc="runsc-that-is-not-here")):
            pytest.fail("it opened")
    assert caught.value.cause is Cause.INFRASTRUCTURE


@pytest.mark.parametrize("ground", ["a file", "read-only"])
async def test_a_state_folder_that_cannot_be_had(sandbox_config: GvisorConfig, tmp_path: Path, ground: str) -> None:
    (tmp_path / "file").write_text("in the way")
    root = tmp_path / "file" / "state" if ground == "a file" else Path("/proc/crucible")
    with pytest.raises(SandboxFault) as caught:
        async with open_driver(replace(sandbox_config, state_root=root)):
            pytest.fail("it opened")
    assert caught.value.cause is Cause.INFRASTRUCTURE


async def test_an_image_that_is_what_was_built_and_no_image(
    sandbox_config: GvisorConfig, images: ImageStore, tmp_path: Path
) -> None:
    """runsc fails with 128, as a program may: before there is a program it is a fault, and it is told why."""
    index = json.loads((images.folder / INDEX_NAME).read_text())
    broken = b"no file system at all" * 1000
    digest = hashlib.sha256(broken).hexdigest()
    (tmp_path / f"{digest}.erofs").write_bytes(broken)
    index["runtimes"]["python"]["digest"] = f"sha256:{digest}"
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    async with open_driver(replace(sandbox_config, images_dir=tmp_path)) as driver:
        with pytest.raises(SandboxFault) as caught:
            await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
        assert only_lasting(sandbox_config)
    assert caught.value.cause in (Cause.SANDBOX, Cause.IMAGE)
    assert caught.value.detail


async def test_a_delivery_that_is_cancelled_leaves_nothing(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    for steps in (0, 1, 2, 3, 5):
        sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
        delivery = asyncio.create_task(sandbox.deliver(SLEEPER, LIMITS, Collected()), name="deliver")
        for _ in range(steps):
            await asyncio.sleep(0)
        delivery.cancel()
        await asyncio.wait([delivery])
        await sandbox.close()
        assert only_lasting(sandbox_config)


async def test_a_run_that_is_cancelled_while_its_end_is_collected_leaves_nothing(
    driver: GvisorDriver, sandbox_config: GvisorConfig
) -> None:
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        sink = Collected()
        program_ends = program("print('up', flush=True)")
        task = asyncio.create_task(run_program(driver, program_ends, LIMITS, sink), name="run")
        await until(lambda sink=sink: sink.stdout)
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: only_lasting(sandbox_config))


@pytest.mark.parametrize(
    ("file_bytes", "memory_bytes"),
    [(1, LIMITS.memory_bytes // 2), (8 * MIB, LIMITS.memory_bytes)],
    ids=["while its limits are put in force", "while it is sent"],
)
async def test_abandoned_during_its_delivery(
    driver: GvisorDriver, sandbox_config: GvisorConfig, file_bytes: int, memory_bytes: int
) -> None:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    sleeper = replace(SLEEPER, files=(*SLEEPER.files, ProgramFile("data", bytes(file_bytes))))
    limits = replace(LIMITS, memory_bytes=memory_bytes)
    delivery = asyncio.create_task(sandbox.deliver(sleeper, limits, Collected()), name="deliver")
    await asyncio.sleep(0)
    sandbox.abandon()
    with pytest.raises(SandboxAbandoned):
        await delivery
    await sandbox.close()
    assert only_lasting(sandbox_config)


CHILD = """
import asyncio, sys
from pathlib import Path
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, open_driver
from crucible_executor.sandbox.port import Program, ProgramFile, SandboxLimits

class Sink:
    def write(self, stream, data):
        print(data.decode().strip(), flush=True)

async def main():
    images, state, cgroups, runsc, seconds = sys.argv[1:]
    config = GvisorConfig(
        images_dir=Path(images), state_root=Path(state), cgroup_parent=cgroups, runsc=runsc, boot_timeout=float(seconds)
    )
    async with open_driver(config) as driver:
        limits = SandboxLimits(60, 60, 1 << 28, 1 << 26, 1 << 20, 64, 256)
        waiting = await driver.boot("python", disk_bytes=limits.disk_bytes)
        sandbox = await driver.boot("python", disk_bytes=limits.disk_bytes)
        source = b"print('up'); import time; time.sleep(1000)"
        await sandbox.deliver(Program("python", (ProgramFile("main.py", source),)), limits, Sink())
        await sandbox.observe()

asyncio.run(main())
"""


async def test_an_executor_that_is_killed_leaves_nothing(sandbox_config: GvisorConfig) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(sandbox_config.images_dir),
        str(sandbox_config.state_root),
        sandbox_config.cgroup_parent,
        sandbox_config.runsc,
        str(sandbox_config.boot_timeout),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    async with asyncio.timeout(60 * SLOWNESS):
        assert await child.stdout.readline() == b"up\n"
    # A living executor's ground is not swept.
    assert await asyncio.to_thread(sweeping.sweep, sandbox_config.state_root, sandbox_config.cgroup_parent) == []
    assert len(sentry_pids(sandbox_config)) >= 2
    child.kill()
    await child.wait()
    # Its launcher sees that it is gone, and removes everything.
    await until(lambda: leftovers(sandbox_config) == [])


async def test_many_runs_leave_nothing_and_hold_nothing(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    await run_program(driver, program("print(1)"), LIMITS, Collected())
    before = open_descriptors()
    await asyncio.gather(*(run_program(driver, program("print(1)"), LIMITS, Collected()) for _ in range(8)))
    assert open_descriptors() <= before
    assert only_lasting(sandbox_config)

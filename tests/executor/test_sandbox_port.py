"""One suite for the port: every driver of sandboxes keeps what `crucible_executor.sandbox.port` promises.

A driver is added to `DRIVERS`; nothing here knows what it is made of.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest

from crucible_executor.sandbox.gvisor.driver import GvisorConfig, open_driver
from crucible_executor.sandbox.image import ImageStore
from crucible_executor.sandbox.pool import open_pool
from crucible_executor.sandbox.port import (
    Cause,
    InvalidProgramError,
    Outcome,
    Program,
    ProgramFile,
    SandboxAbandoned,
    SandboxDriver,
    SandboxFault,
    Stream,
)
from crucible_executor.sandbox.run import run_program

from .conftest import LIMITS, MIB, SLOWNESS, Collected, program

DISK = LIMITS.disk_bytes
SLEEPER = program("print('up', flush=True)\nimport time\ntime.sleep(1000)")


@asynccontextmanager
async def cold(config: GvisorConfig, images: ImageStore) -> AsyncGenerator[SandboxDriver]:
    """Boots when asked."""
    async with open_driver(config, images) as driver:
        yield driver


@asynccontextmanager
async def pooled(config: GvisorConfig, images: ImageStore) -> AsyncGenerator[SandboxDriver]:
    """Has them ready."""
    async with open_driver(config, images) as driver, open_pool(driver, size=2) as pool:
        pool.keep({"python": DISK})
        async with asyncio.timeout(60 * SLOWNESS):  # its boots give way to everything else on the machine
            while not pool.waiting["python"]:  # noqa: ASYNC110 - a pool sets no event
                await asyncio.sleep(0.01)
        yield pool


Opener = Callable[[GvisorConfig, ImageStore], AbstractAsyncContextManager[SandboxDriver]]
DRIVERS: dict[str, Opener] = {"cold": cold, "pooled": pooled}


@pytest.fixture(params=DRIVERS)
async def any_driver(
    request: pytest.FixtureRequest, sandbox_config: GvisorConfig, images: ImageStore
) -> AsyncGenerator[SandboxDriver]:
    """Each of them in its turn; after it, its ground must be empty."""
    async with DRIVERS[request.param](sandbox_config, images) as opened:
        yield opened


async def test_the_promises_of_a_run(any_driver: SandboxDriver) -> None:
    sandbox = await any_driver.boot("python", disk_bytes=DISK)
    sink = Collected()
    try:
        assert sandbox.alive
        assert (sandbox.runtime, sandbox.disk_bytes) == ("python", DISK)
        assert sandbox.image_digest.startswith("sha256:")
        assert sandbox.sample() is None
        source = "import sys; print('out', sys.argv, sys.stdin.read()); print('err', file=sys.stderr); sys.exit(7)"
        given = replace(program(source), args=("a b",), stdin=b"in")
        await sandbox.deliver(given, LIMITS, sink)
        verdict = await sandbox.observe()
        assert (sink.stdout, sink.stderr) == (b"out ['main.py', 'a b'] in\n", b"err\n")
        assert (verdict.outcome, verdict.findings) == (Outcome.NONZERO_EXIT, (Outcome.NONZERO_EXIT,))
        assert (verdict.cause, verdict.exit_code, verdict.signal) == (Cause.PROGRAM, 7, None)
        for summary, data in ((verdict.stdout, sink.stdout), (verdict.stderr, sink.stderr)):
            assert summary.size_bytes == len(data)
            assert summary.sha256 == hashlib.sha256(data).hexdigest()
            assert not summary.truncated
        assert verdict.image_digest == sandbox.image_digest
        phases = verdict.phases
        assert phases.booted <= phases.ready <= phases.started <= phases.finished
        used = verdict.usage
        assert used.wall_time > 0
        assert used.cpu_time > 0
        assert used.peak_memory_bytes > 0
        sandbox.abandon()  # after a verdict it changes nothing
    finally:
        await sandbox.close()
    await sandbox.close()
    assert not sandbox.alive


async def test_an_order_that_comes_too_early_or_twice_is_refused(any_driver: SandboxDriver) -> None:
    sandbox = await any_driver.boot("python", disk_bytes=DISK)
    try:
        with pytest.raises(RuntimeError):
            await sandbox.observe()
        await sandbox.deliver(SLEEPER, LIMITS, Collected())
        with pytest.raises(RuntimeError):
            await sandbox.deliver(SLEEPER, LIMITS, Collected())
    finally:
        await sandbox.close()
    with pytest.raises(RuntimeError):
        await sandbox.deliver(SLEEPER, LIMITS, Collected())


async def test_a_refused_program_leaves_the_sandbox_as_it_was(any_driver: SandboxDriver) -> None:
    sandbox = await any_driver.boot("python", disk_bytes=DISK)
    sink = Collected()
    try:
        refused = (
            (program("", "bash"), LIMITS),
            (Program("python", (), entrypoint="main.py"), LIMITS),
            (Program("python", (ProgramFile("../x", b""),), entrypoint="../x"), LIMITS),
            (program("print(1)"), replace(LIMITS, disk_bytes=DISK // 2)),
            (program("print(1)"), replace(LIMITS, processes=100_000)),
        )
        for broken, limits in refused:
            with pytest.raises(InvalidProgramError, match=r"^[a-z_.]+: "):
                await sandbox.deliver(broken, limits, sink)
        assert sandbox.alive
        await sandbox.deliver(program("print(1)"), LIMITS, sink)
        assert (await sandbox.observe()).outcome is Outcome.SUCCEEDED
        assert sink.stdout == b"1\n"
    finally:
        await sandbox.close()


@pytest.mark.parametrize("when", ["before delivery", "while it runs"])
async def test_abandoning_ends_it_at_once(any_driver: SandboxDriver, when: str) -> None:
    sandbox = await any_driver.boot("python", disk_bytes=DISK)
    try:
        if when == "before delivery":
            sandbox.abandon()
            with pytest.raises(SandboxAbandoned):
                await sandbox.deliver(SLEEPER, LIMITS, Collected())
        else:
            await sandbox.deliver(SLEEPER, LIMITS, Collected())
            observer = asyncio.create_task(sandbox.observe(), name="observer")
            await asyncio.sleep(0.05)
            sandbox.abandon()
            with pytest.raises(SandboxAbandoned):
                await asyncio.wait_for(observer, 20 * SLOWNESS)
        sandbox.abandon()
        assert not sandbox.alive
    finally:
        await sandbox.close()


async def test_closing_ends_whatever_runs(any_driver: SandboxDriver) -> None:
    booted, delivered = [await any_driver.boot("python", disk_bytes=DISK) for _ in range(2)]
    sink = Collected()
    await delivered.deliver(SLEEPER, LIMITS, sink)
    async with asyncio.timeout(20 * SLOWNESS):
        while sink.stdout != b"up\n":  # noqa: ASYNC110 - a sink sets no event
            await asyncio.sleep(0.01)
        await asyncio.gather(booted.close(), delivered.close())
    assert not booted.alive
    assert not delivered.alive


async def test_a_runtime_that_is_not_here_is_a_fault_of_the_image(any_driver: SandboxDriver) -> None:
    with pytest.raises(SandboxFault) as caught:
        await any_driver.boot("cobol", disk_bytes=DISK)
    assert caught.value.cause is Cause.IMAGE


@pytest.mark.parametrize(
    ("source", "limits", "outcome"),
    [
        ("while True: pass", {"cpu_time": 0.5}, Outcome.CPU_TIME_EXCEEDED),
        ("import time; time.sleep(100)", {"wall_time": 0.7}, Outcome.WALL_TIME_EXCEEDED),
        ("x = bytearray(1 << 30)", {"memory_bytes": 32 * MIB}, Outcome.MEMORY_EXCEEDED),
        ("while True: print('x' * 4096)", {"output_bytes": 10_000}, Outcome.OUTPUT_EXCEEDED),
    ],
)
async def test_every_limit_ends_with_its_name(
    any_driver: SandboxDriver, source: str, limits: dict[str, float], outcome: Outcome
) -> None:
    sink = Collected()
    chosen = replace(LIMITS, **limits)  # pyright: ignore[reportArgumentType] - the tests name fields of the dataclass
    verdict = await run_program(any_driver, program(source), chosen, sink)
    assert (verdict.outcome, verdict.findings[0], verdict.cause) == (outcome, outcome, Cause.LIMIT)
    assert (verdict.exit_code is None) != (verdict.signal is None)
    assert len(sink.stdout) <= chosen.output_bytes


async def test_limits_inside_are_refusals_that_a_program_can_handle(any_driver: SandboxDriver) -> None:
    source = """
import errno, os, time
def fails(do):
    try:
        while True: do()
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
fails(lambda: os.fork() or time.sleep(60))
fails(lambda: os.dup(0))
for descriptor in range(3, 32): os.close(descriptor)
big = open("big", "wb", buffering=0)
fails(lambda: big.write(bytes(1 << 20)))
"""
    limits = replace(LIMITS, processes=8, open_files=32)
    verdict = await run_program(any_driver, program(source), limits, sink := Collected())
    assert (verdict.outcome, sink.stdout) == (Outcome.SUCCEEDED, b"EAGAIN\nEMFILE\nENOSPC\n")


async def test_no_program_finds_anything_of_another(any_driver: SandboxDriver) -> None:
    source = """
import os, random, uuid
print(sorted(os.listdir("/work")), os.listdir("/tmp"), os.listdir("/dev/shm"))
for value in (random.random(), hash("a"), id(object()), uuid.uuid4(), os.urandom(8).hex()):
    print(value)
for folder in ("/work", "/tmp", "/dev/shm"):
    open(f"{folder}/mine", "w").close()
"""
    sinks = [Collected() for _ in range(4)]
    identities: set[str] = set()
    for sink in sinks:
        sandbox = await any_driver.boot("python", disk_bytes=DISK)
        identities.add(sandbox.id)
        try:
            await sandbox.deliver(program(source), LIMITS, sink)
            assert (await sandbox.observe()).outcome is Outcome.SUCCEEDED
        finally:
            await sandbox.close()
    assert len(identities) == len(sinks)
    lines = [sink.stdout.decode().splitlines() for sink in sinks]
    assert {each[0] for each in lines} == {"['main.py'] [] []"}
    # What chance decides differs: the generator's state, the seed of hashes, where things lie in memory.
    for row in list(zip(*lines, strict=True))[1:]:
        assert len(set(row)) == len(sinks), row


async def test_programs_at_once_do_not_meet(any_driver: SandboxDriver) -> None:
    sinks = [Collected() for _ in range(4)]
    runs = (run_program(any_driver, program(f"print({n})"), LIMITS, sink) for n, sink in enumerate(sinks))
    assert {verdict.outcome for verdict in await asyncio.gather(*runs)} == {Outcome.SUCCEEDED}
    assert [sink.stdout for sink in sinks] == [b"0\n", b"1\n", b"2\n", b"3\n"]


async def test_output_comes_while_the_program_runs_and_in_order(any_driver: SandboxDriver) -> None:
    sandbox = await any_driver.boot("bash", disk_bytes=DISK)
    sink = Collected()
    try:
        await sandbox.deliver(program("echo one; echo two >&2; read -t 100 <> <(:)", "bash"), LIMITS, sink)
        async with asyncio.timeout(20 * SLOWNESS):
            while (sink.stdout, sink.stderr) != (b"one\n", b"two\n"):  # noqa: ASYNC110 - a sink sets no event
                await asyncio.sleep(0.01)
        assert sandbox.alive
    finally:
        await sandbox.close()
    assert {stream for stream, _ in sink.chunks} == set(Stream)


async def test_it_offers_what_it_can_run(any_driver: SandboxDriver) -> None:
    found = await any_driver.offerable_runtimes()
    assert found.refused == {}
    assert {offer.name for offer in found.offers} == {"bash", "python"}

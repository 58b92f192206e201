"""Every limit, against programs that try to break it: each ends with the outcome that names it, and nothing is left."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.image import ImageStore
from crucible_executor.sandbox.port import Cause, Outcome, SandboxLimits, Verdict

from .conftest import LIMITS, MIB, SLOWNESS, Collected, Run, program


async def test_an_endless_loop_meets_the_cpu_limit(run: Run) -> None:
    verdict = (await run("while True: pass", cpu_time=1)).verdict
    assert (verdict.outcome, verdict.cause, verdict.signal) == (Outcome.CPU_TIME_EXCEEDED, Cause.LIMIT, "SIGKILL")
    assert 1 <= verdict.usage.cpu_time < 3


async def test_loops_in_several_processes_share_the_cpu_limit(run: Run) -> None:
    source = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    verdict = (await run(source, cpu_time=1)).verdict
    assert verdict.outcome is Outcome.CPU_TIME_EXCEEDED


async def test_an_endless_loop_meets_the_wall_limit(run: Run) -> None:
    verdict = (await run("while True: pass", wall_time=1)).verdict
    assert (verdict.outcome, verdict.cause, verdict.signal) == (Outcome.WALL_TIME_EXCEEDED, Cause.LIMIT, "SIGKILL")
    assert 1 <= verdict.usage.wall_time < 5


async def test_a_sleeper_that_ignores_every_signal_meets_the_wall_limit(run: Run) -> None:
    source = """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
print("deaf", flush=True)
time.sleep(1000)
"""
    ran = await run(source, wall_time=1.5)
    assert (ran.verdict.outcome, ran.stdout, ran.stderr) == (Outcome.WALL_TIME_EXCEEDED, b"deaf\n", b"")
    assert ran.verdict.usage.cpu_time < 1.5


async def test_a_huge_allocation_meets_the_memory_limit(run: Run) -> None:
    ran = await run("x = bytearray(10 * 1024**3); print(len(x))")
    verdict = ran.verdict
    assert (verdict.outcome, verdict.cause, verdict.signal) == (Outcome.MEMORY_EXCEEDED, Cause.LIMIT, "SIGKILL")
    assert 256 * MIB < verdict.usage.peak_memory_bytes <= (256 + 64 + 32) * MIB
    assert (ran.stdout, ran.stderr) == (b"", b"")


async def test_a_childs_allocation_meets_the_memory_limit(run: Run) -> None:
    source = "import os\nif os.fork() == 0: x = bytearray(10 * 1024**3)\nos.wait()\nprint('survived')"
    assert (await run(source, memory_bytes=64 * MIB)).verdict.outcome is Outcome.MEMORY_EXCEEDED


async def test_memory_within_the_limit_is_there(run: Run) -> None:
    ran = await run("x = bytearray(200 * 1024**2); print(len(x)); import time; time.sleep(0.2)")
    assert ran.verdict.outcome is Outcome.SUCCEEDED
    assert 200 * MIB < ran.verdict.usage.peak_memory_bytes < 256 * MIB


async def test_a_short_peak_of_memory_is_seen(run: Run) -> None:
    ran = await run("x = bytearray(100 * 1024**2); del x")
    assert 100 * MIB < ran.verdict.usage.peak_memory_bytes < 200 * MIB


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_endless_output_meets_the_output_limit(run: Run, stream: str) -> None:
    ran = await run(f"import sys\nwhile True: sys.{stream}.write('abcdefgh' * 1000)", output_bytes=100_000)
    verdict = ran.verdict
    assert (verdict.outcome, verdict.cause) == (Outcome.OUTPUT_EXCEEDED, Cause.LIMIT)
    kept = getattr(ran, stream)
    summary = getattr(verdict, stream)
    assert kept == (b"abcdefgh" * 12500)
    assert (summary.size_bytes, summary.truncated) == (100_000, True)


async def test_endless_output_on_both_streams(run: Run) -> None:
    ran = await run("yes & yes >&2", runtime="bash")
    assert ran.verdict.outcome is Outcome.OUTPUT_EXCEEDED
    assert max(len(ran.stdout), len(ran.stderr)) == MIB
    assert min(len(ran.stdout), len(ran.stderr)) <= MIB


async def test_one_byte_too_many_is_too_many_and_not_one_less(run: Run) -> None:
    exact = await run("import sys; sys.stdout.write('x' * 1000)", output_bytes=1000)
    assert (exact.verdict.outcome, exact.verdict.stdout.truncated) == (Outcome.SUCCEEDED, False)
    over = await run("import sys; sys.stdout.write('x' * 1001)", output_bytes=1000)
    assert (over.verdict.outcome, over.verdict.stdout.truncated) == (Outcome.OUTPUT_EXCEEDED, True)
    assert len(over.stdout) == 1000


async def test_a_fork_bomb_meets_the_limit_of_processes(run: Run) -> None:
    source = """
import os, time
children = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        children += 1
except BlockingIOError:
    print(children)
"""
    ran = await run(source, processes=20)
    assert ran.verdict.outcome is Outcome.SUCCEEDED
    assert int(ran.stdout) == 19


async def test_a_fork_bomb_that_does_not_stop_meets_the_wall_limit(run: Run) -> None:
    verdict = (await run(":(){ :|:& };: ; while :; do :; done", runtime="bash", wall_time=3)).verdict
    assert verdict.outcome in (Outcome.WALL_TIME_EXCEEDED, Outcome.OUTPUT_EXCEEDED)


async def test_a_thread_bomb_meets_the_limit_of_processes(run: Run) -> None:
    source = """
import os, threading, time
threads = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        threads += 1
except RuntimeError:
    print(threads, flush=True)
    os._exit(0)
"""
    ran = await run(source)
    assert (ran.verdict.outcome, int(ran.stdout)) == (Outcome.SUCCEEDED, 63)


async def test_the_most_threads_that_can_be_asked_for(run: Run) -> None:
    source = """
import os, threading, time
threads = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        threads += 1
except RuntimeError:
    print(threads, flush=True)
    os._exit(0)
"""
    ran = await run(source, processes=512)
    assert (ran.verdict.outcome, int(ran.stdout)) == (Outcome.SUCCEEDED, 511)


async def test_the_limit_of_open_files(run: Run) -> None:
    source = """
import errno
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError as error:
    print(errno.errorcode[error.errno], held[-1].fileno())
"""
    ran = await run(source, open_files=100)
    assert ran.stdout == b"EMFILE 99\n"


@pytest.mark.parametrize("folder", ["/work", "/tmp", "/dev/shm"])
async def test_the_size_of_the_disk(run: Run, folder: str) -> None:
    source = f"""
import errno, os
written = 0
try:
    with open("{folder}/big", "wb", buffering=0) as file:
        while True:
            written += file.write(b"x" * 65536)
except OSError as error:
    print(errno.errorcode[error.errno], written)
"""
    ran = await run(source)
    name, written = ran.stdout.split()
    assert (ran.verdict.outcome, name) == (Outcome.SUCCEEDED, b"ENOSPC")
    assert 63 * MIB <= int(written) <= 64 * MIB


async def test_a_file_that_claims_a_petabyte(run: Run) -> None:
    source = """
import os
try:
    os.truncate(os.open("big", os.O_CREAT | os.O_RDWR), 10**15)
except OSError as error:
    print(error.errno)
"""
    ran = await run(source)
    assert (ran.stdout, ran.verdict.outcome) == (b"27\n", Outcome.SUCCEEDED)


async def test_both_disks_full_and_memory_in_use_ends_no_host(run: Run) -> None:
    source = """
import os
for folder in ("/work", "/tmp", "/dev/shm"):
    with open(f"{folder}/big", "wb", buffering=0) as file:
        for _ in range(60):
            file.write(b"x" * 1024 * 1024)
x = bytearray(250 * 1024 * 1024)
"""
    assert (await run(source)).verdict.outcome is Outcome.MEMORY_EXCEEDED


async def test_too_much_cpu_time_is_too_much_although_the_program_ended_by_itself(run: Run) -> None:
    verdict = (await run("import os; os._exit(4)", cpu_time=0.001)).verdict
    assert verdict.outcome is Outcome.CPU_TIME_EXCEEDED


async def test_what_a_program_cannot_do(run: Run) -> None:
    source = """
import os, socket, sys
print(os.getuid(), os.getgid(), os.getgroups())
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print([status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd") if name in status])
for what in ("/etc/x", "/x", "/usr/lib/x", "/root/x", "/var/x"):
    try:
        open(what, "w"); print("wrote", what)
    except OSError:
        pass
for address in (("1.1.1.1", 53), ("169.254.169.254", 80)):
    try:
        socket.create_connection(address, timeout=2); print("connected", address)
    except OSError:
        pass
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x10000000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.chroot(b"/tmp"))
print(socket.gethostname(), [i[1] for i in socket.if_nameindex()])
"""
    ran = await run(source)
    assert ran.stderr == b""
    lines = ran.stdout.decode().splitlines()
    assert lines[0].startswith("65534 65534 ")
    assert set(lines[1]) <= set("['0, ]")
    assert lines[2:] == ["-1 -1 -1", "sandbox ['lo']"]


async def judged_after_a_pause(driver: GvisorDriver, source: str, limits: SandboxLimits) -> Verdict:
    """The verdict of a program during which this process stood still, as on a machine that is too busy."""
    sandbox = await driver.boot("python", disk_bytes=limits.disk_bytes)
    try:
        await sandbox.deliver(program(source), limits, Collected())
        time.sleep(limits.wall_time + 1.5 * SLOWNESS)  # noqa: ASYNC251 - nothing may run meanwhile
        return await sandbox.observe()
    finally:
        await sandbox.close()


async def test_a_program_that_ended_in_time_is_judged_by_its_end_however_late_that_is_seen(
    driver: GvisorDriver,
) -> None:
    limits = replace(LIMITS, wall_time=2 * SLOWNESS)
    verdict = await judged_after_a_pause(driver, "import os, time; time.sleep(0.2); os._exit(7)", limits)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.NONZERO_EXIT, 7)


async def test_a_deadline_that_the_launcher_kept_is_the_limit_of_wall_time(
    sandbox_config: GvisorConfig, images: ImageStore
) -> None:
    async with open_driver(replace(sandbox_config, deadline_grace=0.2), images) as driver:
        limits = replace(LIMITS, wall_time=0.5 * SLOWNESS)
        verdict = await judged_after_a_pause(driver, "import time; time.sleep(100)", limits)
    assert (verdict.outcome, verdict.cause) == (Outcome.WALL_TIME_EXCEEDED, Cause.LIMIT)
    assert verdict.findings == (Outcome.WALL_TIME_EXCEEDED,)

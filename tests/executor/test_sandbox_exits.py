"""Every exit code and every signal, by real programs: what the host says of each is what happened.

A sandbox for each, three at a time, each handed to a waiting interpreter or shell; nothing is told by runsc's own
exit code, which is the same for `exit 137` and SIGKILL.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver
from crucible_executor.sandbox.port import Cause, Outcome, SandboxFault, Verdict
from crucible_executor.sandbox.run import run_program
from crucible_executor.sandbox.verdict import signal_name

from .conftest import LIMITS, SLOWNESS, Collected, program

AT_ONCE = 3
AMBIGUOUS = (0, 1, 2, 70, 126, 127, 128, 129, 130, 134, 137, 139, 143, 254, 255)
"""Codes that something else between the program and us uses as well."""
PYTHON_EXIT = "import os; os._exit({0})"
PYTHON_SIGNAL = "import ctypes, os\nctypes.CDLL(None).syscall(62, os.getpid(), {0})\nos._exit(100)"
BASH_EXIT = "exit {0}"
BASH_SIGNAL = "kill -{0} $$\nexit 100"
HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
IGNORED_BY_BASH = {signal.SIGQUIT}


async def verdicts(driver: GvisorDriver, runtime: str, source: str, values: Mapping[int, str]) -> dict[int, Verdict]:
    some_at_once = asyncio.Semaphore(AT_ONCE)

    async def one(text: str) -> Verdict:
        async with some_at_once:
            return await run_program(driver, program(source.format(text), runtime), LIMITS, Collected())

    ran = await asyncio.gather(*(one(text) for text in values.values()))
    return dict(zip(values, ran, strict=True))


def by_number(numbers: list[int]) -> Mapping[int, str]:
    return {number: str(number) for number in numbers}


def seen(verdict: Verdict) -> tuple[Outcome, Cause, int | None, str | None]:
    assert verdict.findings == (verdict.outcome,)
    return verdict.outcome, verdict.cause, verdict.exit_code, verdict.signal


def exited(code: int) -> tuple[Outcome, Cause, int | None, str | None]:
    return (Outcome.NONZERO_EXIT if code else Outcome.SUCCEEDED), Cause.PROGRAM, code, None


def signaled(number: int) -> tuple[Outcome, Cause, int | None, str | None]:
    return Outcome.SIGNALED, Cause.PROGRAM, None, signal_name(number)


@pytest.mark.parametrize("first", range(0, 256, 32))
async def test_every_exit_code(driver: GvisorDriver, first: int) -> None:
    ran = await verdicts(driver, "python", PYTHON_EXIT, by_number(list(range(first, first + 32))))
    assert {code: seen(verdict) for code, verdict in ran.items()} == {code: exited(code) for code in ran}


async def test_exit_codes_that_look_like_something_else_from_bash(driver: GvisorDriver) -> None:
    ran = await verdicts(driver, "bash", BASH_EXIT, by_number(list(AMBIGUOUS)))
    assert {code: seen(verdict) for code, verdict in ran.items()} == {code: exited(code) for code in ran}


@pytest.mark.parametrize(("runtime", "source"), [("python", PYTHON_SIGNAL), ("bash", BASH_SIGNAL)])
async def test_every_signal(driver: GvisorDriver, runtime: str, source: str) -> None:
    # A shell that is not interactive knows no way to name the two that the C library keeps for itself.
    reserved = {32, 33} if runtime == "bash" else set[int]()
    ran = await verdicts(driver, runtime, source, by_number(sorted(set(range(1, 65)) - STOPPING - reserved)))
    ignored = HARMLESS | {"python": IGNORED_BY_PYTHON, "bash": IGNORED_BY_BASH}[runtime]
    # SIGINT is KeyboardInterrupt to Python, at whose end it sends the signal to itself once more.
    expected = {number: exited(100) if number in ignored else signaled(number) for number in ran}
    assert {number: seen(verdict) for number, verdict in ran.items()} == expected


@pytest.mark.parametrize(
    ("source", "ended"),
    [
        ("raise KeyboardInterrupt", signaled(signal.SIGINT)),
        ("import sys; sys.exit(257)", exited(1)),
        ("import sys; sys.exit(-1)", exited(255)),
        ("import sys; sys.exit('words')", exited(1)),
        ("raise SystemExit", exited(0)),
        ("1 / 0", exited(1)),
        ("def (", exited(1)),
    ],
)
async def test_how_python_ends(driver: GvisorDriver, source: str, ended: object) -> None:
    assert seen(await run_program(driver, program(source), LIMITS, Collected())) == ended


@pytest.mark.parametrize(
    ("source", "ended"),
    [
        ("no-such-command", exited(127)),
        ("/etc/passwd", exited(126)),
        ("(kill -9 $BASHPID)", exited(137)),
        ("sh -c 'kill -SEGV $$'", exited(139)),
        ("exec sh -c 'kill -SEGV $$'", signaled(signal.SIGSEGV)),
        ("exit 256", exited(0)),
        ("set -e; false; echo never", exited(1)),
        ("if", exited(2)),
    ],
)
async def test_how_bash_ends(driver: GvisorDriver, source: str, ended: object) -> None:
    assert seen(await run_program(driver, program(source, "bash"), LIMITS, Collected())) == ended


def starve(config: GvisorConfig, identity: str) -> None:
    """Let a sandbox have no further process on the host."""
    for mount in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        for bound in mount.glob(f"{config.cgroup_parent}/*/{identity}/pids.max"):
            bound.write_text("1")


async def test_a_real_panic_of_the_sentry_is_no_exit_code_2(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    sink = Collected()
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    try:
        source = "import os, time\nprint('up', flush=True)\ntime.sleep(1)\nfor _ in range(5): os.fork()\nprint('on')"
        await sandbox.deliver(program(source), LIMITS, sink)
        async with asyncio.timeout(20 * SLOWNESS):
            while sink.stdout != b"up\n":  # noqa: ASYNC110 - a sink sets no event
                await asyncio.sleep(0.01)
        # The backstop, far off by itself, is reached at once: the sentry gets no process for the next address space.
        starve(sandbox_config, sandbox.id)
        with pytest.raises(SandboxFault) as caught:
            await sandbox.observe()
        assert caught.value.cause is Cause.SANDBOX
        assert "panic" in caught.value.detail
    finally:
        await sandbox.close()

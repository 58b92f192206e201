"""What a program gets and gives: files, arguments, environment, input, output, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import time

import pytest

from crucible_executor.sandbox.gvisor.driver import GvisorDriver
from crucible_executor.sandbox.port import (
    Cause,
    InvalidProgramError,
    Outcome,
    Program,
    ProgramFile,
    Stream,
)
from crucible_executor.sandbox.run import run_program

from .conftest import LIMITS, Collected, Run, program


async def test_hello(run: Run) -> None:
    ran = await run("print('hello')")
    verdict = ran.verdict
    assert (ran.stdout, ran.stderr) == (b"hello\n", b"")
    assert (verdict.outcome, verdict.findings, verdict.cause) == (
        Outcome.SUCCEEDED,
        (Outcome.SUCCEEDED,),
        Cause.PROGRAM,
    )
    assert (verdict.exit_code, verdict.signal) == (0, None)
    assert verdict.stdout.size_bytes == 6
    assert verdict.stdout.sha256 == hashlib.sha256(b"hello\n").hexdigest()
    assert not verdict.stdout.truncated
    assert 0 < verdict.usage.cpu_time < 10
    assert 0 < verdict.usage.wall_time < 10
    assert 1_000_000 < verdict.usage.peak_memory_bytes < 128 * 1024 * 1024
    phases = verdict.phases
    assert phases.booted < phases.ready <= phases.started < phases.finished
    assert verdict.image_digest.startswith("sha256:")


ODD = "two words; $(id) 'q' \"dq\" \\ \n ü * {x}"


async def test_everything_handed_in_arrives_exactly_in_python(run: Run) -> None:
    source = """
import os, sys
print(sys.argv, os.environ["ODD"], os.getcwd(), repr(sys.stdin.buffer.read()), open("data/deep/a.bin", "rb").read())
print(sorted(os.listdir(".")), os.environ["PATH"], os.environ["HOME"], sorted(os.listdir("/proc/self/fd")))
"""
    files = [ProgramFile("data/deep/a.bin", bytes(range(256)))]
    ran = await run(source, files=files, args=["-x", ODD, ""], env={"ODD": ODD, "HOME": "/tmp"}, stdin=b"\x00\xffin")
    expected = " ".join([str(["main.py", "-x", ODD, ""]), ODD, "/work", repr(b"\x00\xffin"), repr(bytes(range(256)))])
    lines = ran.stdout.decode()
    assert lines.startswith(expected)
    assert "['data', 'main.py'] /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /tmp" in lines
    # Its own three descriptors and that of the listing: the channel it came by is closed.
    assert lines.rstrip().endswith("['0', '1', '2', '3']")
    assert ran.verdict.outcome is Outcome.SUCCEEDED


async def test_everything_handed_in_arrives_exactly_in_bash(run: Run) -> None:
    source = """
printf '%s\\n' "$#" "$@" "$ODD" "$PWD" "$HOME"; cat data/deep/a.bin; cat
printf '\\n'; ls /tmp; ls -A; ls /proc/self/fd
"""
    blob = bytes(range(256))
    files = [ProgramFile("data/deep/a.bin", blob)]
    ran = await run(source, runtime="bash", files=files, args=["-x", ODD, ""], env={"ODD": ODD}, stdin=b"\x00\xffin")
    head = "\n".join(["3", "-x", ODD, "", ODD, "/work", "/work"]).encode() + b"\n"
    assert ran.stdout == head + blob + b"\x00\xffin\n" + b"data\nmain.sh\n" + b"0\n1\n2\n3\n"
    assert ran.verdict.outcome is Outcome.SUCCEEDED


async def test_an_entrypoint_of_ones_own_that_looks_like_an_option(driver: GvisorDriver) -> None:
    sink = Collected()
    files = (ProgramFile("-c", b"import helper; print(helper.NAME)"), ProgramFile("helper.py", b"NAME = 'here'"))
    verdict = await run_program(driver, Program("python", files, entrypoint="-c"), LIMITS, sink)
    assert (verdict.outcome, sink.stdout) == (Outcome.SUCCEEDED, b"here\n")


async def test_a_large_input_is_read_to_its_end(run: Run) -> None:
    data = bytes(range(256)) * 4096
    ran = await run("import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())", stdin=data)
    assert ran.stdout.decode().strip() == hashlib.sha256(data).hexdigest()


async def test_an_input_that_is_not_read_blocks_nothing(run: Run) -> None:
    ran = await run("print('done')", stdin=b"x" * 1024 * 1024)
    assert (ran.stdout, ran.verdict.outcome) == (b"done\n", Outcome.SUCCEEDED)


@pytest.mark.parametrize("code", [1, 2, 70, 126, 127, 128, 137, 139, 255])
async def test_an_exit_code_is_an_exit_code(run: Run, code: int) -> None:
    verdict = (await run(f"import os; os._exit({code})")).verdict
    assert (verdict.outcome, verdict.exit_code, verdict.signal) == (Outcome.NONZERO_EXIT, code, None)
    assert verdict.cause is Cause.PROGRAM


@pytest.mark.parametrize(
    ("crash", "name"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
        ("import ctypes, threading; threading.Thread(target=lambda: ctypes.string_at(0)).start()", "SIGSEGV"),
    ],
)
async def test_a_signal_is_a_signal(run: Run, crash: str, name: str) -> None:
    verdict = (await run(crash)).verdict
    assert (verdict.outcome, verdict.exit_code, verdict.signal) == (Outcome.SIGNALED, None, name)
    assert verdict.cause is Cause.PROGRAM


@pytest.mark.parametrize(
    ("source", "code"),
    [
        # Threads that end first, a first thread that ends before the others, a thread that becomes another program.
        (
            "import os, threading\nfor _ in range(9):\n    t = threading.Thread(target=id, args=(1,))\n"
            "    t.start(); t.join()\nos._exit(5)",
            5,
        ),
        (
            "import ctypes, os, threading, time\n"
            "threading.Thread(target=lambda: (time.sleep(0.2), os._exit(7))).start()\nctypes.CDLL(None).syscall(60, 0)",
            7,
        ),
        (
            "import os, threading, time\n"
            "threading.Thread(target=lambda: os.execv('/bin/sh', ['sh', '-c', 'exit 11'])).start()\ntime.sleep(9)",
            11,
        ),
    ],
)
async def test_the_exit_code_of_a_process_with_threads(run: Run, source: str, code: int) -> None:
    verdict = (await run(source)).verdict
    assert (verdict.outcome, verdict.exit_code) == (Outcome.NONZERO_EXIT, code)
    assert verdict.usage.wall_time < 8


async def test_output_that_is_no_text_comes_as_it_is(run: Run) -> None:
    data = b"\x00\xff\xfe\x80ok\x1b[31m\n" * 100
    ran = await run(f"import os; os.write(1, {data!r}); os.write(2, {data!r})")
    assert ran.stdout == ran.stderr == data
    assert ran.verdict.stderr.sha256 == hashlib.sha256(data).hexdigest()


async def test_a_slow_printer_is_seen_line_by_line(driver: GvisorDriver) -> None:
    came: list[float] = []

    class Clock:
        def write(self, stream: Stream, data: bytes) -> None:
            assert stream is Stream.STDOUT
            came.extend([time.monotonic()] * data.count(b"\n"))

    source = "import time\nfor i in range(3):\n    print(i)\n    time.sleep(1)"
    verdict = await run_program(driver, program(source), LIMITS, Clock())
    assert verdict.outcome is Outcome.SUCCEEDED
    assert len(came) == 3
    assert came[2] - came[0] > 0.5  # two seconds, but for what holds this machine up


async def test_a_grandchild_that_holds_the_output_open_delays_nothing(run: Run) -> None:
    source = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
print("parent")
"""
    ran = await run(source)
    assert (ran.stdout, ran.verdict.outcome) == (b"parent\n", Outcome.SUCCEEDED)
    assert ran.verdict.usage.wall_time < 20


async def test_all_that_was_written_before_the_end_is_there(run: Run) -> None:
    ran = await run("import os\nfor _ in range(60): os.write(1, b'x' * 16384)\nos._exit(3)")
    assert (len(ran.stdout), ran.verdict.exit_code) == (60 * 16384, 3)


async def test_programs_at_once_do_not_mix(driver: GvisorDriver) -> None:
    sinks = [Collected() for _ in range(4)]
    programs = [program(f"print({number}); open('/tmp/x', 'x')") for number in range(4)]
    verdicts = await asyncio.gather(
        *(run_program(driver, each, LIMITS, sink) for each, sink in zip(programs, sinks, strict=True))
    )
    assert [sink.stdout for sink in sinks] == [b"0\n", b"1\n", b"2\n", b"3\n"]
    assert {verdict.outcome for verdict in verdicts} == {Outcome.SUCCEEDED}


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (Program("bash", (ProgramFile("main.py", b""),)), "runtime"),
        (Program("python", ()), "entrypoint"),
        (Program("python", (ProgramFile("../main.py", b""),), entrypoint="../main.py"), "files"),
        (Program("python", (ProgramFile("/main.py", b""),), entrypoint="/main.py"), "files"),
        (Program("python", (ProgramFile("a//b", b""),), entrypoint="a//b"), "files"),
        (Program("python", (ProgramFile("main.py", b""), ProgramFile("main.py", b""))), "files"),
        (Program("python", (ProgramFile("main.py", b""), ProgramFile("main.py/x", b""))), "files"),
        (Program("python", (ProgramFile("main.py", b"x" * LIMITS.disk_bytes), ProgramFile("b", b"x"))), "files"),
        (Program("python", (ProgramFile("main.py", b""),), args=["\0"]), "args"),
        (Program("python", (ProgramFile("main.py", b""),), env={"A=B": ""}), "env"),
        (Program("python", (ProgramFile("main.py", b""),), env={"A": "\0"}), "env"),
    ],
)
async def test_a_broken_program_is_refused_and_the_sandbox_stays_as_it_was(
    driver: GvisorDriver, broken: Program, field: str
) -> None:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    try:
        with pytest.raises(InvalidProgramError, match=f"^{field}"):
            await sandbox.deliver(broken, LIMITS, Collected())
        sink = Collected()
        await sandbox.deliver(program("print(1)"), LIMITS, sink)
        assert (await sandbox.observe()).outcome is Outcome.SUCCEEDED
        assert sink.stdout == b"1\n"
    finally:
        await sandbox.close()

"""The one place where outcomes are decided: every exit code, every signal, every order of what applied."""

from __future__ import annotations

import itertools
import signal

import pytest

from crucible_executor.sandbox.port import Cause, Outcome, SandboxFault
from crucible_executor.sandbox.verdict import Facts, Kill, judge, signal_name

SUPERVISOR_CODES = [None, 0, 2, 128, 137, 139, -9]


@pytest.mark.parametrize("code", range(256))
def test_every_exit_code(code: int) -> None:
    # What `runsc run` returned says nothing: 2, 128, 137 and 139 are a program's right.
    for supervisor in SUPERVISOR_CODES:
        judgement = judge(Facts(wait_status=code << 8, supervisor_code=supervisor))
        outcome = Outcome.NONZERO_EXIT if code else Outcome.SUCCEEDED
        assert (judgement.outcome, judgement.findings) == (outcome, (outcome,))
        assert (judgement.exit_code, judgement.signal, judgement.cause) == (code, None, Cause.PROGRAM)


@pytest.mark.parametrize("number", range(1, 65))
@pytest.mark.parametrize("core", [0, 0x80])
def test_every_signal(number: int, core: int) -> None:
    for supervisor in SUPERVISOR_CODES:
        judgement = judge(Facts(wait_status=number | core, supervisor_code=supervisor))
        assert (judgement.outcome, judgement.findings) == (Outcome.SIGNALED, (Outcome.SIGNALED,))
        assert (judgement.exit_code, judgement.signal) == (None, signal_name(number))
        assert judgement.cause is Cause.PROGRAM


def test_names_of_signals() -> None:
    assert [signal_name(number) for number in (1, 6, 9, 11, 15, 31)] == [
        "SIGHUP",
        "SIGABRT",
        "SIGKILL",
        "SIGSEGV",
        "SIGTERM",
        "SIGSYS",
    ]
    assert [signal_name(number) for number in (32, 33, 34, 35, 63, 64)] == [
        "SIG32",
        "SIG33",
        "SIGRTMIN",
        "SIGRTMIN+1",
        "SIGRTMIN+29",
        "SIGRTMAX",
    ]
    assert len({signal_name(number) for number in range(1, 65)}) == 64


def test_exit_137_is_no_kill_and_exit_139_no_crash() -> None:
    assert judge(Facts(wait_status=137 << 8)).exit_code == 137
    assert judge(Facts(wait_status=139 << 8)).exit_code == 139
    assert judge(Facts(wait_status=signal.SIGKILL)).signal == "SIGKILL"
    assert judge(Facts(wait_status=signal.SIGSEGV | 0x80)).signal == "SIGSEGV"


@pytest.mark.parametrize("kill", list(Kill))
@pytest.mark.parametrize("status", [None, 0, 3 << 8, signal.SIGKILL])
@pytest.mark.parametrize("oom", [False, True])
@pytest.mark.parametrize("panic", ["", "panic: anything"])
def test_our_own_kill_comes_first(kill: Kill, status: int | None, oom: bool, panic: str) -> None:
    facts = Facts(kill=kill, wait_status=status, oom_kills=int(oom), memory_limit_reached=oom, panic=panic)
    judgement = judge(facts)
    assert judgement.outcome is kill.value
    assert judgement.cause is Cause.LIMIT
    assert (Outcome.MEMORY_EXCEEDED in judgement.findings) == oom
    assert not {Outcome.SUCCEEDED, Outcome.NONZERO_EXIT, Outcome.SIGNALED} & set(judgement.findings)
    assert (judgement.exit_code is None) != (judgement.signal is None)


@pytest.mark.parametrize("status", [None, 0, 1 << 8, signal.SIGKILL, signal.SIGABRT])
@pytest.mark.parametrize("panic", ["", "panic: anything"])
def test_out_of_memory_comes_before_a_fault_a_signal_and_an_exit(status: int | None, panic: str) -> None:
    judgement = judge(Facts(wait_status=status, oom_kills=1, memory_limit_reached=True, panic=panic))
    assert judgement.outcome is Outcome.MEMORY_EXCEEDED
    assert judgement.findings == (Outcome.MEMORY_EXCEEDED,)
    assert judgement.cause is Cause.LIMIT


def test_the_hosts_lack_of_memory_is_not_the_programs_doing() -> None:
    for status in (None, 0, signal.SIGKILL):
        with pytest.raises(SandboxFault) as caught:
            judge(Facts(wait_status=status, oom_kills=1, memory_limit_reached=False))
        assert caught.value.cause is Cause.INFRASTRUCTURE


def test_a_limit_that_was_only_touched_is_no_finding() -> None:
    assert judge(Facts(wait_status=0, memory_limit_reached=True)).findings == (Outcome.SUCCEEDED,)


@pytest.mark.parametrize("code", SUPERVISOR_CODES)
def test_a_sandbox_that_died_gives_no_verdict(code: int | None) -> None:
    with pytest.raises(SandboxFault, match="died") as caught:
        judge(Facts(supervisor_code=code, panic="panic: createStub", log="it broke"))
    assert caught.value.cause is Cause.SANDBOX
    assert "createStub" in caught.value.detail
    assert "it broke" in caught.value.detail


def test_a_panic_is_told_before_the_warnings_that_came_before_it() -> None:
    warnings = "I1121 10:00:00.0 1 rate_limited.go:36] A process tried something\n" * 100
    with pytest.raises(SandboxFault) as caught:
        judge(Facts(panic=f"{warnings}panic: createStub\n\ngoroutine 1 [running]:"))
    assert caught.value.detail.endswith("sentry: panic: createStub\n\ngoroutine 1 [running]:")
    with pytest.raises(SandboxFault, match="rate_limited"):
        judge(Facts(panic=warnings))


def test_a_panic_beside_a_known_end_changes_nothing() -> None:
    assert judge(Facts(wait_status=0, panic="panic: late", log="late")).outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("facts", [Facts(wait_status=70 << 8, begun=False), Facts(wait_status=0, starter_error="no")])
def test_a_program_that_never_ran_gives_no_verdict(facts: Facts) -> None:
    with pytest.raises(SandboxFault, match="starter") as caught:
        judge(facts)
    assert caught.value.cause is Cause.SANDBOX


@pytest.mark.parametrize(
    ("status", "exit_code", "last"),
    [(0, 0, None), (3 << 8, 3, Outcome.NONZERO_EXIT), (int(signal.SIGSEGV), None, Outcome.SIGNALED)],
)
def test_a_limit_passed_by_a_program_that_ended_itself(
    status: int, exit_code: int | None, last: Outcome | None
) -> None:
    for cpu, output in itertools.product([False, True], repeat=2):
        judgement = judge(Facts(wait_status=status, cpu_exceeded=cpu, output_exceeded=output))
        expected = [Outcome.OUTPUT_EXCEEDED] * output + [Outcome.CPU_TIME_EXCEEDED] * cpu
        expected += [last] if last else []
        assert list(judgement.findings) == (expected or [Outcome.SUCCEEDED])
        assert judgement.exit_code == exit_code
        assert judgement.cause is (Cause.LIMIT if cpu or output else Cause.PROGRAM)


def test_the_headline_is_the_first_finding_and_none_is_doubled() -> None:
    flags = list(itertools.product((False, True), repeat=3))
    ends = list(itertools.product((None, *Kill), (None, 0, 1 << 8, 9)))
    for (cpu, output, oom), (kill, status) in itertools.product(flags, ends):
        facts = Facts(
            kill=kill,
            cpu_exceeded=cpu,
            output_exceeded=output,
            oom_kills=int(oom),
            memory_limit_reached=oom,
            wait_status=status,
        )
        try:
            judgement = judge(facts)
        except SandboxFault:
            assert status is None
            assert kill is None
            assert not oom
            continue
        assert judgement.outcome is judgement.findings[0]
        assert len(set(judgement.findings)) == len(judgement.findings)

"""From the host's facts to a judgement: one pure function, and the only place where outcomes are decided.

The order: killed by us, out of memory, a fault of the sandbox, a signal, an exit. Nothing that the program wrote is
among the facts. `runsc`'s own exit code decides nothing either: it cannot tell `exit 137` from SIGKILL.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import Enum
from typing import Final

from crucible_executor.sandbox.port import Cause, Outcome, SandboxFault

_MAX_DETAIL = 2000
_DEATH_CRY: Final = re.compile(r"^(panic|fatal error): ", re.MULTILINE)
_FIRST_REALTIME, _LAST_SIGNAL = 34, 64


class Kill(Enum):
    """Why we killed a sandbox."""

    WALL_TIME = Outcome.WALL_TIME_EXCEEDED
    CPU_TIME = Outcome.CPU_TIME_EXCEEDED
    OUTPUT = Outcome.OUTPUT_EXCEEDED


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the host knows about the end of a run."""

    kill: Kill | None = None
    """Set when a limit made us kill the sandbox before its end was known."""
    wait_status: int | None = None
    """Raw wait status of the program's first process, from the sentry's trace point; None when that died with it."""
    begun: bool = True
    """The starter said that it handed over to the program."""
    cpu_exceeded: bool = False
    """More CPU time was used than allowed, whether or not the kill came in time."""
    output_exceeded: bool = False
    """A stream held more than is kept."""
    oom_kills: int = 0
    """Processes that the kernel killed for memory since delivery."""
    memory_limit_reached: bool = False
    """The sandbox's own limit was what was reached; otherwise the machine was out of memory."""
    starter_error: str = ""
    """What the starter said when it could not start the program."""
    panic: str = ""
    """The beginning of the sentry's panic log."""
    log: str = ""
    """The beginning of runsc's log of errors."""
    supervisor_code: int | None = None
    """Return code of `runsc run`, negative for a signal; None while it runs. For the detail alone."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Outcome, findings and termination; see `Verdict`."""

    outcome: Outcome
    findings: tuple[Outcome, ...]
    cause: Cause
    exit_code: int | None
    signal: str | None


_LIMIT_OUTCOMES: Final = frozenset(
    {Outcome.WALL_TIME_EXCEEDED, Outcome.CPU_TIME_EXCEEDED, Outcome.MEMORY_EXCEEDED, Outcome.OUTPUT_EXCEEDED}
)


def judge(facts: Facts) -> Judgement:
    """The judgement; raises SandboxFault when there can be none."""
    out_of_memory = facts.oom_kills > 0 and facts.memory_limit_reached
    found = [facts.kill.value] if facts.kill else []
    if facts.output_exceeded:
        found.append(Outcome.OUTPUT_EXCEEDED)
    if facts.cpu_exceeded:
        found.append(Outcome.CPU_TIME_EXCEEDED)
    if out_of_memory:
        found.append(Outcome.MEMORY_EXCEEDED)
    findings = list(dict.fromkeys(found))
    _raise_fault(facts, limited=bool(facts.kill) or out_of_memory)
    exit_code, signal_name = _termination(facts.wait_status)
    if facts.wait_status is not None and not (facts.kill or out_of_memory):
        if signal_name is not None:
            findings.append(Outcome.SIGNALED)
        elif exit_code != 0:
            findings.append(Outcome.NONZERO_EXIT)
        elif not findings:
            findings.append(Outcome.SUCCEEDED)
    outcome = findings[0]
    cause = Cause.LIMIT if outcome in _LIMIT_OUTCOMES else Cause.PROGRAM
    return Judgement(outcome, tuple(findings), cause, exit_code, signal_name)


def _raise_fault(facts: Facts, *, limited: bool) -> None:
    if limited:
        return
    if facts.oom_kills:
        raise SandboxFault(Cause.INFRASTRUCTURE, "the machine ran out of memory, below the sandbox's own limit")
    if facts.starter_error or not facts.begun:
        raise SandboxFault(Cause.SANDBOX, _detail("the starter did not start the program", facts))
    if facts.wait_status is None:
        raise SandboxFault(Cause.SANDBOX, _detail("the sandbox died without telling how its program ended", facts))


def _detail(what: str, facts: Facts) -> str:
    parts = [what]
    if facts.supervisor_code is not None:
        parts.append(f"runsc returned {facts.supervisor_code}")
    parts += [f"{name}: {text}" for name, text in _texts(facts) if text]
    return "; ".join(parts)[:_MAX_DETAIL]


def _texts(facts: Facts) -> tuple[tuple[str, str], ...]:
    return ("starter", facts.starter_error), ("sentry", _last_words(facts.panic)), ("log", facts.log)


def _last_words(told: str) -> str:
    """What the sentry wrote, from its death cry on: warnings that came long before it would take its room."""
    cry = _DEATH_CRY.search(told)
    return told if cry is None else told[cry.start() :]


def _termination(wait_status: int | None) -> tuple[int | None, str | None]:
    """Exit code or signal; a sandbox that died under its program ended it by SIGKILL."""
    if wait_status is None:
        return None, signal.Signals.SIGKILL.name
    number = wait_status & 0x7F
    if number:
        return None, signal_name(number)
    return (wait_status >> 8) & 0xFF, None


def signal_name(number: int) -> str:
    """The name of one of Linux's 64 signals, as `kill -l` has it, with SIG before it."""
    if _FIRST_REALTIME < number < _LAST_SIGNAL:
        return f"SIGRTMIN+{number - _FIRST_REALTIME}"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"

"""In place and by a new interpreter: a program does exactly the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from crucible_executor.sandbox.gvisor.driver import GvisorDriver
from crucible_executor.sandbox.port import Outcome, Program, ProgramFile
from crucible_executor.sandbox.run import run_program

from .conformance_programs import Case, load_programs
from .conftest import LIMITS, Collected

PROGRAMS = load_programs()
NEW = {"PYTHON_NEW": "1"}
"""Any variable of Python's own makes the starter start a new interpreter."""
IN_PLACE = {"CALLED": "here"}


@dataclass(frozen=True)
class Shown:
    """All that can be seen of a run from outside."""

    outcome: Outcome
    exit_code: int | None
    signal: str | None
    stdout: str
    stderr: str


async def shown(driver: GvisorDriver, case: Case, env: Mapping[str, str]) -> Shown:
    helpers = (ProgramFile(path, text.encode()) for path, text in case.files.items())
    files = (ProgramFile("main.py", case.program), *helpers)
    program = Program("python", files, args=case.args, env={**case.env, **env}, stdin=case.input)
    sink = Collected()
    verdict = await run_program(driver, program, LIMITS, sink)
    return Shown(verdict.outcome, verdict.exit_code, verdict.signal, steady(sink.stdout), steady(sink.stderr))


def steady(output: bytes) -> str:
    """Output without what differs between any two runs: addresses, identities of threads, durations."""
    return re.sub(r"0x[0-9a-f]{6,}|\b1[0-9]{14}\b|(?<= in )[0-9.]+(?=s)", "~", output.decode(errors="backslashreplace"))


def test_the_corpus_is_large_enough() -> None:
    assert sum(map(len, PROGRAMS.values())) >= 60


@pytest.mark.parametrize("group", PROGRAMS)
async def test_a_program_cannot_tell_how_it_was_started(driver: GvisorDriver, group: str) -> None:
    two_at_once = asyncio.Semaphore(2)

    async def both(case: Case) -> tuple[Shown, Shown]:
        async with two_at_once:
            return await shown(driver, case, IN_PLACE), await shown(driver, case, NEW)

    cases = PROGRAMS[group]
    ran = await asyncio.gather(*(both(case) for case in cases.values()))
    here = {name: pair[0] for name, pair in zip(cases, ran, strict=True)}
    new = {name: pair[1] for name, pair in zip(cases, ran, strict=True)}
    assert here == new


async def test_what_python_reads_at_its_start_is_honoured(driver: GvisorDriver) -> None:
    source = "import sys, time; print(hash('a'), sys.flags.optimize, sys.stdin.encoding, time.tzname[0])"
    env = {"PYTHONHASHSEED": "0", "PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "latin-1", "TZ": "XYZ1"}
    first, second = [await shown(driver, Case(source=source, env=env), {}) for _ in range(2)]
    assert first == second
    assert first.stdout.split()[1:] == ["2", "iso8859-1", "XYZ"]


async def test_hashes_differ_from_run_to_run(driver: GvisorDriver) -> None:
    case = Case(source="print(hash('a'), id(object()))")
    hashes = {(await shown(driver, case, {})).stdout for _ in range(3)}
    assert len(hashes) == 3


async def test_entrypoints_of_other_names(driver: GvisorDriver) -> None:
    for entrypoint in ("solution.py", "bin/tool", "main.pyw"):
        source = b"import sys; print(__file__, sys.argv, sys.path[0])"
        sink = Collected()
        program = Program("python", (ProgramFile(entrypoint, source),), entrypoint=entrypoint, args=("a",))
        assert (await run_program(driver, program, LIMITS, sink)).outcome is Outcome.SUCCEEDED
        folder = f"/work/{entrypoint}".rsplit("/", 1)[0]
        assert sink.stdout.decode().strip() == f"/work/{entrypoint} ['{entrypoint}', 'a'] {folder}"


async def test_packages_of_the_user_are_found(driver: GvisorDriver) -> None:
    files = {".local/lib/python3.11/site-packages/mine.py": "x = 'found'"}
    ran = await shown(driver, Case(source="import mine; print(mine.x)", files=files), {})
    assert (ran.stdout, ran.stderr) == ("found\n", "")

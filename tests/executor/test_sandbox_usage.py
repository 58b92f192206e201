"""What a run took, and what kept it waiting: figures that tell a slow program from one among loud neighbours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from crucible_executor import convert
from crucible_executor.sandbox.contention import Contention, machine_pressure, pressure_of
from crucible_executor.sandbox.port import Pressure, PressureScope, Usage

from .conftest import MIB, Run

COUNTED = Path("/proc/pressure/cpu").exists()
UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()
"""Control groups of version 2, of which each has its own figures."""
BUSY = """
import time
end = time.process_time() + 0.5
while time.process_time() < end:
    sum(range(100_000))  # to ask for the time again and again would be work of the kernel
"""
ASLEEP = "import time; time.sleep(1)"


@pytest.fixture
def neighbours() -> Generator[None]:
    """Twice as many busy processes as there are cores."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def waited(used: Usage) -> float:
    assert used.pressure is not None
    assert used.pressure.cpu is not None
    return used.pressure.cpu


async def test_cpu_time_is_split_by_mode(run: Run) -> None:
    # A kernel samples the mode at its ticks: a second of work is enough of them.
    used = (await run(BUSY.replace("0.5", "1.0"))).verdict.usage
    assert used.user_time is not None
    assert used.system_time is not None
    assert used.user_time > used.system_time
    assert used.user_time + used.system_time == pytest.approx(used.cpu_time)


async def test_a_sleeper_is_known_by_its_wall_time_and_its_cpu_time(run: Run) -> None:
    used = (await run(ASLEEP)).verdict.usage
    assert used.wall_time >= 1
    assert used.cpu_time < 0.5


@pytest.mark.skipif(not COUNTED, reason="this kernel counts no pressure: the figures are absent")
async def test_loud_neighbours_are_seen(run: Run, neighbours: None) -> None:
    used = (await run(BUSY)).verdict.usage
    assert used.wall_time > used.cpu_time / 2
    assert waited(used) > 0.2


@pytest.mark.skipif(not COUNTED, reason="this kernel counts no pressure: the figures are absent")
async def test_pressure_is_told_of_the_sandbox_alone_where_its_group_tells_it(run: Run) -> None:
    pressure = (await run(BUSY)).verdict.usage.pressure
    assert pressure is not None
    assert pressure.scope is (PressureScope.SANDBOX if UNIFIED else PressureScope.MACHINE)


async def test_what_no_quota_throttles_was_not_throttled(run: Run) -> None:
    used = (await run(BUSY)).verdict.usage
    assert used.throttled_time in (None, 0)


async def test_page_cache_is_no_memory_of_the_program(run: Run) -> None:
    source = """
import os
for root, _, names in os.walk("/usr/lib"):
    for name in names:
        path = os.path.join(root, name)
        if os.path.isfile(path):
            open(path, "rb").read()
"""
    assert (await run(source)).verdict.usage.peak_memory_bytes < 100 * MIB


def test_what_a_kernel_does_not_tell_is_absent(tmp_path: Path) -> None:
    assert pressure_of(PressureScope.SANDBOX, {name: tmp_path / name for name in ("cpu", "memory", "io")}) is None
    (tmp_path / "cpu").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\n")
    found = pressure_of(PressureScope.SANDBOX, {name: tmp_path / name for name in ("cpu", "memory", "io")})
    assert found is not None
    assert found == Pressure(PressureScope.SANDBOX, 1.5, None, None)
    before = Contention(1.0, 1.0, None, replace(found, cpu=1.0))
    later = Contention(4.0, 2.0, 3.0, found).since(before)
    assert later == Contention(3.0, 1.0, None, Pressure(PressureScope.SANDBOX, 0.5, None, None))
    assert later.split(8.0) == (6.0, 2.0)
    assert Contention(0.0, 0.0, None, None).split(0.01) is None
    assert (machine_pressure() is not None) == COUNTED


def test_absent_figures_stay_absent_in_the_contract() -> None:
    short = convert.usage(Usage(0.01, 0.01, MIB))
    assert not any(short.HasField(name) for name in ("user_time", "system_time", "throttled_time", "pressure"))
    pressure = Pressure(PressureScope.MACHINE, 0.25, None, 0.0)
    full = convert.usage(Usage(1, 1, MIB, 0.75, 0.25, 0.0, pressure))
    assert (full.user_time.ToTimedelta().total_seconds(), full.HasField("throttled_time")) == (0.75, True)
    assert full.pressure.Scope.Name(full.pressure.scope) == "MACHINE"
    assert full.pressure.cpu.ToTimedelta().total_seconds() == 0.25
    assert full.pressure.HasField("io")
    assert not full.pressure.HasField("memory")

"""What else the kernel tells of a run's time: in which mode the CPU worked, and what the run had to wait for.

Figures for people who ask whether a program is slow or its neighbours are loud. No verdict rests on them: what a kernel
does not tell is None, and so is what cannot be read at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from crucible_executor.sandbox.port import Pressure, PressureScope

RESOURCES: Final = ("cpu", "memory", "io")
MACHINE: Final = Path("/proc/pressure")


@dataclass(frozen=True, slots=True)
class Contention:
    """Counters at one moment, in seconds since they began; see `Usage` for what they mean."""

    user: float
    system: float
    throttled: float | None
    pressure: Pressure | None

    def since(self, before: Self) -> Contention:
        """What was added after an earlier moment."""
        return Contention(
            user=max(0.0, self.user - before.user),
            system=max(0.0, self.system - before.system),
            throttled=_difference(self.throttled, before.throttled),
            pressure=_pressure_since(self.pressure, before.pressure),
        )

    def split(self, cpu_time: float) -> tuple[float, float] | None:
        """CPU time in user and in system mode. The kernel samples the mode: None for a run too short to be sampled."""
        sampled = self.user + self.system
        if sampled <= 0:
            return None
        user = cpu_time * self.user / sampled
        return user, cpu_time - user


def pressure_of(scope: PressureScope, files: dict[str, Path]) -> Pressure | None:
    """Stalls so far, by the kernel's file of each of RESOURCES; None where the kernel counts none."""
    stalled = {resource: _stalled(path) for resource, path in files.items()}
    if all(seconds is None for seconds in stalled.values()):
        return None
    return Pressure(scope, stalled["cpu"], stalled["memory"], stalled["io"])


def machine_pressure() -> Pressure | None:
    """Of the whole machine."""
    return pressure_of(PressureScope.MACHINE, {resource: MACHINE / resource for resource in RESOURCES})


def _stalled(path: Path) -> float | None:
    try:
        words = path.read_text(encoding="ascii").split()
        return next(int(word.removeprefix("total=")) for word in words if word.startswith("total=")) / 1e6
    except (OSError, StopIteration):
        return None


def _difference(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else max(0.0, later - earlier)


def _pressure_since(later: Pressure | None, earlier: Pressure | None) -> Pressure | None:
    if later is None or earlier is None:
        return None
    return Pressure(
        later.scope,
        _difference(later.cpu, earlier.cpu),
        _difference(later.memory, earlier.memory),
        _difference(later.io, earlier.io),
    )

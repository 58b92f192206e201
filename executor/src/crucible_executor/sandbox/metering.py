"""What a running program uses, looked at every 50 ms: the latest look, the peak, and when the CPU time is used up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from crucible_executor.sandbox.cgroup import Cgroup, CgroupError
from crucible_executor.sandbox.contention import Contention
from crucible_executor.sandbox.port import Usage, UsageSample

INTERVAL: Final = 0.05
SETTLED: Final = 0.01
"""Seconds after which figures of contention begin: a shorter run is spared the cost of reading them."""


class Meter:
    """Measures one run, from `start` to `stop`."""

    def __init__(
        self, cgroup: Cgroup, cpu_limit: float, on_exceeded: Callable[[], None], on_error: Callable[[CgroupError], None]
    ) -> None:
        self._cgroup = cgroup
        self._cpu_limit = cpu_limit
        self._on_exceeded = on_exceeded
        self._on_error = on_error
        self.latest: UsageSample | None = None
        """The newest look."""
        self._peak = 0
        self._cpu = 0.0
        self._cpu_before = 0.0
        self._contention_before: Contention | None = None
        self._contention_now: Contention | None = None
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None

    def prime(self) -> None:
        """Note what was used before the program; call it just before delivery."""
        self._cpu_before = self._cgroup.cpu_seconds()

    def start(self) -> None:
        """Begin: the run counts from now."""
        self._began = time.monotonic()
        self._settling = asyncio.get_running_loop().call_later(SETTLED, self._settled)
        self._schedule()

    def stop(self) -> None:
        """No further looks; idempotent."""
        for timer in (self._timer, self._settling):
            if timer is not None:
                timer.cancel()
        self._timer = self._settling = None

    def finish(self) -> None:
        """Take the last look at a run that ended; raises CgroupError."""
        self.stop()
        self._cpu = max(self._cpu, self._cgroup.cpu_seconds() - self._cpu_before)
        self._peak = max(self._peak, self._cgroup.peak_memory_bytes())
        if self._contention_before is not None:
            self._contention_now = self._contention()

    @property
    def cpu_exceeded(self) -> bool:
        """More CPU time was used than allowed."""
        return self._cpu > self._cpu_limit

    def usage(self, ended: float) -> Usage:
        """All that was measured, for a run that ended at a monotonic time."""
        usage = Usage(max(0.0, ended - self._began), self._cpu, self._peak)
        if self._contention_before is None or self._contention_now is None:
            return usage
        found = self._contention_now.since(self._contention_before)
        user, system = found.split(self._cpu) or (None, None)
        return replace(
            usage, user_time=user, system_time=system, throttled_time=found.throttled, pressure=found.pressure
        )

    def _settled(self) -> None:
        self._contention_before = self._contention()

    def _contention(self) -> Contention | None:
        """Figures that no verdict rests on: a kernel that does not have them ends no run."""
        try:
            return self._cgroup.contention()
        except (CgroupError, KeyError, ValueError):
            return None

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def _look(self) -> None:
        try:
            self._cpu = self._cgroup.cpu_seconds() - self._cpu_before
            memory = self._cgroup.memory_bytes()
        except CgroupError as error:
            self._on_error(error)
            return
        self._peak = max(self._peak, memory)
        self.latest = UsageSample(time.monotonic() - self._began, self._cpu, memory)
        if self.cpu_exceeded:
            self._on_exceeded()
        else:
            self._schedule()

"""When a lapsed lease may be judged: rule 9 of the protocol, as a machine without a clock of its own.

A reaper that was paused, deaf or is new knows nothing about who is alive: the heartbeats it would have answered may
have failed for its own sake. So it must have one L of a working path behind it, counted tick by tick, and then see the
same lease lapsed twice. What interrupts takes off as much as it lasted, not all: where a path stutters, what is really
lost must still be found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

TICK_SECONDS = 1.0
"""From one tick to the next."""


@dataclass(frozen=True, slots=True)
class LeaseKey:
    """One lease; the token makes it unique."""

    evaluation_id: str
    attempt: int
    token: str


class Reaper:
    """Decides which lapsed leases are judged. Times are seconds of one monotonic clock and never go back."""

    def __init__(self, *, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._beat_seconds = lease_seconds / 5
        """Time that a heartbeat, and so a probe, has for its answer."""
        self._worked = 0.0
        """Seconds of a working path less those of interruptions; never below 0, nor above L."""
        self._last_tick = -math.inf
        self._first_seen: dict[LeaseKey, float] = {}

    @property
    def probe_seconds(self) -> float:
        """A probe that is answered later has failed."""
        return self._beat_seconds

    def tick(self, now: float, *, probe_succeeded: bool) -> bool:
        """Notes a tick and the outcome of its probe; says whether lapsed leases are to be looked at in it."""
        if probe_succeeded and not self._held_up(now):
            self._worked = min(self._lease_seconds, self._worked + now - self._last_tick)
            self._last_tick = now
        else:
            self._interrupt(now)
        return self._worked >= self._lease_seconds

    def due(self, now: float, lapsed: Iterable[LeaseKey]) -> list[LeaseKey]:
        """Of the leases found lapsed in the present tick, those to be judged: seen so before, at least L/5 ago.

        `now` is when they were found. A lease that is not among them is forgotten: it was extended or settled.
        """
        if self._held_up(now):
            self._interrupt(now)
            return []
        self._first_seen = {key: self._first_seen.get(key, now) for key in lapsed}
        return [key for key, seen in self._first_seen.items() if now - seen >= self._beat_seconds]

    def _held_up(self, now: float) -> bool:
        return now - self._last_tick > TICK_SECONDS + self._beat_seconds

    def _interrupt(self, now: float) -> None:
        self._worked = max(0.0, self._worked - (now - self._last_tick))
        self._last_tick = now
        self._first_seen = {}

"""When a lapsed lease may be judged: rule 9 of the protocol, as a machine without a clock of its own.

A reaper that was paused, deaf or is new knows nothing about who is alive: the heartbeats it would have answered may
have failed for its own sake. So it must first have seen one L of a working path, tick by tick, and then see the same
lease lapsed twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_TICK_GAP_SECONDS = 2.0
"""Ticks are a second apart; a larger gap than this means that the reaper was held up."""


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
        self._unbroken_since: float | None = None
        self._last_tick: float | None = None
        self._first_seen: dict[LeaseKey, float] = {}

    def tick(self, now: float, *, probe_succeeded: bool) -> bool:
        """Notes a tick and the outcome of its probe; says whether lapsed leases are to be looked at in it."""
        if not probe_succeeded:
            self._restart(None)
            return False
        if self._last_tick is None or now - self._last_tick > MAX_TICK_GAP_SECONDS:
            self._restart(now)
        self._last_tick = now
        assert self._unbroken_since is not None
        return now - self._unbroken_since >= self._lease_seconds

    def due(self, now: float, lapsed: Iterable[LeaseKey]) -> list[LeaseKey]:
        """Of the leases found lapsed in the present tick, those to be judged: seen so before, at least L/5 ago.

        `now` is when they were found. A lease that is not among them is forgotten: it was extended or settled.
        """
        if self._last_tick is None or now - self._last_tick > MAX_TICK_GAP_SECONDS:
            self._restart(None)
            return []
        self._first_seen = {key: self._first_seen.get(key, now) for key in lapsed}
        return [key for key, seen in self._first_seen.items() if now - seen >= self._lease_seconds / 5]

    def _restart(self, since: float | None) -> None:
        self._unbroken_since = since
        self._last_tick = since
        self._first_seen = {}

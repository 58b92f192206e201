"""When a lapsed lease may be judged: rule 9 of the protocol, as a machine without a clock of its own.

A reaper that was paused, deaf or is new knows nothing about who is alive: the heartbeats it would have answered may
have failed for its own sake. So it waits for L of a working path, tick by tick, and then for the same lease to be seen
lapsed twice. After an interruption that was shorter than L it waits for one heartbeat's time instead: where a path
stutters for ever, what is really lost must still be found, and whoever lives has beaten by then.
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
        """From one heartbeat to the next; and the time that it, and so a probe, has for its answer."""
        self._last_good = -math.inf
        """The last tick whose probe succeeded."""
        self._interrupted = True
        self._look_from = math.inf
        self._first_seen: dict[LeaseKey, float] = {}

    @property
    def probe_seconds(self) -> float:
        """A probe that is answered later has failed."""
        return self._beat_seconds

    def tick(self, now: float, *, probe_succeeded: bool) -> bool:
        """Notes a tick and the outcome of its probe; says whether lapsed leases are to be looked at in it."""
        if not probe_succeeded:
            self._interrupted = True
            return False
        if self._interrupted or self._held_up(now):
            lasted = now - self._last_good
            self._look_from = now + (self._beat_seconds if lasted < self._lease_seconds else self._lease_seconds)
            self._first_seen = {}
            self._interrupted = False
        self._last_good = now
        return now >= self._look_from

    def due(self, now: float, lapsed: Iterable[LeaseKey]) -> list[LeaseKey]:
        """Of the leases found lapsed in the present tick, those to be judged: seen so before, at least L/5 ago.

        `now` is when they were found. A lease that is not among them is forgotten: it was extended or settled.
        """
        if self._held_up(now):
            self._interrupted = True
            return []
        self._first_seen = {key: self._first_seen.get(key, now) for key in lapsed}
        return [key for key, seen in self._first_seen.items() if now - seen >= self._beat_seconds]

    def _held_up(self, now: float) -> bool:
        return now - self._last_good > TICK_SECONDS + self._beat_seconds

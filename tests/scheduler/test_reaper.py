"""Rule 9: a reaper that was paused, deaf or is new judges nothing before it has seen one L of a working path."""

from __future__ import annotations

import pytest

from crucible_scheduler.domain.reaper import LeaseKey, Reaper

L = 15.0
LEASE = LeaseKey("evaluation", 1, "token")
OTHER = LeaseKey("evaluation", 2, "other")


class Clock:
    """Drives a reaper tick by tick, as its loop does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reaper = Reaper(lease_seconds=L)

    def tick(self, *lapsed: LeaseKey, after: float = 1.0, probe: bool = True, look: float = 0.0) -> list[LeaseKey]:
        """One tick; what it judges of the leases that are lapsed by then."""
        self.now += after
        if not self.reaper.tick(self.now, probe_succeeded=probe):
            return []
        return self.reaper.due(self.now + look, lapsed)

    def ticks(self, count: int, *lapsed: LeaseKey) -> list[list[LeaseKey]]:
        return [self.tick(*lapsed) for _ in range(count)]


def test_a_new_reaper_waits_one_l_and_then_l_fifths_more() -> None:
    clock = Clock()
    judged = clock.ticks(19, LEASE)
    assert judged == [[]] * 18 + [[LEASE]]  # tick 1 begins, tick 16 looks first, tick 19 is 3 s later


def test_one_sight_is_not_enough_and_the_second_may_come_late() -> None:
    clock = Clock()
    clock.ticks(30)
    assert clock.ticks(4, LEASE) == [[], [], [], [LEASE]]


def test_a_lease_that_was_extended_meanwhile_begins_anew() -> None:
    clock = Clock()
    clock.ticks(30)
    assert clock.ticks(3, LEASE) == [[], [], []]
    assert clock.tick() == []
    assert clock.ticks(4, LEASE) == [[], [], [], [LEASE]]


def test_leases_are_told_apart_by_their_token() -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, OTHER) == [LEASE]
    assert clock.tick(OTHER) == []


def test_a_failed_probe_restarts_the_count() -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, probe=False) == []
    assert clock.ticks(19, LEASE) == [[]] * 18 + [[LEASE]]


@pytest.mark.parametrize("gap", [2.1, 60.0, 3600.0])
def test_a_pause_restarts_the_count(gap: float) -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, after=gap) == []
    assert clock.ticks(18, LEASE) == [[]] * 17 + [[LEASE]]


def test_a_late_tick_within_two_seconds_is_no_pause() -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(2, LEASE)
    assert clock.tick(LEASE, after=2.0) == [LEASE]


def test_a_pause_between_the_probe_and_the_look_judges_nothing() -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, look=5.0) == []
    assert clock.tick(LEASE) == []

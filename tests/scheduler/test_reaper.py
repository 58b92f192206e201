"""Rule 9: a reaper that was paused, deaf or is new judges nothing before it has one L of a working path behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_failed_probe_takes_off_what_it_lasted_and_forgets_what_was_seen() -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, after=3.0, probe=False) == []
    assert clock.ticks(6, LEASE) == [[]] * 5 + [[LEASE]]  # 3 s to have one L again, then 3 s between two sights


@pytest.mark.parametrize("gap", [15.0, 60.0, 3600.0])
def test_a_pause_of_one_l_or_more_restarts_the_count(gap: float) -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, after=gap) == []
    assert clock.ticks(18, LEASE) == [[]] * 17 + [[LEASE]]


def test_a_probe_has_the_time_of_a_heartbeat() -> None:
    clock = Clock()
    assert clock.reaper.probe_seconds == L / 5
    clock.ticks(30)
    clock.ticks(1, LEASE)
    assert clock.tick(LEASE, after=4.0) == [LEASE]
    assert clock.tick(LEASE, after=4.1) == []


def test_where_the_path_stutters_what_is_lost_is_still_found() -> None:
    # Under the rule that any interruption starts the count anew nothing would ever be judged here.
    clock = Clock()
    judged: list[list[LeaseKey]] = []
    for _ in range(12):
        judged += clock.ticks(9, LEASE)
        judged.append(clock.tick(LEASE, after=1.2, probe=False))
    assert [LEASE] in judged


def test_a_pause_between_the_probe_and_the_look_judges_nothing() -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, look=5.0) == []
    assert clock.tick(LEASE) == []


class Path:
    """Works and does not, in turns of so many tenths of a second; what is asked meanwhile is answered when it goes on.

    That is how servers behave that stand still for a moment; who has no answer after L/5 asks again.
    """

    def __init__(self, turns: list[tuple[int, int]]) -> None:
        self._works = [works for up, down in turns for works in [True] * up + [False] * down]

    def answered(self, asked: int) -> int | None:
        """When, in tenths of a second; None if not within L/5."""
        last = asked + round(L / 5 * 10)
        return next((now for now in range(asked, last + 1) if now >= len(self._works) or self._works[now]), None)


@given(st.lists(st.tuples(st.integers(1, 250), st.integers(0, 250)), max_size=20), st.integers(0, 30))
def test_whoever_lives_keeps_the_lease_however_the_path_stutters(turns: list[tuple[int, int]], phase: int) -> None:
    path, end = Path(turns), sum(map(sum, turns)) + 400
    extended: list[int] = [0]
    now = phase
    while now < end:
        answer = path.answered(now)
        if answer is not None:
            extended.append(answer)
        now = now + 30 if answer is not None else now + 35
    reaper, now = Reaper(lease_seconds=L), 0
    while now < end:
        answer = path.answered(now)
        tick = now + 30 if answer is None else answer
        if reaper.tick(tick / 10, probe_succeeded=answer is not None):
            held = max(moment for moment in extended if moment <= tick)
            lapsed = [LEASE] if tick - held > L * 10 else []
            assert reaper.due(tick / 10, lapsed) == []
        now = max(tick, now + 10)

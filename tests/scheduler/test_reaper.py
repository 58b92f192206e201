"""Rule 9: a reaper that was paused, deaf or is new judges nothing before it has seen one L of a working path."""

from __future__ import annotations

import pytest
from hypothesis import example, given
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


def test_after_a_failed_probe_two_heartbeats_fit_before_anything_is_judged() -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, after=3.0, probe=False) == []
    assert clock.ticks(7, LEASE) == [[]] * 6 + [[LEASE]]  # tick 1 begins, tick 4 looks first, tick 7 is 3 s later


def test_a_path_that_failed_for_one_l_restarts_the_count() -> None:
    clock = Clock()
    clock.ticks(30)
    for _ in range(14):
        clock.tick(LEASE, probe=False)
    assert clock.ticks(19, LEASE) == [[]] * 18 + [[LEASE]]


@pytest.mark.parametrize(("gap", "ticks"), [(4.1, 6), (14.9, 6), (15.0, 18), (60.0, 18), (3600.0, 18)])
def test_a_pause_costs_one_heartbeat_more_and_one_of_l_restarts_the_count(gap: float, ticks: int) -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, after=gap) == []
    assert clock.ticks(ticks, LEASE) == [[]] * (ticks - 1) + [[LEASE]]


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
        judged += clock.ticks(8, LEASE)
        judged.append(clock.tick(LEASE, after=5.0, probe=False))
    assert [LEASE] in judged


def test_a_pause_between_the_probe_and_the_look_judges_nothing() -> None:
    clock = Clock()
    clock.ticks(30)
    clock.ticks(3, LEASE)
    assert clock.tick(LEASE, look=5.0) == []
    assert clock.tick(LEASE) == []


class Path:
    """Works and does not, in turns of so many tenths of a second: it stands still, or what is asked meanwhile is lost.

    Servers that stand still answer when they go on. To lose what it was asked a server must end, and be away for L/5.
    Who has no answer after L/5 asks again.
    """

    def __init__(self, turns: list[tuple[int, int, bool]]) -> None:
        self._states: list[str] = []
        for up, down, loses in turns:
            self._states += ["works"] * up + ["loses" if loses and down >= BEAT else "stands still"] * down

    def answered(self, asked: int) -> int | None:
        """When, in tenths of a second; None if not within L/5."""
        states = [self._states[now] if now < len(self._states) else "works" for now in range(asked, asked + BEAT + 1)]
        if states[0] == "loses" or "works" not in states:
            return None
        return asked + states.index("works")


BEAT = round(L / 5 * 10)
RETRY = 5


@given(st.lists(st.tuples(st.integers(1, 250), st.integers(0, 250), st.booleans()), max_size=20), st.integers(0, BEAT))
@example([(1, 30, False), (251, 124, True), (6, 99, True)], 0)  # judged 3 s after, it would be judged wrongly
def test_whoever_lives_keeps_the_lease_however_the_path_stutters(
    turns: list[tuple[int, int, bool]], phase: int
) -> None:
    path, end = Path(turns), sum(up + down for up, down, _ in turns) + 400
    extended, now = [0], phase
    while now < end:
        if (answer := path.answered(now)) is not None:
            extended.append(answer)
        now = max(answer, now + BEAT) if answer is not None else now + BEAT + RETRY
    reaper, now = Reaper(lease_seconds=L), 0
    while now < end:
        answer = path.answered(now)
        tick = now + BEAT if answer is None else answer
        if reaper.tick(tick / 10, probe_succeeded=answer is not None):
            held = max(moment for moment in extended if moment <= tick)
            assert reaper.due(tick / 10, [LEASE] if tick - held > L * 10 else []) == []
        now = max(tick, now + 10)

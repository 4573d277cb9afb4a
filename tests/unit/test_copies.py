"""How many copies there should be: up in proportion when requests wait, down one by one, and never to and fro."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.router.copies import CALM_S, LONGEST_CALM_S, PERIOD_S, PERIODS_PRESSED, Bounds, CopyCount, Seen
from roost.router.steady import MINUTES, Steady

MACHINES = 8
RUN_S = 0.01
FREE = Bounds()


def seen(copies: int, demand: float, *, run_s: float = RUN_S, **more: int) -> Seen:
    """What copies show that get so much work for as many of them: the mean wait where batches take equally long."""
    share = demand / max(1, copies)
    wait_s = run_s * share / (2 * (1 - share)) if share < 1 else 10.0
    return Seen(copies, demand=demand, wait_s=wait_s, run_s=run_s, **{"room": MACHINES - copies, **more})


def play(
    demand: Callable[[float], float], seconds: float, bounds: Bounds = FREE, copies: int = 1, run_s: float = RUN_S
) -> Iterator[tuple[float, int]]:
    """The number of copies after each period, where all that are wanted are there at once."""
    count = CopyCount(0.0)
    for step in range(1, int(seconds / PERIOD_S) + 1):
        now = step * PERIOD_S
        copies = count.wanted(seen(copies, demand(now), run_s=run_s), bounds, now)
        yield now, copies


def changes_of(course: Iterator[tuple[float, int]], start: int = 1) -> list[tuple[float, int]]:
    """When copies came (positive) and went."""
    changes: list[tuple[float, int]] = []
    for now, copies in course:
        if copies != start:
            changes.append((now, copies - start))
            start = copies
    return changes


@pytest.mark.parametrize(
    ("demand", "most", "copies"), [(0.2, 8, 1), (0.65, 8, 1), (0.9, 8, 2), (2.5, 8, 4), (2.5, 3, 3), (40.0, 8, 8)]
)
def test_copies_rise_in_proportion_within_two_periods_of_waiting(demand: float, most: int, copies: int) -> None:
    course = list(play(lambda now: demand, 2.0, Bounds(0, most)))
    assert course[PERIODS_PRESSED - 2][1] == 1
    assert course[PERIODS_PRESSED - 1][1] == copies


def test_one_burst_adds_nothing() -> None:
    assert not changes_of(play(lambda now: 5.0 if int(now / PERIOD_S) % 7 == 0 else 0.1, 60.0))


def test_they_fall_back_one_at_a_time_and_not_below_the_least() -> None:
    course = play(lambda now: 3.9 if now < 10.0 else 0.0, 600.0, Bounds(2, math.inf), copies=2)
    (_, up), *downs = changes_of(course, 2)
    assert up == 4
    assert [step for _, step in downs] == [-1] * 4
    times = [10.0 - PERIOD_S, *(at for at, _ in downs)]
    assert all(later - earlier >= CALM_S for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize(
    ("what", "bounds", "wanted"),
    [
        (Seen(0), Bounds(2), 2),
        (Seen(1), Bounds(3), 3),
        (Seen(4), Bounds(0, 2), 2),
        (Seen(4), Bounds(3, 2), 3),
        (Seen(2, coming=1), Bounds(2), 2),
    ],
)
def test_the_bounds_hold_at_once(what: Seen, bounds: Bounds, wanted: int) -> None:
    assert CopyCount(0.0).wanted(what, bounds, 1.0) == wanted


def test_refusals_count_as_waiting_and_nothing_is_added_where_no_worker_has_time() -> None:
    count = CopyCount(0.0)
    for step in range(10):
        assert count.wanted(Seen(1, demand=1.0, refused=3), Bounds(), step * PERIOD_S) == 1
    assert count.wanted(Seen(1, demand=1.0, refused=3, room=1), Bounds(), 5.0) == 2


def test_waits_for_anything_but_workers_add_nothing() -> None:
    count = CopyCount(0.0)
    for step in range(10):
        what = Seen(1, demand=0.1, wait_s=0.2, run_s=RUN_S, room=3, busy=0.2)
        assert count.wanted(what, Bounds(), step * PERIOD_S) == 1


def test_no_more_are_added_while_some_are_coming() -> None:
    count = CopyCount(0.0)
    for step in range(10):
        assert count.wanted(seen(2, 6.0, coming=1), Bounds(), step * PERIOD_S) == 2


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, MACHINES), st.integers(0, 3), st.sampled_from([0.001, 0.01, 0.5]), st.integers(0, 1000))
def test_a_constant_load_that_trembles_settles(demand: float, least: int, run_s: float, seed: int) -> None:
    trembling = random.Random(seed)
    course = list(play(lambda now: demand * trembling.uniform(0.9, 1.1), 900.0, Bounds(least), 1, run_s))
    steps = [step for _, step in changes_of(iter(course))]
    assert all(step > 0 for step in steps), "once there are enough, none goes"
    assert len(steps) <= 4
    assert course[-1][1] >= max(min(MACHINES, demand), least)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 6.0), st.floats(0.05, 1.0), st.floats(1.0, 200.0), st.sampled_from([0.001, 0.01]))
def test_an_oscillating_load_is_not_followed_to_and_fro(
    middle: float, swing: float, every_s: float, run_s: float
) -> None:
    def demand(now: float) -> float:
        return middle * (1 + swing * (1 if now % every_s < every_s / 2 else -1))

    changes = changes_of(play(demand, 3600.0, run_s=run_s))
    reversals = [
        later - earlier
        for (earlier, down), (later, up) in itertools.pairwise(changes)
        if down < 0 < up and later - earlier <= CALM_S
    ]
    assert len(reversals) <= math.log2(LONGEST_CALM_S / CALM_S)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.5, 90.0)), min_size=1, max_size=20),
    st.integers(0, 4),
    st.one_of(st.just(math.inf), st.integers(1, 8)),
)
def test_whatever_comes_the_bounds_hold_and_copies_go_slowly(
    plan: list[tuple[float, float]], least: int, most: float
) -> None:
    levels = [level for level, seconds in plan for _ in range(int(seconds / PERIOD_S))]
    course = list(play(lambda now: levels[int(now / PERIOD_S) - 1], len(levels) * PERIOD_S, Bounds(least, most)))
    assert all(max(1, least) <= copies <= max(most, least, 1) for _, copies in course)
    changes = changes_of(iter(course))
    assert all(step >= -1 for _, step in changes)
    downs = [at for at, step in changes if step < 0]
    assert all(later - earlier >= CALM_S for earlier, later in itertools.pairwise(downs))


def test_constant_use_is_one_without_a_minute_off() -> None:
    steady = Steady()
    for minute in range(1, 30):
        used = ["always", *(["often"] if minute % 5 else []), *(["burst"] if minute == 3 else [])]
        assert steady.look(used) == (["always"] if minute >= MINUTES else [])

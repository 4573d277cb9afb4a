"""Which models are used on a timer, and when they are due."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from roost.router.periods import LEAD_LOADS, Periods

LOAD_S = 0.5


def used_at(times: Sequence[float], owner: str = "a") -> Periods:
    periods = Periods()
    for time in times:
        periods.due(time)
        periods.used(owner, time, LOAD_S)
    return periods


def test_a_timer_is_due_before_its_next_tick() -> None:
    periods = used_at([60.0 * tick for tick in range(30)])
    due = periods.next_due()
    assert 1740.0 < due <= 1800.0 - LEAD_LOADS * LOAD_S
    assert periods.due(due - 0.001) == []
    ((owner, expected),) = periods.due(due)
    assert owner == "a"
    assert expected == pytest.approx(1800.0)
    assert periods.due(1800.0) == []
    assert periods.awaited_until("a", due - 0.001) == -math.inf
    assert periods.awaited_until("a", due) >= 1800.0


def test_a_late_tick_moves_what_is_due() -> None:
    periods = used_at([60.0 * tick for tick in range(30)])
    first = periods.next_due()
    periods.used("a", 1750.0, LOAD_S)
    assert all(owner != "a" for owner, _ in periods.due(first))
    assert periods.awaited_until("a", first) == -math.inf


def test_several_uses_at_a_tick_are_one_occasion() -> None:
    periods = used_at([60.0 * tick + late for tick in range(30) for late in (0.0, 0.1, 0.4)])
    ((_, expected),) = periods.due(1799.9)
    assert expected == pytest.approx(1800.0)


@pytest.mark.parametrize(
    "times",
    [
        pytest.param([0.0, 60.0, 120.0], id="too few"),
        pytest.param([2.0 * tick for tick in range(100)], id="too often to ever go"),
        pytest.param([float(2**tick) for tick in range(12)], id="ever seldomer"),
        pytest.param([0.01 * tick for tick in range(5000)], id="all the time"),
    ],
)
def test_no_timer(times: Sequence[float]) -> None:
    assert used_at(times).next_due() == math.inf


def test_independent_requests_are_hardly_ever_taken_for_a_timer() -> None:
    random_ = random.Random(7)
    taken = 0
    for _ in range(300):
        time, times = 0.0, []
        for _ in range(50):
            time += random_.expovariate(1 / 300.0)
            times.append(time)
        taken += used_at(times).due(math.inf) != []
    assert taken <= 3


def test_one_that_is_forgotten_is_not_due() -> None:
    periods = used_at([60.0 * tick for tick in range(30)])
    periods.forget("a")
    assert periods.due(math.inf) == []
    assert periods.awaited_until("a", 1799.0) == -math.inf

"""When loads are expected to be over: never later than they can be, so that nobody is refused for nothing."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.router.forecast import Forecast
from roost.router.loads import Load, LoadPriority, Outcome
from roost.router.revision import Revision

STEPS = ("add", "begin", "pause", "end")


def load_of(expected_s: float, priority: LoadPriority = LoadPriority.REQUEST, importance: int = 0) -> Load:
    future = cast("asyncio.Future[Outcome]", None)
    return Load(cast(Revision, None), future, priority, importance=importance, expected_s=expected_s)


def test_what_has_a_free_turn_takes_as_long_as_it_did_before() -> None:
    forecast, load = Forecast(2), load_of(3.0)
    forecast.add(load, 10.0)
    assert load.expected_at == 13.0


def test_it_waits_for_a_turn_and_for_those_that_go_before_it() -> None:
    forecast = Forecast(1)
    begun, urgent, late, last = load_of(4.0), load_of(2.0), load_of(8.0, LoadPriority.PRELOAD), load_of(1.0)
    forecast.add(begun, 0.0)
    forecast.begin(begun, 0.0)
    for load in (late, urgent, last):
        forecast.add(load, 1.0)
    assert [load.expected_at for load in (begun, urgent, last, late)] == [4.0, 6.0, 7.0, 12.0]
    late.urge(LoadPriority.REQUEST, 0.0, kept=False)
    forecast.add(late, 1.0)
    assert late.expected_at == 15.0, "behind those that asked before it did"
    forecast.end(begun)
    forecast.end(last)
    newcomer = load_of(0.5)
    forecast.add(newcomer, 5.0)
    assert newcomer.expected_at == 15.5


def test_a_model_that_is_worth_more_does_not_wait_for_others() -> None:
    forecast = Forecast(1)
    normal, high, low = load_of(2.0), load_of(1.0, importance=1), load_of(4.0, importance=-1)
    for load in (normal, high, low):
        forecast.add(load, 0.0)
    assert [load.expected_at for load in (normal, high, low)] == [2.0, 1.0, 7.0]
    forecast.look_again(normal, 0.0)
    assert normal.expected_at == 2.0, "one that has come since may go first, but nobody is refused for what may be"
    late = load_of(1.0, LoadPriority.PRELOAD, importance=9)
    forecast.add(late, 0.0)
    assert late.expected_at == 8.0


def test_a_load_that_takes_longer_than_expected_is_over_at_any_moment() -> None:
    forecast = Forecast(1)
    begun, next_ = load_of(1.0), load_of(1.0)
    forecast.add(begun, 0.0)
    forecast.begin(begun, 0.0)
    forecast.add(next_, 5.0)
    assert next_.expected_at == 6.0


def test_what_is_not_known_counts_as_nothing_for_itself_and_as_usual_for_others() -> None:
    forecast = Forecast(1)
    unknown, other = load_of(0.0), load_of(0.0)
    forecast.add(unknown, 0.0)
    forecast.add(other, 0.0)
    assert (unknown.expected_at, other.expected_at) == (0.0, 0.0)
    for load in (unknown, other):
        forecast.end(load)
    forecast.took(2.0)
    forecast.took(1.0)
    forecast.add(unknown, 0.0)
    forecast.add(other, 0.0)
    assert unknown.expected_at == 0.0
    assert other.expected_at == pytest.approx(1.8)


def test_one_slow_load_does_not_refuse_a_line_of_quick_ones() -> None:
    forecast = Forecast(1)
    for load_s in [0.01] * 50 + [60.0]:
        forecast.took(load_s)
    for _ in range(10):
        forecast.add(load_of(0.0), 0.0)
    newcomer = load_of(0.0)
    forecast.add(newcomer, 0.0)
    assert newcomer.expected_at < 10.0


def test_when_loads_are_quick_again_that_holds_for_what_already_waits() -> None:
    forecast, line = Forecast(1), [load_of(0.0) for _ in range(100)]
    forecast.took(5.0)
    for load in line:
        forecast.add(load, 0.0)
    last = line[-1]
    assert last.expected_at == pytest.approx(99 * 5.0)
    for _ in range(30):
        forecast.took(0.01)
    forecast.look_again(last, 1.0)
    assert last.expected_at < 10.0
    newcomer = load_of(0.0)
    forecast.add(newcomer, 1.0)
    assert newcomer.expected_at < 10.0


def test_a_second_look_never_expects_more_and_minds_what_the_line_waits_for() -> None:
    forecast, head, behind = Forecast(1), load_of(1.0), load_of(2.0)
    forecast.add(head, 0.0)
    forecast.add(behind, 0.0)
    forecast.look_again(head, 0.0)
    assert head.expected_at == 1.0
    forecast.blocked(head, 7.0)
    forecast.look_again(head, 0.0)
    assert head.expected_at == 8.0
    forecast.end(head)
    forecast.look_again(behind, 0.0)
    assert behind.expected_at == 2.0


def test_the_line_waits_for_memory() -> None:
    forecast = Forecast(1)
    head, behind = load_of(1.0), load_of(1.0)
    forecast.add(head, 0.0)
    forecast.blocked(head, 7.0)
    forecast.add(behind, 2.0)
    assert (head.expected_at, behind.expected_at) == (8.0, 9.0)
    forecast.end(head)  # those behind it may need less
    forecast.end(behind)
    forecast.add(behind, 4.0)
    assert behind.expected_at == 5.0


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.floats(0, 9)), max_size=60),
)
def test_nothing_is_left_when_all_have_ended(turns: int, steps: list[tuple[str, int, float]]) -> None:
    forecast, loads, now = Forecast(turns), [load_of(float(i), list(LoadPriority)[i % 5], i % 2) for i in range(6)], 0.0
    for what, index, passed_s in steps:
        now += passed_s
        load = loads[index]
        if what == "end":
            forecast.end(load)
        else:
            getattr(forecast, what)(load, now)
            assert what == "pause" or load.expected_at >= now + load.expected_s
    for load in loads:
        forecast.end(load)
    fresh = load_of(1.0)
    forecast.add(fresh, now)
    assert fresh.expected_at == pytest.approx(now + 1.0)

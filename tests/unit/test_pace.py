"""How long batches take, learned from those that ran."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.router.pace import BELIEVED_RUNS, EVERY_S, LONGEST_BELIEF_S, SHORTEST_BELIEF_S, Cautious, Pace

NOW = 1_000.0
BATCHES = st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), min_size=1, max_size=60)


def learned(batches: list[tuple[int, float]]) -> Pace:
    pace = Pace()
    for place, (rows, took_s) in enumerate(batches):
        pace.observe(rows, took_s, NOW + place * 2 * EVERY_S)
    return pace


@given(BATCHES)
def test_predictions_are_never_negative_and_grow_with_the_rows(batches: list[tuple[int, float]]) -> None:
    pace = learned(batches)
    predicted = [pace.estimate(rows) for rows in range(1, 65)]
    assert predicted == sorted(predicted)
    assert predicted[0] >= -1e-12
    assert max(predicted[:1]) <= 1.001 * max(took_s for _, took_s in batches)


@given(BATCHES, st.floats(0, 20), st.integers(1, 64))
def test_the_largest_batch_that_fits_is_that(batches: list[tuple[int, float]], within_s: float, limit: int) -> None:
    pace = learned(batches)
    rows = pace.most_rows(within_s, limit)
    assert 0 <= rows <= limit
    assert not rows or pace.estimate(rows) <= within_s * (1 + 1e-9) + 1e-9
    assert rows == limit or pace.estimate(rows + 1) >= within_s * (1 - 1e-9)


@pytest.mark.parametrize(("b", "a"), [(0.005, 0.0001), (0.0005, 0.002), (0.003, 0.0), (0.0, 0.004)])
def test_what_is_linear_is_found(b: float, a: float) -> None:
    draw = random.Random(1)
    pace = learned([(rows, (b + a * rows) * draw.uniform(0.97, 1.03)) for rows in draw.choices(range(1, 17), k=80)])
    for rows in (1, 8, 16):
        assert pace.estimate(rows) == pytest.approx(b + a * rows, rel=0.15)
    assert pace.single_s == pace.estimate(1)


def test_with_one_size_half_is_taken_to_be_per_row() -> None:
    pace = learned([(8, 0.016)] * 10)
    assert pace.estimate(8) == pytest.approx(0.016)
    assert pace.estimate(16) == pytest.approx(0.024)


def test_a_slow_first_batch_and_a_few_outliers_change_little() -> None:
    steady = [(1 + n % 8, 0.001 * (1 + n % 8)) for n in range(60)]
    pace = learned([(1, 5.0), *steady, (4, 9.0), *steady[:8]])
    assert pace.estimate(8) == pytest.approx(0.008, rel=0.3)


def test_a_lasting_change_is_learned() -> None:
    pace = learned([(4, 0.001)] * 100 + [(4, 0.1)] * 200)
    assert pace.estimate(4) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(
    ("took_s", "believed_s"), [(0.1, 0.1 * BELIEVED_RUNS), (1e-5, SHORTEST_BELIEF_S), (60.0, LONGEST_BELIEF_S)]
)
def test_what_was_learned_is_believed_for_a_while(took_s: float, believed_s: float) -> None:
    pace = Pace()
    assert not pace.is_known(NOW)
    pace.observe(1, 5.0, NOW - 1.0)
    assert not pace.is_known(NOW), "a first batch is often slow: nobody is refused for that"
    pace.observe(1, took_s, NOW)
    assert pace.is_known(NOW + 0.99 * believed_s)
    assert not pace.is_known(NOW + 1.01 * believed_s)


def test_of_very_different_sizes_no_more_is_expected_than_is_known() -> None:
    small = learned([(1, 0.001)] * 10)
    assert small.estimate(4) == pytest.approx(0.0025)
    assert small.estimate(4_000_000) == small.estimate(4), "it may be as quick"
    assert small.most_rows(0.0025, 4_000_000) == 4_000_000
    small.observe(4_000_000, 2.0, NOW + 1)
    assert small.estimate(4_000_000) == pytest.approx(2.0, rel=0.2), "what was not expected is no outlier"
    assert small.estimate(1) < 0.01
    large = learned([(4_000_000, 2.0)] * 10)
    assert large.estimate(1) < 1e-4
    assert large.estimate(large.most_rows(0.5, 4_000_000)) == pytest.approx(0.5, rel=0.01)


def test_of_very_many_batches_some_are_enough() -> None:
    pace = Pace()
    pace.observe(1, 0.1, NOW)
    pace.observe(1, 0.9, NOW + EVERY_S / 2)
    assert pace.estimate(1) == pytest.approx(0.1)


@pytest.mark.parametrize(("turn", "caution"), [(0.5, 1.0), (1.0, 1.0), (1.4, 1.4), (7.0, 2.0)])
def test_turns_that_take_longer_than_their_runs_make_cautious(turn: float, caution: float) -> None:
    pace = Pace()
    for place in range(200):
        pace.observe(2, 0.01, NOW + place, 0.01 * turn)
    assert pace.caution == pytest.approx(caution, abs=0.01)
    assert pace.estimate(2) == pytest.approx(0.01), "that is the run's own time"
    cautious = Cautious(pace, pace.caution)
    assert cautious.estimate(2) == pytest.approx(0.01 * pace.caution)
    assert cautious.most_rows(0.01 * pace.caution, 16) == 2


def test_turns_that_vary_make_cautious() -> None:
    pace, draw = Pace(), random.Random(1)
    turns = [draw.uniform(0.7, 1.3) for _ in range(200)]
    for place, turn in enumerate(turns):
        pace.observe(2, 0.01, NOW + place, 0.01 * turn)
    assert sorted(turns)[180] < pace.caution < 1.5

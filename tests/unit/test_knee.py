"""Finding the knee of a load curve."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.knee import Search, confirmed, find_knee


@given(st.floats(2.0, 1e5), st.floats(1.0, 1e5))
def test_the_knee_of_a_steady_server_is_found_from_anywhere(capacity: float, start: float) -> None:
    runs: list[float] = []

    def is_good(rate: float) -> bool:
        runs.append(rate)
        return rate <= capacity

    search = Search(most_runs=40)
    found = find_knee(is_good, start, search)
    assert capacity * (1 - 2 * search.precision) <= found <= capacity
    assert len(runs) <= 40 + 40 + search.confirmations


def test_a_server_that_does_nothing_well_has_no_knee() -> None:
    runs = 0

    def is_good(rate: float) -> bool:
        nonlocal runs
        runs += 1
        return False

    assert find_knee(is_good, 1000.0) == 0.0
    assert runs < 40


def test_a_lucky_run_does_not_raise_the_knee() -> None:
    """A rate above the knee is good now and then; what bisection makes of that is not confirmed."""
    chance = random.Random(3)
    found = [find_knee(lambda rate: rate <= 100 or (rate <= 200 and chance.random() < 0.1), 90.0) for _ in range(50)]
    assert sum(rate > 110 for rate in found) <= 5
    assert min(found) > 80


@pytest.mark.parametrize(
    ("results", "expected", "runs"),
    [
        ([True, True], True, 2),
        ([False, False], False, 2),
        ([True, False, True], True, 3),
        ([True, False, False], False, 3),
    ],
)
def test_confirmation_takes_no_more_runs_than_it_needs(results: list[bool], expected: bool, runs: int) -> None:
    left = iter(results)
    assert confirmed(lambda rate: next(left), 1.0, 3) is expected
    assert len(results) - len(list(left)) == runs

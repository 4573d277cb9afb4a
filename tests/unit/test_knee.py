"""Reading the knee off a load curve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.knee import Curve, rates


def curve(*points: tuple[float, float]) -> Curve:
    drawn = Curve()
    for rate, share in points:
        drawn.add(rate, share)
    return drawn


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([], 0.0),
        ([(10, 0.5)], 0.0),
        ([(10, 1.0)], 10.0),
        ([(10, 1.0), (20, 0.98)], 15.0),
        ([(10, 0.99), (20, 0.0)], 10.0),
        ([(10, 1.0), (20, 0.985), (30, 1.0), (40, 0.97)], 30 + 10 / 3),  # one unlucky run below does not count
        ([(10, 0.98), (20, 0.97)], 0.0),
    ],
)
def test_the_knee_is_where_the_curve_crosses_99_percent(points: list[tuple[float, float]], knee: float) -> None:
    assert curve(*points).knee_per_s() == pytest.approx(knee)


@given(st.floats(50.0, 900.0))
def test_the_knee_of_a_server_that_breaks_down_is_found_from_rates_that_are_far_apart(capacity: float) -> None:
    drawn = Curve()
    for rate in rates(10.0, 10_000.0, 1.25):
        drawn.add(rate, min(1.0, capacity / rate))
        if drawn.is_over:
            break
    assert capacity / 1.25 <= drawn.knee_per_s() <= 1.02 * capacity
    assert drawn.points[-1][0] < 2 * capacity


def test_climbing_goes_on_after_one_bad_run() -> None:
    assert not curve((10, 0.5)).is_over
    assert not curve((10, 0.5), (20, 0.95)).is_over
    assert curve((10, 1.0), (20, 0.89), (30, 0.5)).is_over


@pytest.mark.parametrize(
    ("shares", "is_asked_again", "knee"), [((0.97, 1.0), True, 20), ((1.0, 0.5), False, 20), ((0.8, 1.0), False, 20)]
)
def test_one_bad_moment_does_not_decide(shares: tuple[float, float], is_asked_again: bool, knee: float) -> None:
    drawn = curve((10, 1.0), (20, shares[0]))
    assert not drawn.fell_a_little_short(10)
    assert drawn.fell_a_little_short(20) == is_asked_again
    drawn.add(20, shares[1])
    assert drawn.points == [(10, 1.0), (20, max(shares))]
    assert drawn.knee_per_s() == knee


def test_rates_rise_to_the_highest() -> None:
    assert list(rates(1.0, 8.0, 2.0)) == [1.0, 2.0, 4.0, 8.0]

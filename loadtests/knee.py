"""The knee of a load curve: the highest rate that a server still carries well, found by bisection, then confirmed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

IsGood = Callable[[float], bool]


@dataclass(frozen=True, slots=True)
class Search:
    """How a knee is looked for.

    Attributes:
        growth: By which factor rates grow or shrink until one is good and the next is not.
        precision: How far the answer may be below a rate that failed, as a share of it.
        most_runs: How many runs the search may take, those that confirm not counted.
        confirmations: How many further runs at the rate that was found; most of them must be good.
        lowest_per_s: Where the search gives up.
    """

    growth: float = 1.6
    precision: float = 0.05
    most_runs: int = 16
    confirmations: int = 3
    lowest_per_s: float = 1.0


def find_knee(is_good: IsGood, start_per_s: float, search: Search | None = None) -> float:
    """The highest rate that is good and confirmed, 0 if none is.

    Whether a rate is good is a matter of chance near the knee, so a rate that bisection has found must be good again in
    most of some further runs; if it is not, the next lower one is tried.

    Args:
        is_good: Makes a run at a rate.
        start_per_s: Where to begin, such as an earlier result.
        search: How to look.
    """
    search = search or Search()
    low, high = _bracket(is_good, start_per_s, search)
    runs = 0
    while high - low > search.precision * high and runs < search.most_runs and high > search.lowest_per_s:
        middle = (low + high) / 2
        low, high = (middle, high) if is_good(middle) else (low, middle)
        runs += 1
    for _ in range(search.most_runs):
        if low < search.lowest_per_s:
            return 0.0
        if confirmed(is_good, low, search.confirmations):
            return low
        low *= 1 - search.precision
    return 0.0


def confirmed(is_good: IsGood, rate_per_s: float, rounds: int) -> bool:
    """Whether a rate is good in most of some rounds; stops as soon as that is decided."""
    good = bad = 0
    while max(good, bad) * 2 <= rounds and good + bad < rounds:
        if is_good(rate_per_s):
            good += 1
        else:
            bad += 1
    return good >= bad


def _bracket(is_good: IsGood, start_per_s: float, search: Search) -> tuple[float, float]:
    """A good rate (or 0) and a bad one, a step apart."""
    rate, runs = start_per_s, 0
    if is_good(rate):
        while runs < search.most_runs and is_good(rate * search.growth):
            rate, runs = rate * search.growth, runs + 1
        return rate, rate * search.growth
    while runs < search.most_runs and rate / search.growth >= search.lowest_per_s:
        rate, runs = rate / search.growth, runs + 1
        if is_good(rate):
            return rate, rate * search.growth
    return 0.0, rate

"""The simulator's own arithmetic: the clairvoyant and the bound on traces that can be worked out otherwise."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.router.eviction import COST, LRU, POLICIES, Lru

from loadtests.simulate_report import Result, Results, gates, tables
from loadtests.simulate_runs import WARM_UP, Outcome, clairvoyant, drive, lower_bound, next_uses
from loadtests.simulate_traces import SUITE, Kind, Trace

REQUESTS = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def trace_of(models: Sequence[int], sizes: Sequence[int] = (1,) * 6, load_s: Sequence[float] = (1.0,) * 6) -> Trace:
    """A trace with a request each second."""
    return Trace("t", 0, np.arange(len(models), dtype=float), np.array(models), np.array(sizes), np.array(load_s))


def least_load_s(trace: Trace, capacity: int) -> float:
    """The least load-seconds after the warm-up, by trying everything that could be kept with each request's model."""
    begin = int(len(trace.models) * WARM_UP)
    best = {frozenset[int](): 0.0}
    for number, model in enumerate(trace.models.tolist()):
        after: dict[frozenset[int], float] = {}
        for kept, spent in best.items():
            spent += (model not in kept) * float(trace.load_s[model]) * (number >= begin)
            others = kept - {model}
            for count in range(len(others) + 1):
                for chosen in itertools.combinations(others, count):
                    choice = frozenset({model, *chosen})
                    if sum(int(trace.sizes[m]) for m in choice) <= capacity:
                        after[choice] = min(spent, after.get(choice, np.inf))
        best = after
    return min(best.values())


def test_next_uses() -> None:
    assert next_uses(np.array([3, 1, 3, 3, 1])).tolist() == [2, 4, 3, 5, 5]


@settings(max_examples=100, deadline=None)
@given(models=REQUESTS, capacity=st.integers(1, 6))
def test_lru_is_lru(models: list[int], capacity: int) -> None:
    kept: OrderedDict[int, None] = OrderedDict()
    misses = []
    for model in models:
        misses.append(model not in kept)
        kept[model] = None
        kept.move_to_end(model)
        if len(kept) > capacity:
            kept.popitem(last=False)
    assert drive(trace_of(models), capacity, Lru()).cold_starts == sum(misses[int(len(models) * WARM_UP) :])


@settings(max_examples=60, deadline=None)
@given(models=REQUESTS, capacity=st.integers(1, 4))
def test_the_clairvoyant_is_the_best_where_all_are_alike(models: list[int], capacity: int) -> None:
    trace = trace_of([models[0]] * 6 + models)  # so that the warm-up decides nothing
    assert clairvoyant(trace, capacity).load_s == pytest.approx(least_load_s(trace, capacity))


@settings(max_examples=60, deadline=None)
@given(
    models=REQUESTS,
    capacity=st.integers(4, 9),
    sizes=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    load_s=st.lists(st.integers(1, 9).map(float), min_size=6, max_size=6),
)
def test_nobody_is_below_the_bound(models: list[int], capacity: int, sizes: list[int], load_s: list[float]) -> None:
    trace = trace_of(models, sizes, load_s)
    best = least_load_s(trace, capacity)
    assert lower_bound(trace, capacity) <= best + 1e-9
    for outcome in (clairvoyant(trace, capacity), *(drive(trace, capacity, policy()) for policy in POLICIES.values())):
        assert outcome.load_s >= best - 1e-9


@pytest.mark.parametrize("kind", SUITE, ids=lambda kind: kind.name)
def test_a_trace_depends_on_its_seed_alone(kind: Kind) -> None:
    small = Kind(kind.name, 50, 2000, kind.draw)
    one, same, other = small.trace(1), small.trace(1), small.trace(2)
    assert np.array_equal(one.models, same.models)
    assert np.array_equal(one.times, same.times)
    assert not np.array_equal(one.sizes, other.sizes)
    assert (np.diff(one.times) >= 0.0).all()
    assert one.models.max() < len(one.sizes) == len(one.load_s) == 50
    assert 500 <= len(one.times) <= 8000


def test_what_is_loaded_ahead_counts() -> None:
    ticks = [(60.0 * tick, 0) for tick in range(40)]
    others = [(7.0 * number, 1 + number % 4) for number in range(340)]
    times, models = zip(*sorted(ticks + others), strict=True)
    trace = Trace("t", 0, np.array(times), np.array(models), np.array([2, 1, 1, 1, 1]), np.array([0.1] * 5))
    outcome = drive(trace, 4, POLICIES[COST]())
    without = drive(trace, 4, POLICIES[COST](), ahead=False)
    assert (without.ahead, without.ahead_s) == (0, 0.0)
    assert outcome.ahead > 10
    assert outcome.load_s == pytest.approx(outcome.waited_s + 0.1 * outcome.ahead)


def test_the_report_says_what_is_missed() -> None:
    load_s = {LRU: 100.0, COST: 104.0, "clairvoyant": 60.0, "lower bound": 50.0}
    results = Results([Result("zipf-0.9", 1, 0.1, name, Outcome(10, 5, s)) for name, s in load_s.items()])
    assert "1.040 (1.040-1.040)" in tables(results, 0.1)
    assert [met for _, _, met in gates(results, 0.1, 49.0)] == [False, False, False, True]

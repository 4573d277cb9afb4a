"""Traces for the simulator: who is asked for when, how large each model is and how long it takes to load.

Every trace is drawn from the distributions written here and from its seed, and from nothing else. Rates only set the
scale of time: a load takes none of it (see ``simulate_runs``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Rng: TypeAlias = np.random.Generator

MB = 1_000_000
REQUESTS_PER_S = 20.0
DRIFT_EVERY_REQUESTS = 1000
DRIFT_SHARE = 0.01
PERIODS_S = (60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
JITTER = 0.01
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in the order of time, and the models they ask for.

    Attributes:
        name: Which trace of the suite it is.
        seed: What it was drawn with.
        times: When each request comes, in seconds [requests].
        models: Which model it asks for [requests].
        sizes: Bytes of each model [models].
        load_s: How long loading each model takes [models].
    """

    name: str
    seed: int
    times: Floats
    models: Ints
    sizes: Ints
    load_s: Floats


Draw: TypeAlias = Callable[[Rng, int, int], tuple[Floats, Ints]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One trace of the suite: how it is drawn, for how many models, and about how many requests it has."""

    name: str
    models: int
    requests: int
    draw: Draw

    def trace(self, seed: int) -> Trace:
        """Draws the trace."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        times, models = self.draw(rng, self.models, self.requests)
        sizes, load_s = _artifacts(rng, self.models)
        return Trace(self.name, seed, times, models, sizes, load_s)


def _artifacts(rng: Rng, models: int) -> tuple[Ints, Floats]:
    """Sizes and load times.

    Log-normal sizes around 40 MB, from 2 to 800; read and built at 60 to 250 MB/s, each model at a pace of its own;
    one framework of five takes a second more.
    """
    sizes = np.clip(rng.lognormal(np.log(40.0), 1.2, models), 2.0, 800.0) * MB
    load_s = 0.03 + sizes / (rng.uniform(60.0, 250.0, models) * MB) + (rng.random(models) < 0.2)
    return sizes.astype(np.int64), load_s


def zipf_rates(rng: Rng, models: int, alpha: float) -> Floats:
    """Shares of the requests: the k-th most popular one's is proportional to k ** -alpha; who is k-th is drawn."""
    shares = np.arange(1, models + 1, dtype=np.float64) ** -alpha
    return rng.permutation(shares / shares.sum())


def _arrivals(rng: Rng, requests: int) -> Floats:
    return np.cumsum(rng.exponential(1.0 / REQUESTS_PER_S, requests))


def static(alpha: float) -> Draw:
    """Independent requests, with popularity that does not change."""

    def draw(rng: Rng, models: int, requests: int) -> tuple[Floats, Ints]:
        chosen = rng.choice(models, requests, p=zipf_rates(rng, models, alpha))
        return _arrivals(rng, requests), chosen.astype(np.int64)

    return draw


def drifting(alpha: float) -> Draw:
    """Every thousand requests one model of a hundred trades its popularity for that of another of them."""

    def draw(rng: Rng, models: int, requests: int) -> tuple[Floats, Ints]:
        rates = zipf_rates(rng, models, alpha)
        moving = max(2, int(models * DRIFT_SHARE))
        parts = []
        for start in range(0, requests, DRIFT_EVERY_REQUESTS):
            parts.append(rng.choice(models, min(DRIFT_EVERY_REQUESTS, requests - start), p=rates))
            who = rng.choice(models, moving, replace=False)
            rates[who] = rates[rng.permutation(who)]
        return _arrivals(rng, requests), np.concatenate(parts).astype(np.int64)

    return draw


def _renewals(rng: Rng, rate: float, cv: float, until: float) -> Floats:
    """A renewal process with Gamma intervals, begun long enough ago to have forgotten when."""
    mean = 1.0 / rate
    shape = 1.0 / (cv * cv)
    begin = -mean * cv * cv * 2.0
    times = [begin * rng.random()]
    drawn: list[Floats] = []
    while times[-1] < until:
        count = int((until - times[-1]) * rate * 1.2 + 10 * cv)
        more = times[-1] + np.cumsum(rng.gamma(shape, mean / shape, count))
        drawn.append(more)
        times.append(float(more[-1]))
    events = np.concatenate(drawn)
    return events[(events >= 0.0) & (events < until)]


def _merge(events: list[Floats], who: list[int] | range) -> tuple[Floats, Ints]:
    times = np.concatenate(events)
    models = np.repeat(np.asarray(who, dtype=np.int64), [len(e) for e in events])
    order = np.argsort(times, kind="stable")
    return times[order], models[order]


def bursts(cv: float) -> Draw:
    """Zipf 0.9 rates, each model's requests in bursts: Gamma intervals with this coefficient of variation."""

    def draw(rng: Rng, models: int, requests: int) -> tuple[Floats, Ints]:
        rates = zipf_rates(rng, models, 0.9) * REQUESTS_PER_S
        until = requests / REQUESTS_PER_S
        return _merge([_renewals(rng, rate, cv, until) for rate in rates], range(models))

    return draw


def _timer(rng: Rng, until: float, period_s: float) -> Floats:
    ticks = np.arange(rng.random() * period_s, until, period_s)
    return np.sort(np.clip(ticks + rng.normal(0.0, JITTER * period_s, len(ticks)), 0.0, until))


def periodic(rng: Rng, models: int, requests: int) -> tuple[Floats, Ints]:
    """Six models of ten are asked on timers of 1 to 60 minutes, one per cent late or early; the rest is Zipf 0.9."""
    on_timer = int(models * 0.6)
    periods = rng.choice(PERIODS_S, on_timer)
    timer_rate = float((1.0 / periods).sum())
    until = requests / (2.0 * timer_rate)  # half of the requests are the timers'
    rates = zipf_rates(rng, models - on_timer, 0.9) * timer_rate
    events = [_timer(rng, until, period) for period in periods]
    events += [_renewals(rng, rate, 1.0, until) for rate in rates]
    return _merge(events, range(models))


def functions(rng: Rng, models: int, requests: int) -> tuple[Floats, Ints]:
    """A mix as Azure's functions have it: most are hardly ever asked, three of ten by a timer, the rest in bursts.

    Rates per hour are log-normal so that 45 % are asked at most once an hour and 81 % at most once a minute, where
    they are cut off: what is asked more often stays under any policy. CVs of the bursts are 1 to 8, and by night there
    is a third of the requests by day.
    """
    per_hour = np.minimum(10.0 ** rng.normal(0.22, 1.77, models), 60.0)
    until = requests / float(per_hour.sum()) * HOUR_S
    events = []
    for rate in np.maximum(per_hour, 1.0 / 24.0) / HOUR_S:
        if rng.random() < 0.3:
            events.append(_timer(rng, until, 1.0 / rate))
        else:
            events.append(_by_day(rng, _renewals(rng, rate, float(2.0 ** rng.uniform(0.0, 3.0)), until), until))
    return _merge(events, range(models))


def _by_day(rng: Rng, times: Floats, until: float) -> Floats:
    """Leaves out requests of the night, which is half of the trace."""
    share = 2.0 / 3.0 + np.sin(times / until * 2.0 * np.pi) / 3.0
    return times[rng.random(len(times)) < share]


SUITE = (
    *(Kind(f"zipf-{a}", 1000, 100_000, static(a)) for a in (0.7, 0.9, 1.1)),
    *(Kind(f"drift-{a}", 1000, 100_000, drifting(a)) for a in (0.7, 0.9, 1.1)),
    *(Kind(f"bursts-cv{cv}", 1000, 100_000, bursts(cv)) for cv in (1, 2, 4, 8)),
    Kind("periodic", 1000, 100_000, periodic),
    Kind("functions", 2000, 200_000, functions),
    Kind("zipf-0.9-10k", 10_000, 200_000, static(0.9)),
    Kind("zipf-0.9-100k", 100_000, 400_000, static(0.9)),
)
"""What every figure of the report is made of."""

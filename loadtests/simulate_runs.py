"""Runs of the simulator: the router's own ledger and policies through a trace, and what a clairvoyant would do.

Loads take no virtual time, so that every policy sees the same requests in the same order and any two can be compared
request by request; what they would take is added up. Requests follow one another: none waits, and nothing is claimed
or leased while another model needs room.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from roost.core.figures import Figures
from roost.router.eviction import EvictionPolicy
from roost.router.placement import Ledger
from roost.router.plans import Evict, Fits, Limits

from loadtests.simulate_traces import Floats, Ints, Trace

WARM_UP = 0.3
"""This share of the requests fills the memory and is not counted."""


@dataclass(slots=True)
class Outcome:
    """What a policy did with the counted part of a trace.

    Attributes:
        requests: How many.
        cold_starts: How many of them found no instance.
        waited_s: Load-seconds that those waited for.
        ahead_s: Load-seconds of loads ahead of requests.
        ahead: How many loads that were.
        wasted: How many of them were evicted unused.
    """

    requests: int = 0
    cold_starts: int = 0
    waited_s: float = 0.0
    ahead_s: float = 0.0
    ahead: int = 0
    wasted: int = 0

    @property
    def load_s(self) -> float:
        """All load-seconds."""
        return self.waited_s + self.ahead_s


@dataclass(slots=True)
class Device:
    """A device whose loads and unloads are done at once."""

    trace: Trace
    ledger: Ledger
    policy: EvictionPolicy
    instances: dict[int, int] = field(default_factory=dict)
    unused: set[int] = field(default_factory=set)
    loads: int = 0
    wasted: int = 0

    def load(self, model: int, now: float, *, older_than: float = np.inf) -> bool:
        """Makes room and loads; False if nothing may go for it."""
        need, ledger = Figures(int(self.trace.sizes[model])), self.ledger
        plan = ledger.plan(need, now, older_than=older_than)
        if isinstance(plan, Evict):
            for instance in plan.idle:
                self._evict(instance)
        elif not isinstance(plan, Fits):
            return False
        self.loads += 1
        ledger.reserve(self.loads, model, need)
        ledger.loaded(self.loads, now, load_s=float(self.trace.load_s[model]))
        self.instances[model] = self.loads
        return True

    def use(self, model: int, now: float) -> None:
        """One request runs."""
        instance = self.instances[model]
        self.ledger.lease(instance, now)
        self.ledger.release(instance, now)
        self.unused.discard(model)

    def _evict(self, instance: int) -> None:
        model = self.ledger.holdings[instance].owner
        assert isinstance(model, int)
        self.ledger.leaving(instance)
        self.ledger.gone(instance)
        del self.instances[model]
        if model in self.unused:
            self.unused.discard(model)
            self.wasted += 1


def drive(trace: Trace, capacity_bytes: int, policy: EvictionPolicy, *, ahead: bool = True) -> Outcome:
    """Runs the ledger with a policy through the trace.

    Args:
        trace: The requests.
        capacity_bytes: The budget.
        policy: A new one.
        ahead: Whether what the policy expects to be asked for is loaded before.
    """
    device = Device(trace, Ledger(Limits(capacity_bytes), policy), policy)
    outcome = Outcome()
    begin = int(len(trace.times) * WARM_UP)
    load_s = trace.load_s.tolist()
    for number, (now, model) in enumerate(zip(trace.times.tolist(), trace.models.tolist(), strict=True)):
        counted = number >= begin
        if number == begin:
            device.wasted = 0
        for owner, expected in policy.due(now) if ahead else ():
            assert isinstance(owner, int)
            if device.load(owner, now, older_than=now - max(0.0, expected - now)):
                device.unused.add(owner)
                outcome.ahead += counted
                outcome.ahead_s += load_s[owner] * counted
        if model not in device.instances:
            device.load(model, now)
            outcome.cold_starts += counted
            outcome.waited_s += load_s[model] * counted
        device.use(model, now)
    outcome.requests, outcome.wasted = len(trace.times) - begin, device.wasted
    return outcome


def next_uses(models: Ints) -> Ints:
    """For each request, the number of the next one for the same model; the number of requests if there is none."""
    count = len(models)
    order = np.argsort(models, kind="stable")
    following = np.full(count, count, dtype=np.int64)
    same = models[order[1:]] == models[order[:-1]]
    following[order[:-1][same]] = order[1:][same]
    return following


def clairvoyant(trace: Trace, capacity_bytes: int) -> Outcome:
    """Belady's rule with sizes and costs: the one with the largest (time to next use * bytes / load time) goes.

    Time is counted in requests. With equal sizes and load times this is Belady's MIN and no policy does better that
    loads on demand. Otherwise the best is NP-hard to find, and this is a very good policy that nobody can have, but
    not a bound: ``lower_bound`` is one.
    """
    following = next_uses(trace.models).astype(np.float64)
    following[following == len(following)] *= 4.0  # never again: goes before what comes back last
    weight = trace.sizes / trace.load_s
    residents = np.zeros(len(trace.sizes), dtype=np.int64)  # the first ``count`` are resident
    place = np.full(len(trace.sizes), -1, dtype=np.int64)
    next_use = np.zeros(len(trace.sizes))
    sizes, load_s = trace.sizes.tolist(), trace.load_s.tolist()
    outcome, begin, count, used = Outcome(), int(len(following) * WARM_UP), 0, 0
    for number, model in enumerate(trace.models.tolist()):
        if place[model] < 0:
            while used + sizes[model] > capacity_bytes:
                here = residents[:count]
                where = int(np.argmax((next_use[here] - number) * weight[here]))
                victim, count = int(here[where]), count - 1
                residents[where] = residents[count]
                place[residents[where]], place[victim] = where, -1
                used -= sizes[victim]
            residents[count], place[model] = model, count
            count, used = count + 1, used + sizes[model]
            outcome.cold_starts += number >= begin
            outcome.waited_s += load_s[model] * (number >= begin)
        next_use[model] = following[number]
    outcome.requests = len(following) - begin
    return outcome


def lower_bound(trace: Trace, capacity_bytes: int) -> float:
    """Load-seconds that no policy can go below, whatever it knows of the future: an interval relaxation (PFOO-L).

    Keeping a model from one use to the next saves a load and takes its bytes for that long. The memory has capacity
    times length of the trace of byte-requests to give; a policy may not exceed the capacity at any moment, the bound
    only over the whole, so it takes the intervals that save most for what they take (the last one in part). Of
    Berger, Beckmann and Harchol-Balter, "Practical Bounds on Optimal Caching with Variable Object Sizes" (2018).
    Counted are intervals that end in the counted part; those over its begin take only what lies within.
    """
    count = len(trace.models)
    begin = int(count * WARM_UP)
    following = next_uses(trace.models)
    starts = np.flatnonzero((following < count) & (following >= begin))
    lengths = following[starts] - np.maximum(starts, begin)
    model = trace.models[starts]
    saved: Floats = trace.load_s[model]
    taken = trace.sizes[model].astype(np.float64) * lengths
    order = np.argsort(taken / saved, kind="stable")
    sums = np.cumsum(taken[order])
    whole = int(np.searchsorted(sums, float(capacity_bytes) * (count - begin), side="right"))
    kept = float(saved[order[:whole]].sum())
    if whole < len(order):
        left = float(capacity_bytes) * (count - begin) - (float(sums[whole - 1]) if whole else 0.0)
        kept += float(saved[order[whole]]) * left / float(taken[order[whole]])
    return float(trace.load_s[trace.models[begin:]].sum()) - kept

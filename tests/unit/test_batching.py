"""What of a queue is sent now: limits, order, time, and what is refused when there is more work than time."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.router.batching import Dispatch, Idle, Limits, WaitUntil, plan
from roost.router.pace import Pace

NOW = 100.0
SECONDS = 4.0


@dataclass
class Request:
    rows: int = 1
    key: object = None
    deadline: float = math.inf
    queued: float = NOW
    lane: int = 0


@dataclass
class Linear:
    """A batch of n rows takes b + a·n, always."""

    b: float = 0.0
    a: float = 0.0

    def estimate(self, rows: int) -> float:
        return self.b + self.a * rows

    def most_rows(self, within_s: float, limit_rows: int) -> int:
        return max((n for n in range(1, limit_rows + 1) if self.estimate(n) <= within_s), default=0)


REQUESTS = st.builds(
    Request,
    rows=st.integers(1, 9),
    key=st.sampled_from("aaab"),
    deadline=st.one_of(st.just(math.inf), st.floats(NOW - 1, NOW + 5)),
    queued=st.floats(NOW - 2, NOW),
    lane=st.sampled_from([0, 0, 0, 1, 2]),
)
QUEUES = st.lists(REQUESTS, max_size=12).map(lambda queue: sorted(queue, key=lambda r: (r.lane, r.deadline)))
LIMITS = st.builds(
    Limits,
    st.integers(0, 8),
    st.sampled_from([(), (), (4,), (2, 6)]),
    st.sampled_from([0.0, 0.0, 0.5, 5.0]),
)
PACES = st.one_of(st.none(), st.builds(Linear, st.floats(0, 2), st.floats(0, 1)))


@given(QUEUES, LIMITS, PACES, st.integers(-1, 2))
def test_what_is_sent_is_within_the_limits(
    queue: list[Request], limits: Limits, pace: Linear | None, free_slots: int
) -> None:
    decision = plan(queue, NOW, free_slots, limits, pace)
    assert 0 <= decision.late <= len(queue)
    if free_slots <= 0:
        assert decision == Idle()
    if isinstance(decision, Dispatch):
        batch = queue[decision.late : decision.late + decision.requests]
        assert len(batch) == decision.requests >= 1
        rows = sum(request.rows for request in batch)
        assert len(batch) == 1 or rows <= limits.max_rows
        assert len({request.key for request in batch}) == 1
        took_s = pace.estimate(rows) if pace is not None else 0.0
        assert all(NOW + took_s <= request.deadline + 1e-9 for request in batch)


@given(QUEUES, LIMITS, PACES)
def test_nothing_idles_while_work_waits(queue: list[Request], limits: Limits, pace: Linear | None) -> None:
    decision = plan(queue, NOW, 1, limits, pace)
    took_s = [pace.estimate(request.rows) if pace is not None else 0.0 for request in queue]
    some_can = any(r.deadline > NOW and NOW + t <= r.deadline for r, t in zip(queue, took_s, strict=True))
    if isinstance(decision, WaitUntil):
        assert NOW < decision.until <= min(r.queued for r in queue[decision.late :]) + limits.max_delay_s
    elif isinstance(decision, Idle):
        assert not some_can
    if limits.max_delay_s == 0:
        assert isinstance(decision, Dispatch) == some_can


@given(QUEUES, st.integers(2, 8), PACES)
def test_batches_are_as_full_as_they_may_be(queue: list[Request], max_rows: int, pace: Linear | None) -> None:
    decision = plan(queue, NOW, 1, Limits(max_rows), pace)
    if not isinstance(decision, Dispatch) or decision.late + decision.requests == len(queue):
        return
    batch, following = queue[decision.late :][: decision.requests], queue[decision.late + decision.requests]
    rows = sum(request.rows for request in batch) + following.rows
    fits = rows <= max_rows and following.key == batch[0].key
    earliest = min(request.deadline for request in [*batch, following])
    assert not fits or (pace is not None and NOW + pace.estimate(rows) > earliest)


@given(QUEUES, LIMITS)
def test_without_a_prediction_only_what_is_over_is_refused(queue: list[Request], limits: Limits) -> None:
    late = plan(queue, NOW, 1, limits).late
    assert all(request.deadline <= NOW for request in queue[:late])


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from("aab")), min_size=1, max_size=30), st.integers(0, 8))
def test_nobody_is_lost_answered_twice_overtaken_or_starved(wishes: list[tuple[int, str]], max_rows: int) -> None:
    """However much comes behind them, requests go in their order, each after at most as many batches as were before."""
    arriving = [Request(rows, key) for rows, key in wishes]
    queue: list[Request] = []
    served: list[Request] = []
    batches = 0
    position: dict[int, int] = {}
    while queue or arriving:
        for request in arriving[:3]:
            position[id(request)] = batches + len(queue)
            queue.append(request)
        del arriving[:3]
        decision = plan(queue, NOW, 1, Limits(max_rows))
        assert isinstance(decision, Dispatch)
        assert decision.late == 0
        for request in queue[: decision.requests]:
            assert batches <= position[id(request)]
        served += queue[: decision.requests]
        del queue[: decision.requests]
        batches += 1
    assert [(r.rows, r.key) for r in served] == wishes


@pytest.mark.parametrize(
    ("rows", "waited_s", "expected"),
    [
        ([1], 0.0, WaitUntil(NOW + 0.5)),
        ([1], 0.5, Dispatch(1)),
        ([1, 1, 1], 0.2, WaitUntil(NOW + 0.3)),
        ([2, 2], 0.0, Dispatch(2)),  # a preferred size: at once
        ([2, 2, 1], 0.0, Dispatch(2)),
        ([2, 2, 1], 0.5, Dispatch(3)),  # it has waited long enough for a better one
        ([1] * 7, 0.0, Dispatch(6)),  # the largest preferred size that can be made
        ([3, 2], 0.0, WaitUntil(NOW + 0.5)),
        ([3, 5], 0.0, Dispatch(2)),  # it is full
        ([5, 5], 0.0, Dispatch(1)),  # nothing that comes could join it
    ],
)
def test_preferred_sizes_and_the_delay_are_tritons(
    rows: list[int], waited_s: float, expected: Dispatch | WaitUntil
) -> None:
    queue = [Request(r, queued=NOW - waited_s) for r in rows]
    decision = plan(queue, NOW, 1, Limits(8, (4, 6), 0.5))
    if isinstance(expected, WaitUntil):
        assert isinstance(decision, WaitUntil)
        assert decision.until == pytest.approx(expected.until)
    else:
        assert decision == expected


def test_a_preferred_size_does_not_make_anybody_wait() -> None:
    assert plan([Request() for _ in range(3)], NOW, 1, Limits(8, (4,))) == Dispatch(3)
    assert plan([Request() for _ in range(10)], NOW, 1, Limits(8, (4,))) == Dispatch(4)


def test_the_delay_ends_when_a_deadline_asks_for_it() -> None:
    queue = [Request(deadline=NOW + 1.0)]
    assert plan(queue, NOW, 1, Limits(8, (), 5.0), Linear(0.15, 0.05)) == WaitUntil(NOW + 0.6)
    assert plan(queue, NOW + 0.6, 1, Limits(8, (), 5.0), Linear(0.15, 0.05)) == Dispatch(1)


def test_a_batch_leaves_its_first_request_the_time_it_needs() -> None:
    queue = [Request(deadline=NOW + 0.5), *(Request(deadline=NOW + 9) for _ in range(7))]
    assert plan(queue, NOW, 1, Limits(8), Linear(0.0, 0.1)) == Dispatch(5)


def test_who_stands_in_the_way_of_many_is_refused_when_some_must_be() -> None:
    hurried, others = [Request(deadline=NOW + 0.3)], [Request(deadline=NOW + 0.5) for _ in range(8)]
    pace = Linear(0.2, 0.03)
    assert plan([*hurried, *others], NOW, 1, Limits(8), pace) == Dispatch(8, late=1)
    assert plan([*hurried, Request(deadline=NOW + 9)], NOW, 1, Limits(8), pace) == Dispatch(2)
    patient = [Request(deadline=NOW + 9) for _ in range(8)]
    assert plan([*hurried, *patient], NOW, 1, Limits(8), pace) == Dispatch(3), "all of them can be served"


def test_a_lower_lane_is_never_refused_for_a_higher_one() -> None:
    queue = [Request(deadline=NOW + 0.3), *(Request(deadline=NOW + 0.5, lane=2) for _ in range(8))]
    assert plan(queue, NOW, 1, Limits(8), Linear(0.2, 0.03)).late == 0


@dataclass
class Simulation:
    """One instance, requests that come at random and want their answer within ``slo_s``, in virtual time."""

    pace: Linear
    limits: Limits
    slo_s: float
    in_time: int = 0
    ran: int = 0
    queue: list[Request] = field(default_factory=list)

    def run(self, arrivals: Sequence[float]) -> float:
        """Returns how many were answered in time, per second."""
        coming: Iterator[float] = iter([*arrivals, math.inf])
        upcoming, now = next(coming), 0.0
        while self.queue or upcoming < math.inf:
            while upcoming <= now:
                self.queue.append(Request(deadline=upcoming + self.slo_s, queued=upcoming))
                upcoming = next(coming)
            decision = plan(self.queue, now, 1, self.limits, self.pace)
            del self.queue[: decision.late]
            if isinstance(decision, Dispatch):
                now += self.pace.estimate(decision.requests)
                self.in_time += sum(request.deadline >= now for request in self.queue[: decision.requests])
                self.ran += decision.requests
                del self.queue[: decision.requests]
            else:
                now = max(now, upcoming)
        return self.in_time / arrivals[-1]


def _arrivals(rate_per_s: float, seconds: float = SECONDS) -> list[float]:
    draw = random.Random(1)
    times, now = [], 0.0
    while now < seconds:
        now += draw.expovariate(rate_per_s)
        times.append(now)
    return times


@pytest.mark.parametrize("b_over_a", [0.2, 1.0, 4.0])
def test_twice_the_load_that_can_be_carried_is_served_no_worse(b_over_a: float) -> None:
    a_s = 0.005 / (1 + b_over_a)
    pace, limits, slo_s = Linear(b_over_a * a_s, a_s), Limits(32), 0.025

    def good(rate_per_s: float) -> float:
        simulation = Simulation(pace, limits, slo_s)
        per_s = simulation.run(_arrivals(rate_per_s))
        assert simulation.ran == simulation.in_time, "nothing was run in vain"
        return per_s

    rate = knee = 100.0
    while good(rate) >= 0.99 * len(_arrivals(rate)) / SECONDS:
        knee, rate = rate, rate * 1.1
    assert good(2 * knee) >= 0.95 * knee
    assert good(4 * knee) >= 0.95 * knee


def test_a_real_pace_will_do() -> None:
    pace = Pace()
    for n in range(20):
        pace.observe(1 + n % 8, 0.01 + 0.001 * (1 + n % 8), NOW + n)
    queue = [Request(deadline=NOW + 0.0145) for _ in range(8)]
    decision = plan(queue, NOW, 1, Limits(8), pace)
    assert decision == Dispatch(4)

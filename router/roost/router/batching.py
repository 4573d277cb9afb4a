"""Step 6 of the data path, the pure part: what of a queue goes to an instance now.

A batch is formed late, when an instance can take it, and then as full as it gets: the first requests of the queue, as
long as they are alike, fit ``max_rows`` and leave the earliest deadline among them enough time. Nothing waits for
company while an instance is free, unless the model's configuration says so.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

LOOK_AHEAD = 256
"""So many requests are looked at when there is more work than time."""

_GAIN = 1.05
_IN_TIME = 2.0  # so many times what a batch takes it is sent before its deadline: timers are not exact


class Queued(Protocol):
    """What planning looks at; queues are in the order of lanes, and in a lane in the order of deadlines.

    Attributes:
        rows: How many rows of a batch it is.
        key: Requests with equal keys may share a batch.
        deadline: When its answer is of no use any more.
        queued: When it came.
        lane: Only requests of the same lane compete; those of a lower one go first.
    """

    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> object: ...  # noqa: D102
    @property
    def deadline(self) -> float: ...  # noqa: D102
    @property
    def queued(self) -> float: ...  # noqa: D102
    @property
    def lane(self) -> int: ...  # noqa: D102


class Prediction(Protocol):
    """What is known of how long batches take."""

    def estimate(self, rows: int) -> float:
        """The seconds that a batch of so many rows is expected to take."""

    def most_rows(self, within_s: float, limit_rows: int) -> int:
        """The most rows of at most ``limit_rows`` that take no longer than that."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may be.

    Attributes:
        max_rows: Its size; up to 1 for models that take one request at a time.
        preferred_rows: Sizes that are better than others, ascending.
        max_delay_s: How long its oldest request may wait for others though an instance is free.
        is_plain: Whether nothing is asked for but that it is not too large.
    """

    max_rows: int = 1
    preferred_rows: tuple[int, ...] = ()
    max_delay_s: float = 0.0

    is_plain: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_plain", not self.preferred_rows and self.max_delay_s <= 0)


@functools.lru_cache(maxsize=1024)
def limits_of(max_rows: int, preferred_rows: tuple[int, ...], max_delay_s: float) -> Limits:
    """The limits of a model; those of many models are the same object."""
    return Limits(max_rows, preferred_rows, max_delay_s)


class Dispatch(NamedTuple):
    """Refuse the first ``late`` requests, which can't be answered in time; send the next ``requests`` as a batch."""

    requests: int
    late: int = 0


class WaitUntil(NamedTuple):
    """Refuse the first ``late`` requests and look again at ``until``, or when a request has come."""

    until: float
    late: int = 0


class Idle(NamedTuple):
    """Nothing can be sent; refuse the first ``late`` requests."""

    late: int = 0


Decision: TypeAlias = Dispatch | WaitUntil | Idle

IDLE = Idle()
_ONE = Dispatch(1)


class _Batch(NamedTuple):
    """The batch that begins at some place of the queue.

    Attributes:
        requests: How many they are.
        rows: Their rows.
        closed: Whether no request that is still to come could join it.
        timely: Whether it was not the time that kept it from being larger.
        preferred: How many of its requests are of the largest preferred size; 0 if none is.
        deadline: The earliest of its requests.
    """

    requests: int
    rows: int
    closed: bool
    timely: bool
    preferred: int
    deadline: float


def plan(
    queue: Sequence[Queued], now: float, free_slots: int, limits: Limits, pace: Prediction | None = None
) -> Decision:
    """Says what to send of a queue.

    Args:
        queue: What waits, in order.
        now: The time.
        free_slots: How many batches could be sent.
        limits: What a batch may be.
        pace: How long batches take; None if that is not known.
    """
    if not queue or free_slots <= 0:
        return IDLE
    head = queue[0]
    left_s = head.deadline - now
    if left_s > 0 and limits.is_plain and (pace is None or left_s > pace.estimate(max(limits.max_rows, head.rows))):
        if limits.max_rows <= 1 or len(queue) == 1:
            return _ONE
        if queue[-1].lane == head.lane:  # so all others have more time still
            return Dispatch(_as_many_as_fit(queue, limits.max_rows))
    late = _late(queue, now, pace)
    if late == len(queue):
        return Idle(late)
    if limits.max_rows <= 1:
        return Dispatch(1, late)
    batch = _gather(queue, late, now, limits, pace)
    if not batch.timely and pace is not None:
        start = _best_start(queue, late, now, limits, pace)
        if start > late:
            late, batch = start, _gather(queue, start, now, limits, pace)
    return _send_or_wait(queue, late, batch, now, limits, pace)


def _as_many_as_fit(queue: Sequence[Queued], max_rows: int) -> int:
    """How many of the first requests are one batch, if all have time enough."""
    head = queue[0]
    key, rows, count = head.key, head.rows, 1
    for request in itertools.islice(queue, 1, None):
        rows += request.rows
        if rows > max_rows or (request.key is not key and request.key != key):
            break
        count += 1
    return count


def _send_or_wait(
    queue: Sequence[Queued], late: int, batch: _Batch, now: float, limits: Limits, pace: Prediction | None
) -> Decision:
    """Preferred sizes and the delay, by the rules of Triton's dynamic batcher."""
    if limits.max_delay_s <= 0:
        waits_until = now
    else:
        oldest = min(queue[i].queued for i in range(late, late + batch.requests))
        run_s = pace.estimate(batch.rows) if pace is not None else 0.0
        waits_until = min(oldest + limits.max_delay_s, batch.deadline - _IN_TIME * run_s)
    preferred = limits.preferred_rows
    is_complete = batch.closed or (preferred and batch.rows >= preferred[-1])
    if batch.preferred and (is_complete or now < waits_until):
        return Dispatch(batch.preferred, late)
    if is_complete or now >= waits_until:
        return Dispatch(batch.requests, late)
    return WaitUntil(waits_until, late)


def _late(queue: Sequence[Queued], now: float, pace: Prediction | None) -> int:
    """How many of the first requests can't be answered in time, not even alone."""
    late = 0
    for request in queue:
        left_s = request.deadline - now
        if left_s > 0 and (pace is None or pace.estimate(request.rows) <= left_s):
            break
        late += 1
    return late


def _gather(queue: Sequence[Queued], start: int, now: float, limits: Limits, pace: Prediction | None) -> _Batch:
    """The largest batch from a place of the queue on."""
    head = queue[start]
    key, rows, deadline, count = head.key, head.rows, head.deadline, 1
    limit, preferred = limits.max_rows, limits.preferred_rows
    full_s = pace.estimate(limit) if pace is not None else 0.0
    best = 1 if rows in preferred else 0
    closed, timely = rows >= limit, True
    for place in range(start + 1, len(queue)):
        request = queue[place]
        total = rows + request.rows
        if total > limit or (request.key is not key and request.key != key):
            closed = True
            break
        if request.deadline < deadline:
            deadline = request.deadline
        if pace is not None and deadline - now < full_s and now + pace.estimate(total) > deadline:
            closed, timely = True, False
            break
        rows = total
        count += 1
        if preferred and rows in preferred:
            best = count
        if rows == limit:
            closed = True
            break
    return _Batch(count, rows, closed, timely, best, deadline)


def _best_start(queue: Sequence[Queued], late: int, now: float, limits: Limits, pace: Prediction) -> int:
    """Where the batch should begin if the first request leaves too little time for a large one.

    With more work than time, the head of the queue is always about to be late, and whoever serves it runs small
    batches, which makes all others late as well. If some have to be refused in any case, it is those that
    stand in the way of the largest number of answers per second.
    """
    end = min(len(queue), late + LOOK_AHEAD)
    served, took_s = _foresee(queue, late, end, now, limits, pace)
    if served == end - late:
        return late
    start = _fastest_start(queue, late, end, now, limits, pace)
    if start == late:
        return late
    others_served, others_took_s = _foresee(queue, start, end, now, limits, pace)
    return start if others_served * took_s > _GAIN * served * others_took_s else late


def _fastest_start(queue: Sequence[Queued], late: int, end: int, now: float, limits: Limits, pace: Prediction) -> int:
    """The place of the head's lane from which on the most rows per second can run now."""
    lane = queue[late].lane
    behind = sum(queue[i].rows for i in range(late, end))
    best, best_rate = late, 0.0
    for place in range(late, end):
        request = queue[place]
        if request.lane != lane:
            break
        rows = min(behind, pace.most_rows(request.deadline - now, limits.max_rows))
        if rows > 0 and (rate := rows / max(pace.estimate(rows), 1e-9)) > best_rate * _GAIN:
            best, best_rate = place, rate
        behind -= request.rows
    return best


def _foresee(
    queue: Sequence[Queued], start: int, end: int, now: float, limits: Limits, pace: Prediction
) -> tuple[int, float]:
    """How many requests would be served, and how long that would take, if nothing else came."""
    served, at, place = 0, now, start
    part = queue[start:end]
    place = 0
    while place < len(part):
        if at + pace.estimate(part[place].rows) > part[place].deadline:
            place += 1
            continue
        batch = _gather(part, place, at, limits, pace)
        served += batch.requests
        at += pace.estimate(batch.rows)
        place += batch.requests
    return served, at - now

"""Step 5, what will be asked for: models that are used on a timer, so that they can be loaded shortly before."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass

SAME_OCCASION_S = 1.0
MIN_PERIOD_S = 10.0
MAX_DEVIATION = 0.1  # of the period; independent requests deviate by three quarters of their mean interval
GAIN = 0.25
LEAD_DEVIATIONS = 2.0
LEAD_LOADS = 2.0


@dataclass(slots=True)
class Habit:
    """When one owner is used.

    Attributes:
        last_s: When its last occasion began.
        period_s: Mean interval between occasions; 0 before there are two.
        deviation_s: Mean distance of an interval from that.
        due_s: When it should be loaded for the next occasion; infinity if nobody knows.
        queued_s: When it will be looked at, which is not after that; infinity if it is not due.
    """

    last_s: float
    period_s: float = 0.0
    deviation_s: float = 0.0
    due_s: float = math.inf
    queued_s: float = math.inf


class Periods:
    """Finds out which owners are used at regular intervals, and says when the next use of each is near.

    Mean and deviation of the intervals are moving averages, as TCP keeps them of round trips (RFC 6298). Uses within a
    second are one occasion.
    """

    def __init__(self) -> None:
        self._habits: dict[Hashable, Habit] = {}
        self._due: list[tuple[float, int, Hashable]] = []
        self._order = itertools.count()

    def used(self, owner: Hashable, now: float, load_s: float) -> None:
        """The owner is used now; loading it takes ``load_s``."""
        habit = self._habits.get(owner)
        if habit is None:
            self._habits[owner] = Habit(now)
            return
        interval_s = now - habit.last_s
        if interval_s < SAME_OCCASION_S:
            return
        habit.last_s = now
        if habit.period_s == 0.0:
            habit.period_s, habit.deviation_s = interval_s, interval_s / 2
            return
        error_s = interval_s - habit.period_s
        habit.deviation_s += (abs(error_s) - habit.deviation_s) * GAIN
        habit.period_s += error_s * GAIN
        habit.due_s = math.inf
        if habit.period_s >= MIN_PERIOD_S and habit.deviation_s <= MAX_DEVIATION * habit.period_s:
            lead_s = LEAD_DEVIATIONS * habit.deviation_s + LEAD_LOADS * load_s
            habit.due_s = now + habit.period_s - lead_s
            self._queue(owner, habit)

    def next_due(self) -> float:
        """Nothing is due before this, unless something is used meanwhile; infinity if nothing is known."""
        return self._due[0][0] if self._due else math.inf

    def due(self, now: float) -> list[tuple[Hashable, float]]:
        """Owners whose next use is near, each said once, and when it is expected."""
        result = []
        while self._due and self._due[0][0] <= now:
            queued_s, _, owner = heapq.heappop(self._due)
            habit = self._habits.get(owner)
            if habit is None or habit.queued_s != queued_s:
                continue
            habit.queued_s = math.inf
            if habit.due_s <= now:
                result.append((owner, habit.last_s + habit.period_s))
            elif habit.due_s < math.inf:  # it was used since
                self._queue(owner, habit)
        return result

    def awaited_until(self, owner: Hashable, now: float) -> float:
        """How long a use may still come that the owner should be ready for by now; minus infinity if none is near."""
        habit = self._habits.get(owner)
        if habit is None or habit.due_s > now:
            return -math.inf
        return habit.last_s + habit.period_s + LEAD_DEVIATIONS * habit.deviation_s

    def forget(self, owner: Hashable) -> None:
        """The owner is never used again."""
        self._habits.pop(owner, None)

    def _queue(self, owner: Hashable, habit: Habit) -> None:
        if habit.due_s < habit.queued_s:
            habit.queued_s = habit.due_s
            heapq.heappush(self._due, (habit.due_s, next(self._order), owner))

"""Who is to be looked at when: coarse timers for very many deadlines that hardly ever come. Pure; time is passed in.

Requests nearly always end long before their deadline, so a timer each would be made and cancelled for nothing. Here
whoever has deadlines (a revision, for all of its requests) says when the first of them comes; it is asked to look at
that time, a millisecond late at most, and says when the next one comes. What is over by then costs nothing.
"""

from __future__ import annotations

import heapq
import math
from typing import Protocol

BUCKET_S = 0.001


class Watched(Protocol):
    """Who has deadlines.

    Attributes:
        look_at: When it is to be looked at; infinity while it need not be.
    """

    look_at: float


class Deadlines:
    """See the module. A wheel without an end: buckets are made when they are needed."""

    __slots__ = ("_buckets", "_order")

    def __init__(self) -> None:
        self._buckets: dict[int, list[Watched]] = {}
        self._order: list[int] = []

    def watch(self, item: Watched, due: float) -> bool:
        """Has an item looked at when ``due`` has come, unless it is looked at before anyhow.

        Returns:
            Whether ``next_s`` may be earlier now.
        """
        if due >= item.look_at:
            return False
        item.look_at = due
        place = math.ceil(due / BUCKET_S)
        bucket = self._buckets.get(place)
        if bucket is not None:
            bucket.append(item)
            return False
        self._buckets[place] = [item]
        heapq.heappush(self._order, place)
        return self._order[0] == place

    def forget(self, item: Watched) -> None:
        """An item has no deadlines any more and never will: it need not be kept until the one that was watched."""
        bucket = self._buckets.get(math.ceil(item.look_at / BUCKET_S)) if item.look_at < math.inf else None
        if bucket is not None and item in bucket:
            bucket.remove(item)
        item.look_at = math.inf

    def next_s(self) -> float:
        """When ``due`` is to be called next; infinity if there is nothing to wait for."""
        return self._order[0] * BUCKET_S if self._order else math.inf

    def due(self, now: float) -> list[Watched]:
        """Takes out what is to be looked at now, each once."""
        found: list[Watched] = []
        while self._order and self._order[0] * BUCKET_S <= now + 1e-9:
            for item in self._buckets.pop(heapq.heappop(self._order)):
                if item.look_at <= now + 1e-9:  # else it was put off, or was found already
                    item.look_at = math.inf
                    found.append(item)
        return found

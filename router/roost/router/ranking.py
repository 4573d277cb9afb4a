"""Step 5, an order that is cheap to keep: a binary heap whose entries can move, rise late and leave.

An entry's value rises at every use of its instance, which is the frequent case and costs nothing here: the entry stays
filed under its old, too low value until it gets in the way of a decision. Only a value that falls has to be told.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

GONE = -1


@dataclass(eq=False, slots=True)
class Rank:
    """What one instance is worth.

    Attributes:
        instance: Whose.
        value: What keeping it is worth; who decides may raise this at any time without telling.
        filed: The value that it is filed under, which is never above ``value``.
        place: Where it is in the heap.
    """

    instance: int
    value: float
    filed: float = 0.0
    place: int = GONE


class Ranking:
    """Ranks in the order of their value; every change costs O(log n), and a use nothing."""

    def __init__(self) -> None:
        self._heap: list[Rank] = []
        self._risen: list[Rank] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, rank: Rank) -> None:
        """Files a new rank."""
        rank.filed, rank.place = rank.value, len(self._heap)
        self._heap.append(rank)
        self._up(rank)

    def remove(self, rank: Rank) -> None:
        """Takes a rank out."""
        last = self._heap.pop()
        if last is not rank:
            last.place = rank.place
            self._heap[rank.place] = last
            self._up(last)
            self._down(last)
        rank.place = GONE

    def file(self, rank: Rank) -> None:
        """Files a rank anew: needed if its value fell, wise if it rose far and will hardly be what it was again."""
        fell, rank.filed = rank.value < rank.filed, rank.value
        if fell:
            self._up(rank)
        else:
            self._down(rank)

    def lowest_first(self) -> Iterator[int]:
        """Instances in the order of value; nothing may change while somebody reads it.

        The heap is not taken apart: whoever needs the k first of n pays for about k entries, and once for each that
        has risen above them since it was filed.
        """
        self._file_risen()
        heap = self._heap
        size = len(heap)
        if not size:
            return
        front = [(heap[0].filed, 0, heap[0])]
        while front:
            _, place, rank = heapq.heappop(front)
            if place >= 0:
                for below in range(2 * place + 1, min(2 * place + 3, size)):
                    heapq.heappush(front, (heap[below].filed, below, heap[below]))
                if rank.value > rank.filed:
                    self._risen.append(rank)
                    heapq.heappush(front, (rank.value, GONE - rank.instance, rank))  # a place that nobody has
                    continue
            yield rank.instance

    def _file_risen(self) -> None:
        risen, self._risen = self._risen, []
        for rank in risen:
            if rank.place != GONE:
                self.file(rank)

    def _up(self, rank: Rank) -> None:
        heap, place, filed = self._heap, rank.place, rank.filed
        while place > 0:
            above = heap[(place - 1) >> 1]
            if above.filed <= filed:
                break
            heap[place] = above
            above.place, place = place, above.place
        heap[place] = rank
        rank.place = place

    def _down(self, rank: Rank) -> None:
        heap, place, filed = self._heap, rank.place, rank.filed
        size = len(heap)
        while (below := 2 * place + 1) < size:
            least = heap[below]
            if below + 1 < size and heap[below + 1].filed < least.filed:
                least = heap[below + 1]
            if filed <= least.filed:
                break
            heap[place] = least
            least.place, place = place, least.place
        heap[place] = rank
        rank.place = place

"""Counters of the responses of a decoupled model, by their position in the stream."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from enum import IntEnum

from roost.core.statistics import ResponseStatistics, StatisticDuration

POSITIONS = 64
"""Positions that have counters of their own; all behind them share one more."""

FIRST_RESPONSE_MS = (100, 500, 2000, 5000)
"""Triton's buckets of the time until the first response."""


class Kind(IntEnum):
    """What a position is counted for; the value is the place of its count, its nanoseconds follow."""

    COMPUTE_INFER = 0
    COMPUTE_OUTPUT = 2
    SUCCESS = 4
    FAIL = 6
    EMPTY_RESPONSE = 8
    CANCEL = 10


class ResponseStats:
    """See the module.

    Attributes:
        first_counts: First responses by bucket of ``FIRST_RESPONSE_MS``, the last one for all that took longer.
        first_ms: What they took in all.
    """

    __slots__ = ("_positions", "first_counts", "first_ms")

    def __init__(self) -> None:
        self._positions: list[array[int]] = []
        self.first_counts = [0] * (len(FIRST_RESPONSE_MS) + 1)
        self.first_ms = 0.0

    def first(self, took_s: float) -> None:
        """Counts the time from a request to its first response."""
        took_ms = took_s * 1e3
        self.first_counts[bisect_left(FIRST_RESPONSE_MS, took_ms)] += 1
        self.first_ms += took_ms

    def responded(self, position: int, infer_ns: int, output_ns: int) -> None:
        """Counts a response that has outputs."""
        counts = self._at(position)
        _add(counts, Kind.COMPUTE_INFER, infer_ns)
        _add(counts, Kind.COMPUTE_OUTPUT, output_ns)
        _add(counts, Kind.SUCCESS, infer_ns + output_ns)

    def ended(self, position: int, kind: Kind, took_ns: int) -> None:
        """Counts how a stream ended without a response: with none, by failing or by being cancelled."""
        _add(self._at(position), kind, took_ns)

    def by_position(self) -> dict[str, ResponseStatistics]:
        """The counters as the statistics extension shows them."""
        return {
            str(position): ResponseStatistics(*(StatisticDuration(counts[k], counts[k + 1]) for k in Kind))
            for position, counts in enumerate(self._positions)
        }

    def _at(self, position: int) -> array[int]:
        position = min(position, POSITIONS)
        while len(self._positions) <= position:
            self._positions.append(array("q", bytes(8 * 2 * len(Kind))))
        return self._positions[position]


def _add(counts: array[int], kind: Kind, took_ns: int) -> None:
    counts[kind] += 1
    counts[kind + 1] += took_ns

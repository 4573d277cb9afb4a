"""How many requests of a kind are let in at once: no more than are answered in time, once most are not.

What waits behind the event loop is the router's business, and it refuses what it sees will be late. But near the limit
of the loop itself that is seen too late: turns grow, each brings more requests than it takes answers out, and all of
them expire after they were read. No I/O.
"""

from __future__ import annotations

import math

# Outcomes after which is looked at how many were late, and the share of them from which on that is too many.
_OUTCOMES = 32
_MOST_LATE = 1 / 4
_CUT = 0.7
_LEAST = 8.0
# The limit is forgotten so long after the last cut: what made requests late may be over.
_BELIEF_S = 1.0


class Window:
    """The requests of one kind that are under way; as many as come, until too many of them are late.

    Attributes:
        under_way: How many there are; whoever lets one in adds it, and calls ``leave`` at its end.
    """

    __slots__ = ("_cut_at", "_ended", "_late", "_most", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        self._most = math.inf
        self._cut_at = -math.inf
        self._ended = 0
        self._late = 0

    def is_full(self, now: float) -> bool:
        """Whether another request would have to wait for too many (``now``: ``time.monotonic`` seconds)."""
        if self.under_way < self._most:
            return False
        if now - self._cut_at > _BELIEF_S:
            self._most = math.inf
            return False
        return True

    def leave(self, received: float, now: float, is_late: bool | None) -> None:
        """A request has its outcome, or nobody waits for it any more.

        Args:
            received: When it came.
            now: The time.
            is_late: Whether its deadline passed before there was an answer; None if it says nothing about others.
        """
        # What came before the last cut says nothing about it.
        if is_late is not None and received > self._cut_at:
            self._ended += 1
            self._late += is_late
            if not is_late and 2 * self.under_way > self._most:
                self._most += 1 / self._most
            if self._ended >= _OUTCOMES:
                if self._late > _MOST_LATE * self._ended:
                    self._most = max(_LEAST, _CUT * min(self._most, self.under_way))
                    self._cut_at = now
                self._ended = self._late = 0
        self.under_way -= 1

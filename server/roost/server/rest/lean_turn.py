"""How far the event loop is behind: requests whose answers would come too late are refused before they are read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# For this share of the time that a request allows, requests are let in at the beginning of every turn: refusals make
# turns long as well, and a turn that lets nobody in says nothing about how long an answer takes.
_ALWAYS_SHARE = 1 / 8


class Turn:
    """One turn of the event loop: from the first request that it found to the end of what it found.

    A request that is read late in a long turn has been there since the turn began, and may have come just after the
    turn before it began to look. Its answer comes one turn later.

    Args:
        clock: Tells the time in seconds.

    Attributes:
        began: When the turn began by this clock, which is when its requests were there at the latest.
        now: When its last request was looked at.
    """

    __slots__ = ("_clock", "_is_under_way", "_last_ended", "_last_s", "began", "now")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.began = self.now = 0.0
        self._is_under_way = False
        self._last_ended = 0.0
        self._last_s = 0.0

    def is_late(self, loop: asyncio.AbstractEventLoop, allowance_s: float) -> bool:
        """Called for each request.

        Args:
            loop: The event loop.
            allowance_s: How long its answer may take.

        Returns:
            Whether its answer would come later, as far as this turn and the one before it tell.
        """
        self.now = now = self._clock()
        if not self._is_under_way:
            self._is_under_way = True
            self.began = now
            if now - self._last_ended > self._last_s:
                # The loop was idle in between.
                self._last_s = 0.0
            loop.call_soon(self._end)
        lasted_s = now - self.began
        return lasted_s + 2 * self._last_s > allowance_s and lasted_s >= _ALWAYS_SHARE * allowance_s

    def _end(self) -> None:
        self._is_under_way = False
        self._last_ended = self._clock()
        self._last_s = self._last_ended - self.began

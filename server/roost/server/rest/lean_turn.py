"""How far the event loop is behind: requests whose answers would come too late are refused before they are read."""

from __future__ import annotations

import asyncio
import time


class Turn:
    """One turn of the event loop: from the first request that it found to the end of what it found.

    A request that is read late in a long turn has been there since the turn began, and may have come just after the
    turn before it began to look. Its answer comes one turn later.

    Attributes:
        began: When the turn began (``time.monotonic`` seconds), which is when its requests were there at the latest.
    """

    __slots__ = ("_is_under_way", "_last_ended", "_last_s", "began")

    def __init__(self) -> None:
        self.began = 0.0
        self._is_under_way = False
        self._last_ended = 0.0
        self._last_s = 0.0

    def enter(self, loop: asyncio.AbstractEventLoop) -> float:
        """Called for each request.

        Returns:
            How long after it was sent its answer will be out, as far as this turn and the one before it tell.
        """
        now = time.monotonic()
        if self._is_under_way:
            return now - self.began + 2 * self._last_s
        self._is_under_way = True
        self.began = now
        if now - self._last_ended > self._last_s:
            # The loop was idle in between.
            self._last_s = 0.0
        loop.call_soon(self._end)
        return 2 * self._last_s

    def _end(self) -> None:
        self._is_under_way = False
        self._last_ended = time.monotonic()
        self._last_s = self._last_ended - self.began

"""The order of answers in a stream, where there must be one. No I/O."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Turns:
    """The order in which those answer that must keep one."""

    def __init__(self) -> None:
        self._taken = 0
        self._waiting: OrderedDict[int, asyncio.Future[None] | None] = OrderedDict()

    def take(self) -> int:
        """Queues up; the turn must be ended at some time."""
        self._taken += 1
        self._waiting[self._taken] = None
        return self._taken

    async def come(self, turn: int) -> None:
        """Waits until all earlier turns have ended; returns at once if this one has."""
        if turn in self._waiting and turn != next(iter(self._waiting)):
            future = asyncio.get_running_loop().create_future()
            self._waiting[turn] = future
            await future

    def end(self, turn: int) -> None:
        """Lets the next one answer, or takes no more part in the order if it isn't this one's turn yet."""
        self._waiting.pop(turn, None)
        if self._waiting:
            future = next(iter(self._waiting.values()))
            if future is not None and not future.done():
                future.set_result(None)

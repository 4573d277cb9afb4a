"""Lets calls that come together go on together, where a transport hands them over one by one.

grpc.aio takes one call after the other, each after several turns of the event loop, even if all of them came in one
packet. Handed on like that, each would be a batch of its own, which costs the way to the worker and back far more
than waiting for the others.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from roost.core.tensors import Buffer
from roost.server.grpc_calls import LargeCall, Parts

# As many turns as grpc.aio needs from one call to the next.
_QUIET_TURNS: Final = 8
_LONGEST_S: Final = 0.002


class Bursts:
    """Holds calls until no further one comes, unless there is no other call at all.

    What is held goes on in one turn of the event loop: after a few turns without a further call, and at the latest
    2 ms after the first.
    """

    def __init__(self) -> None:
        self._calls = 0  # that were let in and are not over
        self._had_company = False  # the last one that was held
        self._held: list[asyncio.Future[None]] = []
        self._let_go_at = 0.0

    def gathered(self, call: LargeCall) -> LargeCall:
        """Makes a call that waits for others before it begins."""

        async def run(raw: Buffer, context: Any, arrived: float) -> Parts:
            self._calls += 1
            try:
                if self._calls > 1 or self._had_company:
                    await self._others()
                return await call(raw, context, arrived)
            finally:
                self._calls -= 1

        return run

    def _others(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        if not self._held:
            self._let_go_at = time.monotonic() + _LONGEST_S
            loop.call_soon(self._look, loop, 1, _QUIET_TURNS)
        self._held.append(turn)
        return turn

    def _look(self, loop: asyncio.AbstractEventLoop, count: int, turns: int) -> None:
        """Looks for further calls once in a turn, and lets all go when there were none for so many turns."""
        held = len(self._held)
        turns = turns - 1 if held == count else _QUIET_TURNS
        if turns and time.monotonic() < self._let_go_at:
            loop.call_soon(self._look, loop, held, turns)
            return
        calls, self._held = self._held, []
        self._had_company = held > 1
        for call in calls:
            if not call.done():
                call.set_result(None)

"""The line of loads that wait for memory on a device: first come, first served."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roost.core.errors import Cancelled, Limit, ResourceExhausted
from roost.core.units import format_bytes
from roost.router.placement import Evict, Fits, Ledger, Refuse, Wait
from roost.router.revision import Revision

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Waiting:
    """A load that waits for memory."""

    instance: int
    revision: Revision
    need_bytes: int
    future: asyncio.Future[None]


class Room:
    """Reserves memory for loads and has others evicted for them.

    Args:
        ledger: The device's budget.
        make_room: Evicts the idle instances of the first list and drains the busy ones of the second.
    """

    def __init__(self, ledger: Ledger, make_room: Callable[[Sequence[int], Sequence[int]], None]) -> None:
        self._ledger = ledger
        self._make_room = make_room
        self._line: deque[_Waiting] = deque()
        self._older_than: dict[Revision, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.give_way: Callable[[], bool] = lambda: False
        """Asked before anything else has to go: whether memory of something that can wait will be free at once."""

    def spare(self, revision: Revision, older_than: float) -> None:
        """No request has asked for this load: only instances last used before ``older_than`` may go for it."""
        self._older_than[revision] = older_than

    def hurry(self, revision: Revision) -> None:
        """A request wants the load after all: anything that may go may go for it, and it goes first."""
        if self._older_than.pop(revision, None) is not None:
            self.changed()

    async def reserve(self, instance: int, revision: Revision, need_bytes: int) -> None:
        """Waits until the ledger has the memory for a new instance; when this returns, it is taken.

        Args:
            instance: The id that the ledger will know it by.
            revision: What is to be loaded.
            need_bytes: How much it is accounted with.

        Raises:
            ResourceExhausted: If it can never fit, or may evict nothing that would have to go.
            Cancelled: If nobody wants the revision any more.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(_Waiting(instance, revision, need_bytes, future))
        self.changed()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._ledger.gone(instance)
                self.changed()
            raise

    def changed(self) -> None:
        """Looks whether the loads in the line can go on; called whenever that may have changed."""
        while self._line:
            head = self._next_in_line()
            if not head.revision.wanted() and not head.future.done():
                head.future.set_exception(Cancelled("nobody waits for this load any more"))
            if head.future.done():
                self._line.remove(head)
            elif not self._advance(head):
                return

    def stop(self) -> None:
        """Ends the timer; the loads are cancelled by whoever started them."""
        self._look_again_at(math.inf)

    def _next_in_line(self) -> _Waiting:
        """First come first served, but what requests wait for goes before what they do not."""
        if not self._older_than:
            return self._line[0]
        return next((w for w in self._line if w.revision not in self._older_than), self._line[0])

    def _advance(self, head: _Waiting) -> bool:
        """Decides about the next in line; False if it has to wait."""
        older_than = self._older_than.get(head.revision, math.inf)
        plan = self._ledger.plan(head.need_bytes, time.monotonic(), older_than=older_than)
        if isinstance(plan, Evict | Wait) and self.give_way():
            return False
        match plan:
            case Fits():
                pin = head.revision.description.policy.pin
                self._ledger.reserve(head.instance, head.revision, head.need_bytes, pinned=pin)
                head.future.set_result(None)
                return True
            case Refuse(available_bytes):
                error = _too_large(head, available_bytes)
                if not head.revision.refused:
                    head.revision.refused = True
                    log.warning("%s", error.message)
                head.future.set_exception(error)
                return True
            case Evict(idle, busy):
                self._make_room(idle, busy)
                return False
            case Wait(until):
                if older_than < math.inf and until == math.inf and not self._ledger.coming_or_going():
                    head.future.set_exception(_no_room(head.revision))
                    return True
                self._look_again_at(until)
                return False

    def _look_again_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when < math.inf:
            delay_s = max(0.0, when - time.monotonic()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.changed)


def _too_large(waiting: _Waiting, available_bytes: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"model '{waiting.revision.key.name}' version {waiting.revision.key.version} needs "
        f"{format_bytes(waiting.need_bytes)}, more than the {format_bytes(available_bytes)} that the memory budget "
        "has for it",
        limit=Limit.NO_MEMORY,
    )


def _no_room(revision: Revision) -> ResourceExhausted:
    return ResourceExhausted(
        f"model '{revision.key.name}' was never loaded and there is no room to look at it without evicting a model "
        "that is in use: declare its inputs and outputs in config.pbtxt, or send it a request",
        retry_after_s=1.0,
        limit=Limit.NO_MEMORY,
    )

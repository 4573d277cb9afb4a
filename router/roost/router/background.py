"""Work that can wait, done by the preparer's process with memory that nobody else wants: it gives way to every load."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from roost.core.figures import Figures
from roost.router.placement import Ledger
from roost.router.plans import Evict, Fits, Refuse
from roost.router.preparer import Answer, Job, Preparer, PreparerFailed
from roost.router.room import Room

TIMEOUT_S = 1800.0
LOOK_EVERY_S = 1.0
LINGER_S = 5.0
RETRY_AFTER_S = 60.0
PATIENCE_S = 10.0


@dataclass(eq=False, kw_only=True, slots=True)
class Attempts:
    """How often a piece of work was tried, and when it may be tried next.

    Attributes:
        since: When it was asked for; ``time.monotonic`` seconds.
        not_before: When; ``time.monotonic`` seconds.
        failures: How often it failed.
        interruptions: How often a load came first, which is no failure.
    """

    since: float
    not_before: float = -math.inf
    failures: int = 0
    interruptions: int = 0

    def put_off_interrupted(self) -> None:
        """A load came first."""
        self.interruptions += 1
        self.not_before = time.monotonic() + LINGER_S * 2 ** min(self.interruptions, 6)

    def put_off_failed(self) -> None:
        """It failed, which is in ``failures`` already."""
        self.not_before = time.monotonic() + RETRY_AFTER_S * 4 ** (self.failures - 1)


K = TypeVar("K")
W = TypeVar("W", bound=Attempts)


def first_due(queue: Mapping[K, Attempts], now: float) -> K | None:
    """The first piece of work that may be tried now."""
    return next((key for key, work in queue.items() if work.not_before <= now), None)


def due_in_s(queue: Mapping[K, Attempts], now: float) -> float:
    """How long it is until a piece of work may be tried; infinity if there is none."""
    return min((work.not_before for work in queue.values()), default=math.inf) - now


@dataclass(eq=False)
class Background:
    """See the module. One task runs it.

    Attributes:
        number: What the ledger knows its memory by; instances have positive numbers.
        ledger: The device's budget.
        room: Where loads wait for memory.
        preparer: Does the work.
        interrupted: A load has taken the memory: whatever is done is lost.
    """

    number: int
    ledger: Ledger
    room: Room
    preparer: Preparer
    interrupted: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        others = self.room.give_way
        self.room.give_way = lambda: self._give_way() or others()

    @property
    def held_bytes(self) -> int:
        """How much memory it has."""
        holding = self.ledger.holdings.get(self.number)
        return 0 if holding is None else holding.figures.private_bytes

    def reserve(self, size_bytes: int) -> None:
        """Takes memory instead of what it has; the ledger's plan said that there is so much."""
        self.release()
        self.ledger.reserve(self.number, self, Figures(size_bytes))

    async def take(
        self, need_bytes: int, since: float, now: float, evict_idle: Callable[[Sequence[int]], None]
    ) -> bool | None:
        """Takes memory that nobody has; after a while, has what was not used since the work was asked for go for it.

        Args:
            need_bytes: How much instead of what it has.
            since: When the work was asked for.
            now: The time.
            evict_idle: Takes out instances that nobody leases.

        Returns:
            Whether it has it now, without which the process has ended; None if there will never be so much.
        """
        self.release()
        plan = self.ledger.plan(Figures(need_bytes), now, older_than=since)
        match plan:
            case Fits():
                self.reserve(need_bytes)
                return True
            case Evict(idle, busy) if not busy and now - since > PATIENCE_S:
                evict_idle(idle)
        await self.end()
        return None if isinstance(plan, Refuse) else False

    def release(self) -> None:
        """Gives back the memory; the process must be gone, or use none."""
        self.interrupted = False
        if self.number in self.ledger.holdings:
            self.ledger.gone(self.number)

    def changed(self) -> None:
        """There is something to do."""
        self._changed.set()

    async def ask(self, job: Job) -> Answer:
        """Has a job done; an attempt that failed is an answer with an ``error``."""
        try:
            return await self.preparer.do(job, TIMEOUT_S)
        except PreparerFailed as error:
            return {"error": str(error)}

    async def end(self, *, at_once: bool = False) -> None:
        """Ends the process; its memory is free."""
        await self.preparer.end(at_once=at_once)
        if self.number in self.ledger.holdings:
            self.release()
            self.room.changed()

    async def wait(self, seconds: float) -> None:
        """Until something has changed, or the time is over."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds if seconds < math.inf else None):
                await self._changed.wait()
        except TimeoutError:
            pass

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """At its end the process and its memory are gone, however it ends."""
        try:
            yield
        finally:
            try:
                await self.preparer.end(at_once=True)
            finally:
                self.release()

    async def step(self, queue: Mapping[K, W], do: Callable[[K, W], Awaitable[bool]]) -> float:
        """Does the next piece of work of a queue, if one is due; the process ends where there is none.

        Args:
            queue: What there is to do; ``do`` takes it out.
            do: Does a piece, or finds that it need not be done any more; returns whether that was possible now.

        Returns:
            How many seconds to wait for a change.
        """
        if self.interrupted:
            await self.end(at_once=True)
        now = time.monotonic()
        key = first_due(queue, now)
        if key is None:
            await self.end()
            return due_in_s(queue, now)
        return 0.0 if await do(key, queue[key]) else LOOK_EVERY_S

    async def repeat(self, step: Callable[[], Awaitable[float]], give_up: Callable[[], None]) -> None:
        """Does one piece of work after another, until cancelled.

        Args:
            step: Does the next one if that is possible, and says how many seconds to wait for a change.
            give_up: Called in an exception's handler if that raised what it should not.
        """
        while True:
            try:
                wait_s = await step()
            except Exception:
                give_up()
                wait_s = LOOK_EVERY_S
            if wait_s:
                await self.wait(wait_s)

    def _give_way(self) -> bool:
        """A load does not fit: whether what the preparer has will be free at once. Then ``room`` hears of it."""
        if self.number not in self.ledger.holdings:
            return False
        if not self.interrupted:
            self.interrupted = True
            self.ledger.leaving(self.number)
            self.preparer.kill()
            self._changed.set()
        return True

"""Step 5 of the data path, the pure part of loading: how urgent a load is, and who wants it for how long."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from roost.core.errors import Limit, ResourceExhausted, RoostError

if TYPE_CHECKING:
    from roost.router.revision import Revision

Outcome: TypeAlias = RoostError | None
"""How a load went: its error, or None if it went well."""

MOST_AHEAD_S = 5.0
"""So much earlier a load counts as asked for, or later, for what its model is worth (``roost.priority``). It has a
limit, since where loads wait all the time those of models that are worth less would else wait for ever."""

_numbers = itertools.count()


def ahead_s(importance: int) -> float:
    """How much earlier a load counts as asked for: half of the most with a priority of 1, more with a higher one."""
    return MOST_AHEAD_S * importance / (1 + abs(importance))


class LoadPriority(IntEnum):
    """Which load goes first: that of the lowest value. Among equal ones see ``Load.rank``."""

    REQUEST = 0  # an inference request or a load call waits for it
    LOOK = 1  # somebody waits for what the model says of itself
    SCALE_UP = 2  # a copy beside those that there are, or the least number of them
    PRELOAD = 3  # it was in use before the start
    BACKGROUND = 4  # it may be wanted soon


@dataclass(eq=False, slots=True)
class Load:
    """A load of one more instance of a revision, from when it is asked for until it has ended.

    Attributes:
        revision: What is loaded; it has one load at a time.
        future: Gets the outcome.
        priority: How urgent it is; it only grows.
        older_than: Only instances last used before this may be evicted for it.
        kept: Whether it is wanted even though nobody waits for it.
        since: When it was asked for.
        importance: The priority of its model then.
        expected_s: How long the worker is expected to take for it; 0 if nothing is known.
        expected_at: When it is expected to be over, as far as that is known; minus infinity if it is not.
        asked_at: When a request asked for it that could not wait for its end; minus infinity if there was none.
        cancel: Tells the worker that has begun with it that nobody wants it any more.
        failed_on: Where it has failed for a reason that may be the worker's: id and epoch.
        number: Tells those apart that were asked for at the same time.
    """

    revision: Revision
    future: asyncio.Future[Outcome]
    priority: LoadPriority = LoadPriority.REQUEST
    older_than: float = math.inf
    kept: bool = False
    since: float = 0.0
    importance: int = 0
    expected_s: float = 0.0
    expected_at: float = -math.inf
    asked_at: float = -math.inf
    cancel: Callable[[], None] | None = None
    failed_on: set[tuple[int, int]] = field(default_factory=set)
    number: int = field(default_factory=_numbers.__next__)
    _callers: dict[asyncio.Future[Outcome], float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, float, int]:
        """Loads go in the order of their ranks: of equal priority those of models that are worth more, but for ages."""
        return self.priority, self.since - ahead_s(self.importance), self.number

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for it, or it is to be made in any case."""
        return self.revision.wanted() or (self.kept and not self.revision.retired)

    def urge(self, priority: LoadPriority, older_than: float, *, kept: bool) -> bool:
        """Somebody else asks for it; returns whether it is more urgent by that, or may have more evicted."""
        before = self.priority, self.older_than
        self.priority = min(self.priority, priority)
        self.older_than = max(self.older_than, older_than)
        self.kept = self.kept or kept
        return (self.priority, self.older_than) != before

    def join(self, deadline: float) -> asyncio.Future[Outcome]:
        """Somebody waits until it has ended, or is expected to end after the deadline; ``leave`` must follow.

        The load goes on if the future is cancelled.
        """
        caller: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._callers[caller] = deadline
        return caller

    def leave(self, caller: asyncio.Future[Outcome]) -> None:
        """Somebody does not wait any more."""
        del self._callers[caller]

    def refuse_callers(self, refusal: ResourceExhausted) -> bool:
        """Ends the waiting of those whose deadline comes before the load is over; returns whether there were any."""
        late = [c for c, deadline in self._callers.items() if deadline < self.expected_at and not c.done()]
        for caller in late:
            caller.set_result(refusal)
        return bool(late)

    def end(self, outcome: Outcome) -> None:
        """It has ended."""
        self.future.set_result(outcome)
        for caller in self._callers:
            if not caller.done():
                caller.set_result(outcome)

    def refusal(self, now: float) -> ResourceExhausted:
        """What those are told who can't wait until it is over."""
        wait_s = max(0.0, self.expected_at - now)
        name, version = self.revision.key.name, self.revision.key.version
        return ResourceExhausted(
            f"model '{name}' version {version} is not loaded, and that is expected to take {wait_s:.3g} s, longer than "
            "the request may wait",
            retry_after_s=wait_s,
            limit=Limit.LOAD_WAIT,
        )

"""Step 5, who goes: the policy says in which order, and no more go than what is missing takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from roost.router.accounts import RESIDENT, Holding
from roost.router.eviction import EvictionPolicy
from roost.router.shortage import Shortage

MOST_RECENT = 1000
"""What may wait looks no further than so many that were used too recently: there may be a hundred thousand."""

_NEVER = -math.inf

K = TypeVar("K")


class Victims(NamedTuple):
    """Who would go.

    Attributes:
        idle: Instances that may go at once.
        busy: Instances to be drained.
        until: Without enough of them: when others may go that are protected until then.
    """

    idle: tuple[int, ...]
    busy: tuple[int, ...]
    until: float = math.inf


@dataclass(slots=True)  # frozen ones take longer to make, and this is in every decision
class Search:
    """Looks for victims; changes nothing but what is ``missing``.

    Attributes:
        holdings: All of them.
        policy: Has the order.
        now: The time.
        older_than: Only instances last used before this, or never, may go.
    """

    holdings: Mapping[int, Holding]
    policy: EvictionPolicy
    now: float
    older_than: float

    def choose(self, missing: Shortage) -> Victims:
        """Idle ones until they suffice, else with those that may be drained; of these, no more than needed.

        Those that are found are taken from what is missing; if that is not met then, nobody may go.
        """
        idle: list[int] = []
        busy: list[int] = []
        until = math.inf
        now = self.now
        for instance, holding in self._coldest_first():
            if not missing.lessened_by(holding):
                continue
            protected_until = holding.protected_until()
            if protected_until > now:
                until = min(until, protected_until)
            elif holding.leases:
                busy.append(instance)
            else:
                idle.append(instance)
                missing.take(holding)
                if missing.met:
                    break
        if missing.met and len(idle) == 1:  # nearly always
            return Victims((idle[0],), ())
        chosen = list(idle)
        for instance in busy:
            if missing.met:
                break
            chosen.append(instance)
            missing.take(self.holdings[instance])
        if not missing.met:
            return Victims((), (), until)
        needed = self._without_surplus(chosen, missing)
        return Victims(tuple(i for i in idle if i in needed), tuple(i for i in busy if i in needed))

    def first_to_clear(self, lacking: Mapping[K, float], part_of: Callable[[Holding], tuple[K | None, float]]) -> K:
        """Of processes, or devices, that all have too little left, where those that go first have enough of it.

        Args:
            lacking: How much each has too little, the best one first.
            part_of: Where a holding is, and how much it has there.
        """
        idle, drained, later = dict(lacking), dict(lacking), dict(lacking)
        after_draining: K | None = None
        some_time: K | None = None
        for _, holding in self._coldest_first():
            at, amount = part_of(holding)
            if at is None or at not in lacking:
                continue
            later[at] -= amount
            if later[at] <= 0 and some_time is None:
                some_time = at
            if holding.protected_until() > self.now:
                continue
            drained[at] -= amount
            if drained[at] <= 0 and after_draining is None:
                after_draining = at
            if not holding.leases:
                idle[at] -= amount
                if idle[at] <= 0:
                    return at
        found = some_time if after_draining is None else after_draining
        return next(iter(lacking)) if found is None else found

    def _coldest_first(self) -> Iterator[tuple[int, Holding]]:
        """Those that may go, now or when their protection or their leases end."""
        holdings, older_than, recent = self.holdings, self.older_than, 0
        for instance in self.policy.coldest_first():
            holding = holdings[instance]
            if holding.last_used >= older_than and holding.last_used > _NEVER:
                recent += 1
                if recent == MOST_RECENT:
                    return
            elif holding.phase is RESIDENT and not holding.pinned and (not holding.held or holding.yields):
                yield instance, holding

    def _without_surplus(self, chosen: Sequence[int], missing: Shortage) -> set[int]:
        """Those without whom it would not do; what is there without the others is missing no more than before."""
        needed: set[int] = set()
        for instance in reversed(chosen):
            holding = self.holdings[instance]
            missing.give_back(holding)
            if not missing.met:
                missing.take(holding)
                needed.add(instance)
        return needed

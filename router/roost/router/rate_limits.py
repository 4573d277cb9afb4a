"""Step 6 of the data path, the pure part of what runs share besides slots: which models may run a batch now.

A model may say that each of its runs holds units of resources, such as of a bandwidth or a licence. There is a number
of units of each, on every device or of all together, and a run begins when there are enough. Those who wait take
turns: whoever has had the fewest, weighed by priority, goes first, and what it waits for is not given to others. So
nobody is overtaken for ever, and nobody waits for a resource that it has no use for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from roost.core.errors import FailedPrecondition
from roost.registry_client.instance_groups import Demand, Resource

MAX_PAST = 1024
"""So many that have had turns are remembered beside those that wait."""

Owner: TypeAlias = Hashable
"""Whoever wants to run: a revision."""


class RateLimit(NamedTuple):
    """How many units of a resource there are, on one device or, if none is named, on each."""

    name: str
    units: int
    device: str = ""


class Pool(NamedTuple):
    """Units that are counted together: those of a resource on a device, or of all devices if that is empty."""

    name: str
    device: str


class Grant(NamedTuple):
    """What a run holds as long as it goes on."""

    owner: Owner
    units: Mapping[Pool, int]


@dataclass(slots=True)
class _Turn:
    """Somebody waits.

    Attributes:
        rank: Whoever has the lowest goes first, of equal ones who came first.
        units: What its run will hold.
        weight: By how much its rank rises with each run.
    """

    rank: tuple[float, int]
    units: Mapping[Pool, int]
    weight: int


class RateLimiter:
    """See the module.

    Args:
        limits: What there is. Of a resource that is not named, as much as the model needs that needs the most.
    """

    def __init__(self, limits: Iterable[RateLimit] = ()) -> None:
        self._limits: dict[Pool, int] = {Pool(limit.name, limit.device): limit.units for limit in limits}
        self._named = {pool.name for pool in self._limits}
        self._most: dict[Pool, int] = {}
        self._held: dict[Pool, int] = {}
        self._waiting: dict[Owner, _Turn] = {}
        self._past: dict[Owner, float] = {}
        self._now = 0.0  # the rank of whoever had the last turn: who comes anew has no claim to those before
        self._arrivals = 0

    def check(self, demand: Demand) -> None:
        """Says why a run can never begin, if so.

        Raises:
            FailedPrecondition: In Triton's words.
        """
        for resource in demand.resources:
            if resource.name in self._named:
                limit = max(count for pool, count in self._limits.items() if pool.name == resource.name)
                if limit < resource.count:
                    raise FailedPrecondition(
                        f'Resource count for "{resource.name}" is limited to {limit} which will prevent scheduling of '
                        f"one or more model instances, the minimum required count is {resource.count}"
                    )

    def begin(self, owner: Owner, demand: Demand, device: str) -> Grant | None:
        """What a run on a device holds from now on; None if its owner waits for its turn, until it asks once more."""
        units = {_pool(resource, device): resource.count for resource in demand.resources}
        for pool, count in units.items():
            self._most[pool] = max(count, self._most.get(pool, 0))
        turn = self._waiting.get(owner)
        if turn is None:
            self._arrivals += 1
            rank = max(self._past.get(owner, 0.0), self._now), self._arrivals
            turn = self._waiting[owner] = _Turn(rank, units, demand.priority)
        turn.units, turn.weight = units, demand.priority
        if owner not in self.next():
            return None
        del self._waiting[owner]
        for pool, count in units.items():
            self._held[pool] = self._held.get(pool, 0) + count
        self._now = max(self._now, turn.rank[0])
        self._remember(owner, turn.rank[0] + turn.weight)
        return Grant(owner, units)

    def end(self, grant: Grant) -> None:
        """A run has ended: others may have turns, see ``next``."""
        for pool, count in grant.units.items():
            left = self._held[pool] - count
            if left:
                self._held[pool] = left
            else:
                del self._held[pool]

    def withdraw(self, owner: Owner) -> bool:
        """Its owner does not wait any more; whether it did."""
        return self._waiting.pop(owner, None) is not None

    def forget(self, owner: Owner) -> None:
        """It will never run again."""
        self._waiting.pop(owner, None)
        self._past.pop(owner, None)

    @property
    def waiting(self) -> list[Owner]:
        """Who waits."""
        return list(self._waiting)

    def next(self) -> list[Owner]:
        """Who of those that wait may go now, in order."""
        return list(self._next())

    def _next(self) -> Iterator[Owner]:
        taken = dict(self._held)
        for owner, turn in sorted(self._waiting.items(), key=lambda item: item[1].rank):
            # One that needs more than there is goes when it is alone: whoever set the limit can't want it to hang.
            if all(
                not taken.get(pool) or taken[pool] + count <= self._limit(pool) for pool, count in turn.units.items()
            ):
                yield owner
            for pool, count in turn.units.items():
                taken[pool] = taken.get(pool, 0) + count

    def _limit(self, pool: Pool) -> int:
        limit = self._limits.get(pool)
        if limit is None and pool.device:
            limit = self._limits.get(Pool(pool.name, ""))
        elif limit is None and pool.name in self._named:  # of all devices together there is what one is said to have
            limit = max(count for other, count in self._limits.items() if other.name == pool.name)
        return self._most.get(pool, 0) if limit is None else limit

    def _remember(self, owner: Owner, rank: float) -> None:
        self._past[owner] = rank
        if len(self._past) > MAX_PAST:  # who is behind the present begins there anyway
            self._past = {other: past for other, past in self._past.items() if past > self._now}


def _pool(resource: Resource, device: str) -> Pool:
    return Pool(resource.name, "" if resource.is_global else device)

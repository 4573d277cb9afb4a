"""Step 5, the pure part: who has how much of a device's memory, and who goes when another one needs it.

Nothing here knows of tasks, sockets or processes, and time is passed in.

Three figures are limited: the private memory of all instances, that and the files that they map, and the mappings of
each process. A *claim* is a queued request's hold on a revision. It protects the revision's instances for a bounded
time, so that busy models can't keep cold ones out for ever. A *lease* is a batch that runs on an instance now; it
protects absolutely. An instance in constant use past its protection is *drained*: it gets no new leases and goes when
the last one ends.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from roost.core.figures import Figures
from roost.router.accounts import LEAVING, MIN_PROTECTION_S, RESIDENT, Accounts, Holding, Phase, Process
from roost.router.eviction import EvictionPolicy, Lru, Owner
from roost.router.shortage import Shortage
from roost.router.victims import Search, Victims

PROTECTION_LOADS = 4.0
LEAST_OF_LARGEST = 1 / 8

_NOTHING = Figures(0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What models may take.

    Attributes:
        private_bytes: Memory of their own, all together: the budget.
        memory_bytes: That and the page cache of the files that they map.
        mappings: In one process.
    """

    private_bytes: int
    memory_bytes: float = math.inf
    mappings: float = math.inf


class Figure(Enum):
    """One of the three that are limited."""

    PRIVATE = auto()
    MEMORY = auto()
    MAPPINGS = auto()


@dataclass(frozen=True, slots=True)
class Fits:
    """There is room now, in the first of the ``places`` that have it, if any were named."""

    place: int | None = None


@dataclass(frozen=True, slots=True)
class Evict:
    """There is room once these are gone: ``idle`` ones at once, ``busy`` ones after their last lease."""

    idle: tuple[int, ...]
    busy: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may go yet; look again when something changes or at ``until``."""

    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Refuse:
    """It would not fit even if everything that may ever go were gone: of one figure there is no more than this."""

    available: float
    figure: Figure = Figure.PRIVATE


Plan: TypeAlias = Fits | Evict | Wait | Refuse


class Ledger:
    """What there is of one device and what is taken of it.

    The sums never exceed the limits by what is reserved; only instances that turn out to take more than was reserved
    for them can exceed them, until others have gone.

    Attributes:
        limits: Of what is taken.
        holdings: Who has it, by instance.
        grown: Whether an instance has turned out to take more, since ``relief`` last said that there is room.
    """

    def __init__(self, limits: Limits, policy: EvictionPolicy | None = None) -> None:
        self.limits = limits
        self.holdings: dict[int, Holding] = {}
        self.grown = False
        self._accounts = Accounts()
        self._policy: EvictionPolicy = policy or Lru()
        self._claims: dict[Owner, int] = {}
        self._of_owner: dict[Owner, tuple[int, ...]] = {}  # of these the garbage collector need not look at any

    @property
    def used_bytes(self) -> int:
        """Private memory of all holdings."""
        return self._accounts.private_bytes

    @property
    def reserved_bytes(self) -> int:
        """What loads hold of it that are under way."""
        return self._accounts.reserved_bytes

    @property
    def mapped_bytes(self) -> int:
        """Files that are mapped, each counted once."""
        return self._accounts.mapped_bytes

    def account_of(self, place: int) -> Process:
        """What is accounted for the instances in one worker; it changes with them."""
        return self._accounts.process(place)

    def figures_of(self, place: int) -> Figures:
        """The same as it is now."""
        process = self._accounts.process(place)
        return Figures(process.private_bytes, process.mapped_bytes, process.mappings)

    def plan(
        self,
        need: Figures,
        now: float,
        *,
        older_than: float = math.inf,
        file: Hashable = None,
        places: Sequence[int] = (),
    ) -> Plan:
        """Says how there can be room for a new instance; changes nothing.

        Args:
            need: What it takes, or an upper estimate.
            now: The time.
            older_than: Only instances last used before this, or never, may go.
            file: Names the file that it maps, if others may map the same.
            places: Workers that it may go to, the best first; if none is named, its mappings do not count.
        """
        limits, taken = self.limits, self._accounts
        fitting = self._never_full(need.mappings, places) if places else ()
        refusal = self._refusal(need, file, places, fitting)
        if refusal is not None:
            return refusal
        shared = taken.files.get(file)
        private_bytes = need.private_bytes - limits.private_bytes + taken.private_bytes
        memory_bytes = need.private_bytes + taken.private_bytes + taken.mapped_bytes - limits.memory_bytes
        if shared is None:
            memory_bytes += need.mapped_bytes
        place = self._first_with(need.mappings, fitting) if places else None
        if private_bytes <= 0 and memory_bytes <= 0 and (place is not None or not places):
            return Fits(place)
        private_bytes -= taken.leaving_bytes
        memory_bytes -= taken.leaving_bytes + taken.leaving_mapped_bytes
        if shared is not None and not shared.staying:
            memory_bytes += shared.bytes  # which stays, since this one maps it then
        if place is None and places:
            place = self._first_with(need.mappings, fitting, after_leaving=True)
        search = Search(self.holdings, self._policy, now, older_than)
        mappings = 0.0
        if place is None and places:
            lacking = {p: self._lacking(need.mappings, p, after_leaving=True) for p in fitting}
            place = search.place_to_clear(lacking)
            mappings = lacking[place]
        missing = Shortage(private_bytes, memory_bytes, mappings, place, file, taken)
        return Wait() if missing.met else _evict(search.choose(missing), missing)

    def relief(self, now: float) -> Plan:
        """What has to go since instances have grown beyond a limit: as ``plan`` says it; ``Fits`` if none has."""
        plan = self.plan(_NOTHING, now)
        if isinstance(plan, Fits):
            for place, process in self._accounts.processes.items():
                if process.mappings > self.limits.mappings:
                    return self.plan(_NOTHING, now, places=(place,))
            self.grown = False
        return plan

    def reserve(
        self,
        instance: int,
        owner: Owner,
        need: Figures,
        *,
        file: Hashable = None,
        place: int | None = None,
        pinned: bool = False,
        priority: int = 0,
    ) -> None:
        """Takes what an instance needs that is about to load; ``plan`` said that it fits, and where."""
        if not self._has_room(need, file, place):
            raise ValueError("the reservation would exceed a limit")
        holding = Holding(owner, need, instance if file is None else file, place, pinned, priority)
        self.holdings[instance] = holding
        self._of_owner[owner] = (*self._of_owner.get(owner, ()), instance)
        self._accounts.add(holding)

    def assign(self, instance: int, places: Sequence[int]) -> int:
        """Says where an instance goes whose load begins: workers may have come and gone since it was planned.

        Args:
            instance: One that has a reservation.
            places: Workers that it may go to, the best first; not empty.
        """
        holding = self.holdings[instance]
        self._accounts.remove(holding)
        place = self._first_with(holding.figures.mappings, places)
        if place is None:
            place = next((p for p in places if p == holding.place), places[0])
        holding.place = place
        self._accounts.add(holding)
        return place

    def resized(self, instance: int, figures: Figures) -> None:
        """It was found out what an instance takes: most often less than was reserved for it, at times more."""
        holding = self.holdings[instance]
        before = holding.figures
        if figures == before:
            return
        self.grown |= (
            figures.private_bytes > before.private_bytes
            or figures.mapped_bytes > before.mapped_bytes
            or figures.mappings > before.mappings
        )
        self._accounts.remove(holding)
        holding.figures = figures
        self._accounts.add(holding)
        if holding.phase is RESIDENT:
            self._policy.resized(instance, self._share_bytes(holding))

    def pin(self, instance: int, *, pinned: bool) -> None:
        """From now on an instance is never evicted, or may be again; one that is leaving leaves."""
        holding = self.holdings[instance]
        if holding.pinned is not pinned and holding.phase is not LEAVING:
            self._accounts.remove(holding)
            holding.pinned = pinned
            self._accounts.add(holding)

    def loaded(self, instance: int, now: float, *, load_s: float) -> None:
        """The instance is there: it may be leased, and chosen to go. One that nobody claims counts as never used."""
        holding = self.holdings[instance]
        self._move(holding, RESIDENT)
        holding.protection_s = max(MIN_PROTECTION_S, PROTECTION_LOADS * load_s)
        size_bytes = self._share_bytes(holding)
        self._policy.loaded(instance, holding.owner, size_bytes, load_s, now, holding.priority)
        if self._claims.get(holding.owner):
            holding.busy_since = holding.last_used = now
            self._policy.warm(instance, now)

    def used_before(self, owner: Owner, at: float) -> None:
        """What the owner has was last used at a time before it was loaded, unless it was used since."""
        for instance in self._of_owner.get(owner, ()):
            holding = self.holdings[instance]
            holding.last_used = max(holding.last_used, at)

    def leaving(self, instance: int) -> None:
        """The instance was chosen to go, or its worker was lost; its memory stays taken until ``gone``."""
        self._move(self.holdings[instance], LEAVING)

    def gone(self, instance: int) -> None:
        """The instance's memory is free again."""
        holding = self.holdings.pop(instance)
        self._policy.forget(instance)
        self._accounts.remove(holding)
        siblings = self._of_owner.pop(holding.owner)
        if len(siblings) > 1:
            self._of_owner[holding.owner] = tuple(other for other in siblings if other != instance)

    def forget(self, owner: Owner) -> None:
        """The owner will never have an instance again."""
        self._policy.forget_owner(owner)

    def coming_or_going(self) -> bool:
        """Whether a load or an unload is under way, which will change what ``plan`` says."""
        return self._accounts.moving > 0

    def claimed(self, owner: Owner) -> bool:
        """Whether a request waits for the owner."""
        return owner in self._claims

    def claim(self, owner: Owner, now: float) -> None:
        """A request waits for the owner."""
        count = self._claims.get(owner, 0)
        self._claims[owner] = count + 1
        if count == 0:
            for instance in self._of_owner.get(owner, ()):
                holding = self.holdings[instance]
                holding.busy_since = min(holding.busy_since, now)

    def unclaim(self, owner: Owner) -> bool:
        """A request no longer waits; returns whether an instance became idle by it."""
        count = self._claims[owner] - 1
        if count:
            self._claims[owner] = count
            return False
        del self._claims[owner]
        settled = [self._settle(self.holdings[instance]) for instance in self._of_owner.get(owner, ())]
        return any(settled)

    def lease(self, instance: int, now: float) -> None:
        """A batch starts on the instance."""
        holding = self.holdings[instance]
        holding.leases += 1
        holding.last_used = now
        if now < holding.busy_since:
            holding.busy_since = now
        self._policy.used(instance, now)

    def release(self, instance: int, now: float) -> bool:
        """A batch on the instance ended; returns whether the instance became idle by it."""
        holding = self.holdings[instance]
        holding.leases -= 1
        holding.last_used = now
        self._policy.warm(instance, now)
        return self._settle(holding)

    def _settle(self, holding: Holding) -> bool:
        if holding.leases or self._claims.get(holding.owner):
            return False
        holding.busy_since = math.inf
        return True

    def _move(self, holding: Holding, phase: Phase) -> None:
        self._accounts.remove(holding)
        holding.phase = phase
        if phase is LEAVING:
            holding.pinned = False
        self._accounts.add(holding)

    def _share_bytes(self, holding: Holding) -> int:
        """What policies are told: the share that it takes of the limit that is nearest, in bytes of the first one.

        But no less than a part of its largest share, since another limit may be the nearest one day.
        """
        limits, taken, figures = self.limits, self._accounts, holding.figures
        budget_bytes = max(1, limits.private_bytes)
        memory_bytes = figures.private_bytes + figures.mapped_bytes
        shares = [
            (taken.private_bytes / budget_bytes, figures.private_bytes / budget_bytes),
            ((taken.private_bytes + taken.mapped_bytes) / limits.memory_bytes, memory_bytes / limits.memory_bytes),
        ]
        if holding.place is not None:
            in_process = taken.process(holding.place).mappings
            shares.append((in_process / limits.mappings, figures.mappings / limits.mappings))
        nearest = max(shares)[1]
        largest = max(share for _, share in shares)
        return round(budget_bytes * max(nearest, largest * LEAST_OF_LARGEST))

    def _has_room(self, need: Figures, file: Hashable, place: int | None) -> bool:
        limits, taken = self.limits, self._accounts
        private_bytes = need.private_bytes + taken.private_bytes
        mapped_bytes = taken.mapped_bytes + (0 if file in taken.files else need.mapped_bytes)
        if private_bytes > limits.private_bytes or private_bytes + mapped_bytes > limits.memory_bytes:
            return False
        return place is None or self._lacking(need.mappings, place, after_leaving=False) <= 0

    def _never_full(self, mappings: int, places: Sequence[int]) -> list[int]:
        """The workers in which what is pinned leaves as many mappings."""
        limit, process = self.limits.mappings, self._accounts.process
        return [place for place in places if mappings <= limit - process(place).pinned_mappings]

    def _refusal(self, need: Figures, file: Hashable, places: Sequence[int], fitting: Sequence[int]) -> Refuse | None:
        """Why it can never fit, if so."""
        limits, taken = self.limits, self._accounts
        available: float = limits.private_bytes - taken.pinned_bytes
        if need.private_bytes > available:
            return Refuse(available)
        shared = taken.files.get(file)
        mapped_bytes = 0 if shared is not None and shared.pinned else need.mapped_bytes
        available = limits.memory_bytes - taken.pinned_bytes - taken.pinned_mapped_bytes
        if need.private_bytes + mapped_bytes > available:
            return Refuse(available, Figure.MEMORY)
        if places and not fitting:
            most = max(limits.mappings - taken.process(place).pinned_mappings for place in places)
            return Refuse(most, Figure.MAPPINGS)
        return None

    def _lacking(self, mappings: int, place: int, *, after_leaving: bool) -> float:
        """How many mappings a worker's process has too few."""
        process = self._accounts.process(place)
        leaving = process.leaving_mappings if after_leaving else 0
        return mappings + process.mappings - leaving - self.limits.mappings

    def _first_with(self, mappings: int, places: Sequence[int], *, after_leaving: bool = False) -> int | None:
        """The first worker whose process may have so many more mappings."""
        for place in places:
            if self._lacking(mappings, place, after_leaving=after_leaving) <= 0:
                return place
        return None


def _evict(victims: Victims, missing: Shortage) -> Plan:
    return Evict(victims.idle, victims.busy) if missing.met else Wait(victims.until)

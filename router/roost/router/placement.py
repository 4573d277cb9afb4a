"""Step 5, the pure part: who has how much of a device's memory, and who goes when another one needs it.

Nothing here knows of tasks, sockets or processes, and time is passed in.

A *claim* is a queued request's hold on a revision. It protects the revision's instances for a bounded time, so that
busy models can't keep cold ones out for ever. A *lease* is a batch that runs on an instance now; it protects
absolutely. An instance in constant use past its protection is *drained*: it gets no new leases and goes when
the last one ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from roost.router.eviction import EvictionPolicy, Lru, Owner

MIN_PROTECTION_S = 1.0
PROTECTION_LOADS = 4.0


class Phase(Enum):
    """What a holding's memory is for."""

    RESERVED = auto()  # a load is under way
    RESIDENT = auto()  # may be leased, and chosen to go
    LEAVING = auto()  # chosen to go, not gone yet


@dataclass(slots=True)
class Holding:
    """What one instance has of the device.

    Attributes:
        owner: Its revision.
        bytes: What is accounted for it.
        pinned: Never evicted.
        phase: What the memory is for now.
        leases: Batches that run on it.
        last_used: When it was last leased or given back; minus infinity if never.
        protection_s: How long continuous use protects it.
        busy_since: Since when it is claimed or leased without a pause; infinity while it is idle.
    """

    owner: Owner
    bytes: int
    pinned: bool = False
    phase: Phase = Phase.RESERVED
    leases: int = 0
    last_used: float = -math.inf
    protection_s: float = MIN_PROTECTION_S
    busy_since: float = math.inf

    def protected_until(self) -> float:
        """When claims stop protecting it; minus infinity if nothing claims or leases it."""
        return -math.inf if self.busy_since == math.inf else self.busy_since + self.protection_s


@dataclass(frozen=True, slots=True)
class Fits:
    """There is room now."""


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
    """It would not fit even if everything that may ever go were gone."""

    available_bytes: int


Plan: TypeAlias = Fits | Evict | Wait | Refuse


class Ledger:
    """The budget of one device and what is taken of it; the sum never exceeds the budget."""

    def __init__(self, budget_bytes: int, policy: EvictionPolicy | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.holdings: dict[int, Holding] = {}
        self._policy: EvictionPolicy = policy or Lru()
        self._claims: dict[Owner, int] = {}
        self._of_owner: dict[Owner, list[int]] = {}
        self._phase_bytes = dict.fromkeys(Phase, 0)
        self._pinned_bytes = 0

    @property
    def reserved_bytes(self) -> int:
        """What loads hold that are under way."""
        return self._phase_bytes[Phase.RESERVED]

    def plan(self, need_bytes: int, now: float, *, older_than: float = math.inf) -> Plan:
        """Says how ``need_bytes`` can be had; changes nothing.

        Args:
            need_bytes: The upper estimate of a new instance.
            now: The time.
            older_than: Only instances last used before this, or never, may go.
        """
        available_bytes = self.budget_bytes - self._pinned_bytes
        if need_bytes > available_bytes:
            return Refuse(available_bytes)
        missing = need_bytes - (self.budget_bytes - self.used_bytes)
        if missing <= 0:
            return Fits()
        missing -= self._phase_bytes[Phase.LEAVING]
        if missing <= 0:
            return Wait()
        idle, busy, until = self._candidates(missing, now, older_than)
        if self._bytes(idle) + self._bytes(busy) < missing:
            return Wait(until)
        chosen = self._enough([*idle, *busy], missing)
        return Evict(tuple(i for i in idle if i in chosen), tuple(i for i in busy if i in chosen))

    def reserve(self, instance: int, owner: Owner, need_bytes: int, *, pinned: bool = False) -> None:
        """Takes the memory for an instance that is about to load; ``plan`` said that it fits."""
        if self.used_bytes + need_bytes > self.budget_bytes:
            raise ValueError("the reservation would exceed the budget")
        self.holdings[instance] = Holding(owner, need_bytes, pinned)
        self._of_owner.setdefault(owner, []).append(instance)
        self.used_bytes += need_bytes
        self._phase_bytes[Phase.RESERVED] += need_bytes
        self._pinned_bytes += need_bytes * pinned

    def loaded(self, instance: int, now: float, *, load_s: float) -> None:
        """The instance is there: it may be leased, and chosen to go. One that nobody claims counts as never used."""
        holding = self.holdings[instance]
        self._move(holding, Phase.RESIDENT)
        holding.protection_s = max(MIN_PROTECTION_S, PROTECTION_LOADS * load_s)
        self._policy.loaded(instance, holding.owner, holding.bytes, load_s, now)
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
        holding = self.holdings[instance]
        self._move(holding, Phase.LEAVING)
        if holding.pinned:
            holding.pinned = False
            self._pinned_bytes -= holding.bytes

    def gone(self, instance: int) -> None:
        """The instance's memory is free again."""
        holding = self.holdings.pop(instance)
        self._policy.forget(instance)
        self.used_bytes -= holding.bytes
        self._phase_bytes[holding.phase] -= holding.bytes
        self._pinned_bytes -= holding.bytes * holding.pinned
        siblings = self._of_owner[holding.owner]
        siblings.remove(instance)
        if not siblings:
            del self._of_owner[holding.owner]

    def forget(self, owner: Owner) -> None:
        """The owner will never have an instance again."""
        self._policy.forget_owner(owner)

    def coming_or_going(self) -> bool:
        """Whether a load or an unload is under way, which will change what ``plan`` says."""
        return self._phase_bytes[Phase.RESERVED] > 0 or self._phase_bytes[Phase.LEAVING] > 0

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

    def _candidates(self, missing: int, now: float, older_than: float) -> tuple[list[int], list[int], float]:
        """Idle ones until they suffice, else all that may be drained, and when that changes by time alone."""
        idle: list[int] = []
        busy: list[int] = []
        until = math.inf
        for instance in self._policy.coldest_first():
            holding = self.holdings[instance]
            if holding.pinned or holding.phase is not Phase.RESIDENT:
                continue
            if holding.last_used >= older_than and holding.last_used > -math.inf:
                continue
            protected_until = holding.protected_until()
            if holding.leases == 0 and protected_until <= now:
                idle.append(instance)
                missing -= holding.bytes
                if missing <= 0:
                    break
            elif protected_until <= now:
                busy.append(instance)
            else:
                until = min(until, protected_until)
        return idle, busy, until

    def _enough(self, instances: list[int], missing: int) -> set[int]:
        """The first instances that suffice, without those whose going turns out not to be needed."""
        chosen: list[int] = []
        for instance in instances:
            if missing <= 0:
                break
            chosen.append(instance)
            missing -= self.holdings[instance].bytes
        surplus = -missing
        needed: set[int] = set()
        for instance in reversed(chosen):
            size = self.holdings[instance].bytes
            if size <= surplus:
                surplus -= size
            else:
                needed.add(instance)
        return needed

    def _move(self, holding: Holding, phase: Phase) -> None:
        self._phase_bytes[holding.phase] -= holding.bytes
        self._phase_bytes[phase] += holding.bytes
        holding.phase = phase

    def _bytes(self, instances: list[int]) -> int:
        return sum(self.holdings[i].bytes for i in instances)

"""Step 5, the pure part: who has how much of a device's memory, and who goes when another one needs it.

Nothing here knows of tasks, sockets or processes, and time is passed in.

Limited are the private memory of all instances, that and the files that they map, the mappings of each process, and the
memory of each GPU, which all workers share that use it.

A *claim* is a queued request's hold on a revision. It protects the revision's instances for a bounded time, so that
busy models can't keep cold ones out for ever. A *lease* is a batch that runs on an instance now; it protects
absolutely. An instance in constant use past its protection is *drained*: it gets no new leases and goes when the last
one ends.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from roost.core.figures import Figures
from roost.router.accounts import (
    LEAVING,
    MIN_PROTECTION_S,
    RESIDENT,
    Accounts,
    DeviceAccount,
    Holding,
    Phase,
    Process,
)
from roost.router.capacity import Capacity
from roost.router.eviction import EvictionPolicy, Lru, Owner
from roost.router.plans import Evict, Fits, Limits, Plan, Wait
from roost.router.shortage import Shortage
from roost.router.victims import Search, Victims

PROTECTION_LOADS = 4.0

_NOTHING = Figures(0)


class Ledger:
    """What there is of this machine's memory, its GPUs' included, and what is taken of it.

    The sums never exceed the limits by what is reserved; only instances that turn out to take more than was reserved
    for them can exceed them, until others have gone.

    Attributes:
        holdings: Who has it, by instance.
        grown: Whether an instance has turned out to take more, since ``relief`` last said that there is room.
    """

    def __init__(self, limits: Limits, policy: EvictionPolicy | None = None) -> None:
        self.holdings: dict[int, Holding] = {}
        self.grown = False
        self._accounts = Accounts()
        self._capacity = Capacity(limits, self._accounts)
        self._policy: EvictionPolicy = policy or Lru()
        self._claims: dict[Owner, int] = {}
        self._of_owner: dict[Owner, tuple[int, ...]] = {}  # of these the garbage collector need not look at any

    @property
    def limits(self) -> Limits:
        """Of what is taken."""
        return self._capacity.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._capacity.limits = limits

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

    def add_device(self, name: str, places: Sequence[int]) -> None:
        """There is a GPU, which these workers use; until ``limit_device`` it has no memory for anything."""
        device = self._accounts.devices[name] = DeviceAccount()
        self._accounts.device_at.update(dict.fromkeys(places, device))

    def limit_device(self, name: str, limit_bytes: int) -> None:
        """So much of a GPU's memory may be taken from now on; others have to go if it is more."""
        device = self._accounts.devices[name]
        device.limit_bytes = limit_bytes
        self.grown |= device.bytes > limit_bytes

    def device(self, name: str) -> DeviceAccount:
        """What is taken of a GPU; it changes with that."""
        return self._accounts.devices[name]

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
            places: Workers that it may go to, the best first; if none is named, only memory of the host counts.
        """
        capacity, taken = self._capacity, self._accounts
        limits = capacity.limits
        fitting = capacity.never_full(need, places) if places else ()
        refusal = capacity.refusal(need, file, places, fitting)
        if refusal is not None:
            return refusal
        shared = taken.files.get(file)
        private_bytes = need.private_bytes - limits.private_bytes + taken.private_bytes
        memory_bytes = need.private_bytes + taken.private_bytes + taken.mapped_bytes - limits.memory_bytes
        if shared is None:
            memory_bytes += need.mapped_bytes
        place = capacity.first_with(need, fitting) if places else None
        if private_bytes <= 0 and memory_bytes <= 0 and (place is not None or not places):
            return Fits(place)
        private_bytes -= taken.leaving_bytes
        memory_bytes -= taken.leaving_bytes + taken.leaving_mapped_bytes
        if shared is not None and not shared.staying:
            memory_bytes += shared.bytes  # which stays, since this one maps it then
        if place is None and places:
            place = capacity.first_with(need, fitting, after_leaving=True)
        search = Search(self.holdings, self._policy, now, older_than)
        mappings, device_bytes = 0.0, 0
        if place is None and places:
            place = self._place_to_clear(search, need, fitting)
            mappings = max(0.0, capacity.lacking(need.mappings, place, after_leaving=True))
            device_bytes = max(0, capacity.lacking_bytes(need.device_bytes, place, after_leaving=True))
        missing = Shortage(private_bytes, memory_bytes, mappings, place, file, taken, device_bytes)
        return Wait() if missing.met else _evict(search.choose(missing), missing)

    def _place_to_clear(self, search: Search, need: Figures, places: Sequence[int]) -> int:
        """The worker to load in, of those that all have too few mappings left or too little memory of their GPU."""
        capacity, device_at = self._capacity, self._accounts.device_at
        lacking = {p: capacity.lacking(need.mappings, p, after_leaving=True) for p in places}
        enough = [p for p, mappings in lacking.items() if mappings <= 0]
        if not enough:
            return search.first_to_clear(lacking, lambda holding: (holding.place, holding.figures.mappings))
        # Each is on a GPU, or there would be room. Those of one GPU lack the same.
        of_devices = {
            id(device_at[p]): capacity.lacking_bytes(need.device_bytes, p, after_leaving=True) for p in enough
        }

        def part_of(holding: Holding) -> tuple[int | None, float]:
            device = None if holding.place is None else device_at.get(holding.place)
            return None if device is None else id(device), holding.figures.device_bytes

        device = search.first_to_clear(of_devices, part_of)
        return next(p for p in enough if id(device_at[p]) == device)

    def relief(self, now: float) -> Plan:
        """What has to go since instances have grown beyond a limit: as ``plan`` says it; ``Fits`` if none has."""
        plan = self.plan(_NOTHING, now)
        if isinstance(plan, Fits):
            for place, process in self._accounts.processes.items():
                if process.mappings > self.limits.mappings:
                    return self.plan(_NOTHING, now, places=(place,))
            for place, device in self._accounts.device_at.items():
                if device.bytes > device.limit_bytes >= device.pinned_bytes:
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
        if not self._capacity.has_room(need, file, place):
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
        place = self._capacity.first_with(holding.figures, places)
        if place is None:
            place = next((p for p in places if p == holding.place), places[0])
            self.grown |= holding.figures.device_bytes > 0
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
            or figures.device_bytes > before.device_bytes
        )
        self._accounts.remove(holding)
        holding.figures = figures
        self._accounts.add(holding)
        if holding.phase is RESIDENT:
            self._policy.resized(instance, self._capacity.share_bytes(holding))

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
        size_bytes = self._capacity.share_bytes(holding)
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

    def hold(self, instance: int, now: float) -> None:
        """A lease that lasts longer than a batch: until ``let_go`` the instance is neither evicted nor drained."""
        self.holdings[instance].held += 1
        self.lease(instance, now)

    def give_way(self, instance: int, *, yields: bool) -> None:
        """Whether an instance may be drained though it is held; those who hold it find that it goes."""
        self.holdings[instance].yields = yields

    def let_go(self, instance: int) -> None:
        """The instance may be drained again; the lease ends with ``release``, as those of batches do."""
        self.holdings[instance].held -= 1

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


def _evict(victims: Victims, missing: Shortage) -> Plan:
    return Evict(victims.idle, victims.busy) if missing.met else Wait(victims.until)

"""Step 5, which instances go first: what every eviction policy can do, and the plainest one.

Policies are pure: they are told what happens and when, and put instances into an order. What may not go at all,
pinned, leased or claimed, is the ledger's business (``placement``).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain
from types import MappingProxyType
from typing import Protocol, TypeAlias

from roost.router.cost import Cost

Owner: TypeAlias = Hashable


class EvictionPolicy(Protocol):
    """In which order instances are offered for eviction: all of a lower priority before any of a higher one."""

    def loaded(
        self, instance: int, owner: Owner, size_bytes: int, load_s: float, now: float, priority: int = 0
    ) -> None:
        """The instance is there; nobody has used it yet.

        Args:
            instance: A number that no instance had before.
            owner: Its revision.
            size_bytes: What it takes of the device, as ``Ledger`` reckons it.
            load_s: How long its load took.
            now: The time.
            priority: How important its model is.
        """

    def resized(self, instance: int, size_bytes: int) -> None:
        """It was found out that the instance takes something else than was said before."""

    def used(self, instance: int, now: float) -> None:
        """A batch begins on the instance."""

    def warm(self, instance: int, now: float) -> None:
        """A batch on the instance ended, or a request waits for it: that is recent, but not another use."""

    def forget(self, instance: int) -> None:
        """The instance is gone."""

    def forget_owner(self, owner: Owner) -> None:
        """The owner has no instances and never will have one again."""

    def coldest_first(self) -> Iterable[int]:
        """Instances in the order in which they should go; nothing may change while somebody reads it."""

    def next_due(self) -> float:
        """When to ask ``due`` next, if nothing is used before that."""

    def due(self, now: float) -> Iterable[tuple[Owner, float]]:
        """Owners without an instance that are worth loading now, and when a request for each is expected."""


class Lru:
    """Least recently used first. Uses come in the order of time, so that order alone is the timestamp's."""

    def __init__(self) -> None:
        self._orders: dict[int, OrderedDict[int, None]] = {}
        self._order_of: dict[int, OrderedDict[int, None]] = {}

    def loaded(
        self, instance: int, owner: Owner, size_bytes: int, load_s: float, now: float, priority: int = 0
    ) -> None:
        """Puts the instance at the cold end."""
        order = self._order_of[instance] = self._orders.setdefault(priority, OrderedDict())
        order[instance] = None
        order.move_to_end(instance, last=False)

    def resized(self, instance: int, size_bytes: int) -> None:
        """Sizes mean nothing here."""

    def used(self, instance: int, now: float) -> None:
        """Moves the instance to the warm end."""
        self._order_of[instance].move_to_end(instance)

    warm = used

    def forget(self, instance: int) -> None:
        """Takes the instance out."""
        order = self._order_of.pop(instance, None)
        if order is not None:
            del order[instance]

    def forget_owner(self, owner: Owner) -> None:
        """Nothing is kept of owners."""

    def coldest_first(self) -> Iterator[int]:
        """Oldest use first."""
        orders = self._orders
        return chain.from_iterable(orders[priority] for priority in sorted(orders))

    def next_due(self) -> float:
        """Never."""
        return math.inf

    def due(self, now: float) -> Iterable[tuple[Owner, float]]:
        """Nothing is loaded before it is asked for."""
        return ()


LRU = "lru"
COST = "cost"
POLICIES: MappingProxyType[str, Callable[[], EvictionPolicy]] = MappingProxyType({LRU: Lru, COST: Cost})
"""What ``--eviction`` chooses from."""

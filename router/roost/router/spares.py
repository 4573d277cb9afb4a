"""Step 5: second copies for what is in constant use, while memory is plenty (``steady`` says what that is)."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Iterable, Sequence
from typing import cast

from roost.router import spread
from roost.router.placement import Ledger
from roost.router.revision import Instance, Revision
from roost.router.spread import Unplaceable
from roost.router.states import READY
from roost.router.steady import MINUTE_S, Steady
from roost.router.worker import Worker

MOST = 100
"""There are no more spare copies than this: those of what is used most."""

SHARE = 0.05
"""So much of the budget they may take all together."""

PLENTY = 0.75
"""New ones are only made while no more than this share of the budget is taken."""

SCARCE = 0.9
"""Beyond this share those that there are are given up."""

_SLICE = 128


class Spares:
    """See the module.

    Args:
        workers: All workers of the device.
        ledger: Its budget.

    Attributes:
        revisions: What is worth a second copy now.
    """

    def __init__(self, workers: Sequence[Worker], ledger: Ledger) -> None:
        self._workers = workers
        self._ledger = ledger
        self._steady = Steady()
        self._next = -math.inf
        self.revisions: frozenset[Revision] = frozenset()

    def least(self, revision: Revision) -> int:
        """How many copies there should be of a revision for this reason."""
        return 2 if revision in self.revisions and self._taken() < SCARCE else 0

    async def look(self, now: float) -> None:
        """Looks once a minute what was used; in slices, since there may be very many instances."""
        if now < self._next or len(self._workers) < 2:
            return
        self._next = now + MINUTE_S
        used: dict[Revision, Instance] = {}
        for worker in self._workers:
            instances = list(worker.instances.values())
            for start in range(0, len(instances), _SLICE):
                for instance in instances[start : start + _SLICE]:
                    if self._was_used(instance, now - MINUTE_S):
                        used[instance.revision] = instance
                await asyncio.sleep(0)
        steady = [used[cast(Revision, owner)] for owner in self._steady.look(used)]
        self.revisions = frozenset(self._affordable(steady))

    def _was_used(self, instance: Instance, since: float) -> bool:
        holding = self._ledger.holdings.get(instance.id)
        return instance.state is READY and holding is not None and holding.last_used >= since

    def _affordable(self, steady: Iterable[Instance]) -> Iterable[Revision]:
        """Those that are used most, as far as there is memory for them; what has its copy already goes on having it."""
        left_bytes = SHARE * self._ledger.limits.private_bytes
        plenty = self._taken() <= PLENTY
        for instance in heapq.nlargest(MOST, filter(self._may_have_two, steady), key=_requests):
            revision = instance.revision
            left_bytes -= self._ledger.holdings[instance.id].figures.private_bytes
            if left_bytes < 0:
                return
            if plenty or revision in self.revisions:
                yield revision

    def _may_have_two(self, instance: Instance) -> bool:
        most = instance.revision.description.policy.max_copies
        if instance.id not in self._ledger.holdings or instance.revision.retired or (most is not None and most < 2):
            return False
        try:
            return len(spread.suitable(self._workers, instance.revision)) > 1
        except Unplaceable:
            return False

    def _taken(self) -> float:
        """The share of the budget that is taken."""
        return self._ledger.used_bytes / max(1, self._ledger.limits.private_bytes)


def _requests(instance: Instance) -> int:
    counters = instance.revision.counters
    return counters.ok if counters is not None else 0

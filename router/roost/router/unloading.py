"""Step 5 of the data path: instances go, for others that need their memory, for a newer revision, or with a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from roost.router.instances import unload
from roost.router.placement import Ledger
from roost.router.revision import Instance, Revision
from roost.router.states import InstanceEvent, InstanceState
from roost.router.stats import Stats
from roost.router.worker import Worker

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Unloader:
    """See the module.

    Attributes:
        ledger: The device's budget.
        workers: All workers of the device.
        stats: Counts evictions.
        start: Starts a task of an unload.
        freed: Called when memory is free again.
        left: Called for a revision that has an instance less.
    """

    ledger: Ledger
    workers: Sequence[Worker]
    stats: Stats
    start: Callable[[Coroutine[Any, Any, None]], object]
    freed: Callable[[], None]
    left: Callable[[Revision], None]

    def make_room(self, idle: Sequence[int], busy: Sequence[int]) -> None:
        """Takes out idle instances, and has busy ones go after their last batch, since others need their memory."""
        for number in (*idle, *busy):
            instance = next(w.instances[number] for w in self.workers if number in w.instances)
            key = instance.revision.key
            self.stats.of(key.name, key.version).evictions += 1
            log.debug("%s %s: others need its memory more", "draining" if instance.leases else "evicting", key)
            self._evict_or_drain(instance)

    def evict_idle(self, numbers: Sequence[int]) -> None:
        """Takes out instances that nobody leases, for something else than a load."""
        self.make_room(numbers, ())

    def evict(self, instance: Instance) -> None:
        """Takes out an instance that nobody leases."""
        instance.advance(InstanceEvent.EVICT)
        self.ledger.leaving(instance.id)
        self.start(self._unload(instance))

    def drop_copy(self, instance: Instance) -> None:
        """Takes out one instance: at once if nobody leases it, else it gets no more batches and goes after its last."""
        if instance.state is InstanceState.READY:
            self._evict_or_drain(instance)

    def retire_copy(self, key: str) -> None:
        """A prepared copy is damaged: what was loaded from it takes no more batches and goes after its last one."""
        for worker in self.workers:
            for instance in list(worker.instances.values()):
                if instance.copy is not None and instance.copy.key == key:
                    self.drop_copy(instance)

    def worker_went(self, worker: Worker) -> None:
        """A worker takes nothing any more; its memory stays accounted until ``worker_reaped``."""
        for instance in worker.instances.values():
            instance.advance(InstanceEvent.WORKER_LOST)
            self.ledger.leaving(instance.id)
            if instance in instance.revision.instances:
                self._take_out(instance)

    def worker_reaped(self, worker: Worker) -> None:
        """A worker's process has ended: its memory is free."""
        for instance in worker.instances.values():
            self.ledger.gone(instance.id)
        worker.instances.clear()
        self.freed()

    def drop(self, instance: Instance, event: InstanceEvent) -> None:
        """The instance is no more, and its memory is free; if its worker is lost, that is found out at its end."""
        if instance.state is InstanceState.GONE:
            return
        instance.advance(event)
        del instance.worker.instances[instance.id]
        self._take_out(instance)
        self.ledger.gone(instance.id)
        self.freed()

    def _evict_or_drain(self, instance: Instance) -> None:
        if instance.leases:
            instance.advance(InstanceEvent.DRAIN)
            self.ledger.leaving(instance.id)
            if instance.revision.sequences is not None:
                instance.revision.sequences.gone(instance)  # the next copy knows nothing of them
        else:
            self.evict(instance)

    async def _unload(self, instance: Instance) -> None:
        if await unload(instance):
            self.drop(instance, InstanceEvent.UNLOADED)

    def _take_out(self, instance: Instance) -> None:
        instance.revision.instances.remove(instance)
        instance.revision.cool()
        self.left(instance.revision)

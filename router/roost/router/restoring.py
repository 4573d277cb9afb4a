"""Loads again what was resident on a lost worker, without waiting for requests: what was used last comes first.

What requests ask for meanwhile goes before it, and nothing that was used later is evicted for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from roost.core.errors import ResourceExhausted, RoostError
from roost.router.loading import Loader
from roost.router.loads import LoadPriority
from roost.router.placement import Ledger
from roost.router.revision import Revision
from roost.router.states import InstanceState
from roost.router.worker import Worker

log = logging.getLogger(__name__)

AT_ONCE = 2
MISFITS = 32
"""After so many models in a row that do not fit any more, no more are looked at."""


class Resident(NamedTuple):
    """A model that a worker had when it was lost."""

    pinned: bool
    last_used: float
    revision: Revision


@dataclass(eq=False)
class Restoring:
    """See the module.

    Attributes:
        loader: Loads.
        ledger: Knows what was used when.
        group: Owns the tasks.
    """

    loader: Loader
    ledger: Ledger
    group: asyncio.TaskGroup
    _line: list[Resident] = field(default_factory=list)  # the next one is the last of the list
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _began: float = 0.0
    _restored: int = 0
    _misfits: int = 0

    def residents(self, worker: Worker) -> list[Resident]:
        """What a worker has that was used, or is pinned."""
        found = []
        for instance in worker.instances.values():
            if instance.state is InstanceState.READY:
                pinned = instance.revision.description.policy.pin
                last_used = self.ledger.holdings[instance.id].last_used
                if pinned or last_used > -math.inf:
                    found.append(Resident(pinned, last_used, instance.revision))
        return found

    def add(self, residents: Iterable[Resident]) -> None:
        """These are to come back once a worker is up."""
        self._line += residents
        self._line.sort(key=lambda resident: resident[:2])

    def begin(self) -> None:
        """A worker is up."""
        if self._line and not self._tasks:
            self._began, self._restored, self._misfits = time.monotonic(), 0, 0
        for _ in range(min(len(self._line), AT_ONCE) - len(self._tasks)):
            task = self.group.create_task(self._restore())
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def stop(self) -> None:
        """Nothing comes back any more."""
        self._line.clear()
        for task in self._tasks:
            task.cancel()

    async def _restore(self) -> None:
        """Loads one after another; whatever fails is loaded when it is asked for."""
        while self._line:
            resident = self._line.pop()
            try:
                await self._bring(resident)
            except Exception:
                log.exception("%s could not be loaded again", resident.revision.key)

    async def _bring(self, resident: Resident) -> None:
        revision = resident.revision
        if revision.retired or revision.in_use():
            return
        older_than = math.inf if resident.pinned else resident.last_used
        try:
            await self.loader.bring(revision, claim=False, priority=LoadPriority.PRELOAD, older_than=older_than)
        except ResourceExhausted:  # others have its memory now
            self._misfits += 1
            if self._misfits >= MISFITS:
                self._line.clear()
        except RoostError as error:
            log.debug("%s was not loaded again: %s", revision.key, error)
        else:
            self._misfits = 0
            self._restored += 1
            self.ledger.used_before(revision, resident.last_used)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks and self._restored:
            took_s = time.monotonic() - self._began
            log.info("loaded %d models again that a lost worker had had, in %.2f s", self._restored, took_s)

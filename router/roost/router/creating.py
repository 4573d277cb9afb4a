"""Step 5 of the data path: the way of one load through its files, its memory and its turn to a worker."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from roost.core.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted, RoostError, Unavailable
from roost.core.figures import Figures
from roost.core.tensors import Signature
from roost.core.units import format_bytes
from roost.registry_client.model_config import effective_signature
from roost.router.catalog import Catalog
from roost.router.devices import Devices
from roost.router.failures import failure_error
from roost.router.instances import LoadTimedOut, NoWorkerCame, WorkerEnded, WorkerLost, create, discard
from roost.router.learned import Measured
from roost.router.loads import Load
from roost.router.placement import Ledger
from roost.router.prepared import CopySource, NoCopies
from roost.router.revision import Instance, Revision
from roost.router.room import Need, Room
from roost.router.sizes import file_of, size_of
from roost.router.spread import Unplaceable, ranked
from roost.router.states import InstanceEvent
from roost.router.stats import Stats
from roost.router.worker import Worker
from roost.runtimes.prepared.cache import Copy

log = logging.getLogger(__name__)

_FILES_KNOWN_S = 0.05
"""The request that wants the load may have had its model's files looked at just before."""

MOST_LOSSES = 3
"""After so many losses of its worker in a row a load is given up; what is to blame for all of them is in quarantine."""

_WORKER_ERRORS = (Internal, ResourceExhausted)
"""What another worker may do better."""


Weigh: TypeAlias = Callable[[Instance, Callable[[], Awaitable[Signature]]], Awaitable[Signature]]


async def _without_weighing(instance: Instance, load: Callable[[], Awaitable[Signature]]) -> Signature:
    return await load()


class _TooLarge(ResourceExhausted):
    """It is loaded, and can't stay."""


@dataclass(eq=False)
class Creator:
    """See the module.

    Attributes:
        ledger: The device's budget.
        workers: All workers of the device.
        catalog: Knows the files and hears how loads went.
        stats: Counts loads.
        room: Where loads wait for memory and for their turn.
        timeout_s: After so long a load is given up, unless its model says otherwise.
        drop: Takes an instance out of the books that came to nothing.
        copies: Where prepared copies are.
        held: Has the workers of a kind running as long as the block lasts.
        check: Raises why a revision could not be run, if so.
        devices: Says what goes to a GPU.
        weigh: Has an instance loaded and notes what it takes of a GPU.
    """

    ledger: Ledger
    workers: Sequence[Worker]
    catalog: Catalog
    stats: Stats
    room: Room
    timeout_s: float
    drop: Callable[[Instance, InstanceEvent], None]
    copies: CopySource = field(default_factory=NoCopies)
    held: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
    check: Callable[[Revision], None] = lambda _: None
    devices: Devices = field(default_factory=lambda: Devices((), ()))
    weigh: Weigh = _without_weighing
    _worker_came: asyncio.Event = field(default_factory=asyncio.Event)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _given_up: set[Revision] = field(default_factory=set)

    async def run(self, load: Load) -> None:
        """Loads, from a prepared copy if there is one that works.

        Raises:
            RoostError: If it can't be.
        """
        revision = load.revision
        self.check(revision)
        await self.catalog.prepare(revision, unless_within_s=_FILES_KNOWN_S)
        while self.devices.choose(revision):
            with self.held(revision.kind):
                if await self._gpu_ready(revision):
                    return await self._from_files(load)
        with self.held(revision.kind):
            copy = await self.copies.find(revision)
            if copy is None or not await self._from_copy(load, copy):
                await self._from_files(load)

    async def _gpu_ready(self, revision: Revision) -> bool:
        """Waits until it is known whether a revision can be loaded on a GPU; returns whether it can."""
        timeout_s = self._timeout_s(revision)
        try:
            async with asyncio.timeout(timeout_s):
                if not await self.devices.ready(revision, self._worker_came.wait):
                    return False
        except TimeoutError:
            raise Unavailable(f"no worker on a GPU was up within {timeout_s:g} s, see the log") from None
        await self.catalog.recall_gpu_size(revision)
        return True

    async def _from_files(self, load: Load) -> None:
        revision = load.revision
        losses = 0
        while True:
            failures = len(load.failed_on)
            try:
                return await self._once(load)
            except WorkerLost:
                losses += 1
                if losses == MOST_LOSSES:
                    raise
                log.warning("the worker that loaded %s was lost: it is tried again", revision.key)
            except _WORKER_ERRORS as error:
                if len(load.failed_on) == failures or not self._places(load):
                    raise
                log.warning("%s is tried on another worker: %s", revision.key, error.message)

    def worker_came(self) -> None:
        """A worker is up, or has ended."""
        self._worker_came.set()
        self._worker_came.clear()  # those that wait have been woken

    def forget(self, revision: Revision) -> None:
        """The revision will have no instance any more."""
        self._given_up.discard(revision)

    async def _from_copy(self, load: Load, copy: Copy) -> bool:
        """Loads a prepared copy; False if the model itself has to be."""
        revision = load.revision
        try:
            await self._despite_a_loss(load, copy)
            return True
        except (ResourceExhausted, Cancelled, LoadTimedOut):
            raise
        except WorkerLost as lost:
            if await lost.suspects():
                self.copies.failed(revision, copy, lost=True)
        except WorkerEnded:
            raise
        except RoostError:
            if revision.failure is not None and revision.failure.final:  # it came into quarantine meanwhile
                raise
            self.copies.failed(revision, copy, lost=False)
        return False

    async def _despite_a_loss(self, load: Load, copy: Copy) -> None:
        """Loads a prepared copy, once more if the worker was lost and the copy can't be the reason."""
        try:
            return await self._once(load, copy)
        except WorkerLost as lost:
            if await lost.suspects():
                raise
        log.warning("the worker that loaded %s was lost: it is tried once more", load.revision.key)
        await self._once(load, copy)

    async def _once(self, load: Load, copy: Copy | None = None) -> None:
        revision = load.revision
        await self._workers_up(load)  # or it would keep memory and a turn while there is none
        number = next(self._ids)
        figures = size_of(revision, copy).loading
        need = Need(figures, file_of(revision, copy), partial(self._places, load))
        await self.room.reserve(number, load, need)
        instance: Instance | None = None
        try:
            worker = await self._choose_worker(load, number)
            if revision.retired and not revision.wanted():
                raise Cancelled("the revision was given up before its load began")
            if revision.failure is not None and revision.failure.final:
                raise failure_error(revision, revision.failure, time.monotonic())
            instance = Instance(number, revision, worker, figures, copy=copy)
            learned = await self._fill(load, instance)
        finally:
            if instance is None:
                self.ledger.gone(number)
            self.room.ended(load)
        await self.catalog.remember(revision, learned)

    async def _workers_up(self, load: Load) -> list[Worker]:
        if workers := self._ranked(load):
            return workers
        timeout_s = self._timeout_s(load.revision)
        try:
            async with asyncio.timeout(timeout_s):
                while not (workers := self._ranked(load)):
                    await self._worker_came.wait()
        except TimeoutError:
            raise NoWorkerCame(f"no worker that may load it was up within {timeout_s:g} s, see the log") from None
        return workers

    def _ranked(self, load: Load) -> list[Worker]:
        """Where it may be loaded, the best place first."""
        places = ranked(self.workers, load.revision)
        return [worker for worker in places if (worker.id, worker.epoch) not in load.failed_on]

    async def _choose_worker(self, load: Load, number: int) -> Worker:
        """Where an instance that has its memory reserved is created: the best place whose process may map as much."""
        workers = await self._workers_up(load)
        planned = self.ledger.holdings[number].place  # goes first, as its reservation counts against it by now
        workers.sort(key=lambda worker: worker.id != planned)
        place = self.ledger.assign(number, [worker.id for worker in workers])
        return next(worker for worker in workers if worker.id == place)

    def _places(self, load: Load) -> list[int]:
        try:
            return [worker.id for worker in self._ranked(load)]
        except Unplaceable:  # by a configuration that came meanwhile; the load's task finds that out
            return []

    async def _fill(self, load: Load, instance: Instance) -> Signature:
        """Has the worker create an instance that has its memory reserved; returns what the model says of itself."""
        revision = instance.revision
        instance.worker.instances[instance.id] = instance
        revision.instances.append(instance)
        started = time.monotonic()
        try:
            signature = await self.weigh(instance, partial(self._create, load, instance))
            revision.describe(effective_signature(revision.description, signature))
            if instance.own_bytes:
                await self._weigh(instance)
        except WorkerEnded:
            raise
        except (InvalidArgument, _TooLarge):
            if await discard(instance):
                self.drop(instance, InstanceEvent.FAILED)
            raise
        except BaseException:
            self.drop(instance, InstanceEvent.FAILED)
            raise
        instance.figures = size_of(revision, instance.copy).loaded
        self.ledger.resized(instance.id, instance.figures)
        self._finish(load, instance, time.monotonic() - started)
        return signature

    async def _weigh(self, instance: Instance) -> None:
        """Notes what an instance takes whose own processes say so; one that is too large is not kept.

        Raises:
            ResourceExhausted: If it takes more than the budget. Its next load is refused before it begins.
        """
        revision, limit_bytes = instance.revision, self.ledger.limits.private_bytes
        revision.measured = _with_own(revision.measured, instance.own_bytes)
        await self.catalog.remember_size(revision)
        if instance.own_bytes > limit_bytes:
            raise _TooLarge(
                f"model '{revision.key.name}' version {revision.key.version} takes {format_bytes(instance.own_bytes)}, "
                f"more than the {format_bytes(limit_bytes)} that the memory budget has for it"
            )

    async def _create(self, load: Load, instance: Instance) -> Signature:
        revision = load.revision
        timeout_s = self._timeout_s(revision)
        # Given up twice in a row, a load that takes longer than anybody waits would never come to its end.
        may_be_given_up = revision not in self._given_up or revision.retired
        try:
            signature = await create(instance, load, timeout_s, may_be_given_up=may_be_given_up)
        except Cancelled:
            self._given_up.add(revision)
            raise
        except _WORKER_ERRORS:
            if instance.copy is None:  # else the model itself is tried there
                load.failed_on.add((instance.worker.id, instance.worker.epoch))
            raise
        self._given_up.discard(revision)
        return signature

    def _timeout_s(self, revision: Revision) -> float:
        return revision.description.policy.load_timeout_s or self.timeout_s

    def _finish(self, load: Load, instance: Instance, load_s: float) -> None:
        revision, now = instance.revision, time.monotonic()
        instance.advance(InstanceEvent.LOADED)
        self.ledger.loaded(instance.id, now, load_s=load_s)
        if load.asked_at > -math.inf:
            self.ledger.used_before(revision, load.asked_at)
        self.room.forecast.took(load_s)
        self.stats.loaded(revision.key.name, revision.key.version, load_s, now)
        if revision.failure is None or not revision.failure.final:  # one in quarantine stays there
            revision.failure = None
            self.catalog.loaded(revision)
            if not revision.on_gpu:  # copies are for the CPU
                self.copies.loaded(revision, load_s, instance.copy)
        log.debug(
            "loaded %s on worker %d in %.0f ms (%s accounted)",
            revision.key,
            instance.worker.id,
            load_s * 1e3,
            format_bytes(instance.figures.private_bytes),
        )
        self.room.changed()  # it may be what another load has to wait for


def _with_own(known: Measured | None, own_bytes: int) -> Measured:
    """What is known of an instance whose own processes took so much just now; it may have taken more before."""
    most_bytes = max(own_bytes, known.figures.private_bytes if known is not None else 0)
    return Measured(Figures(most_bytes), 0.0, most_bytes)

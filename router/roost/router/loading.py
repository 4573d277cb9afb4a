"""Step 5 of the data path: instances come and go; loads are single-flight per revision."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from roost.core.errors import (
    Cancelled,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    Limit,
    NotFound,
    ResourceExhausted,
    RoostError,
    Unavailable,
)
from roost.core.tensors import Signature
from roost.core.units import format_bytes
from roost.registry_client.model_config import effective_signature
from roost.router.catalog import Catalog
from roost.router.failures import Fault, LoadFailure, next_failure
from roost.router.instances import WorkerEnded, WorkerLost, create, discard, unload
from roost.router.placement import Ledger
from roost.router.prepared import CopySource, NoCopies, copy_bytes
from roost.router.revision import Instance, Revision
from roost.router.room import Room
from roost.router.states import InstanceEvent, InstanceState
from roost.router.stats import Stats
from roost.router.worker import Worker
from roost.runtimes.prepared.cache import Copy

log = logging.getLogger(__name__)

FILES_LOOKED_AT_EVERY_S = 1.0
_ARTIFACT_ERRORS = (InvalidArgument, NotFound, FailedPrecondition)


class Loader:
    """Brings instances into memory and takes them out, within the ledger's budget.

    Args:
        ledger: The device's budget.
        workers: All workers of the device.
        catalog: Knows the files and hears how loads went.
        stats: Counts loads and evictions.
        group: Owns the tasks of loads and unloads.
        timeout_s: After so long a load is given up and its worker ended.
        concurrency: How many instances are created at once.
        on_outcome: Called after each load with the revision and its error, if any.
    """

    def __init__(
        self,
        ledger: Ledger,
        workers: Sequence[Worker],
        catalog: Catalog,
        stats: Stats,
        group: asyncio.TaskGroup,
        *,
        timeout_s: float,
        concurrency: int,
        on_outcome: Callable[[Revision, RoostError | None], None],
    ) -> None:
        self._ledger = ledger
        self._workers = workers
        self._catalog = catalog
        self._stats = stats
        self._group = group
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(concurrency)
        self._on_outcome = on_outcome
        self._ids = itertools.count(1)
        self.room = Room(ledger, self._make_room)
        self._worker_up = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.copies: CopySource = NoCopies()
        """Where prepared copies are."""

    async def bring(self, revision: Revision, *, claim: bool = True, older_than: float = math.inf) -> None:
        """Waits until the revision has an instance; the load goes on if the caller goes away.

        Args:
            revision: What to load.
            claim: Whether this counts as a use and protects the instance meanwhile.
            older_than: Only instances last used before this may be evicted for it.

        Raises:
            Unavailable: If it can't be loaded, with the reason.
            ResourceExhausted: If there is no memory for it.
        """
        await self.check(revision)
        if revision.resident():
            return
        revision.waiters += 1
        if claim:
            self._ledger.claim(revision, time.monotonic())
        try:
            error = await asyncio.shield(self.ensure(revision, older_than=older_than))
            while isinstance(error, Cancelled):  # a load that nobody wanted any more, just before this call came
                error = await asyncio.shield(self.ensure(revision, older_than=older_than))
        finally:
            revision.waiters -= 1
            if (claim and self._ledger.unclaim(revision)) or not revision.wanted():
                self.room.changed()
            self.sweep(revision)
        if error is not None:
            try:
                raise error.with_traceback(None)  # all who wait for the load raise the same one
            finally:
                del error  # which refers to this frame

    def ensure(self, revision: Revision, *, older_than: float = math.inf) -> asyncio.Future[RoostError | None]:
        """Starts a load unless one is under way; the future's result is its error, None if it went well."""
        if revision.load is not None:
            if older_than == math.inf:
                self.room.hurry(revision)
            return revision.load
        load = revision.load = asyncio.get_running_loop().create_future()
        if self._stopped:
            self._settle(revision, load, _stopping())
            return load
        if older_than < math.inf:
            self.room.spare(revision, older_than)
        task = self._start(self._load(revision, load))
        task.add_done_callback(lambda _: self._settle(revision, load, _stopping()))  # if cancelled before it began
        return load

    def stop(self) -> None:
        """Gives up all loads and unloads; the workers end next."""
        self._stopped = True
        self.room.stop()
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def check(self, revision: Revision) -> None:
        """Answers at once for a revision whose load failed lately, unless its files have changed since.

        Raises:
            Unavailable: With the reason of the failure.
        """
        failure, now = revision.failure, time.monotonic()
        if failure is None or not failure.blocks(now):
            return
        if now - revision.failure_checked > FILES_LOOKED_AT_EVERY_S:
            revision.failure_checked = now
            if await self._catalog.changed(revision):
                revision.failure, revision.crashes = None, 0
                return
        raise failure_error(revision, failure, now)

    def evict(self, instance: Instance) -> None:
        """Takes out an instance that nobody leases."""
        instance.advance(InstanceEvent.EVICT)
        self._ledger.leaving(instance.id)
        self._start(self._unload(instance))

    def evict_idle(self, numbers: Sequence[int]) -> None:
        """Takes out instances that nobody leases, for something else than a load."""
        self._make_room(numbers, ())

    def retire_copy(self, key: str) -> None:
        """A prepared copy is damaged: what was loaded from it takes no more batches and goes after its last one."""
        for worker in self._workers:
            for instance in list(worker.instances.values()):
                if instance.copy is None or instance.copy.key != key or instance.state is not InstanceState.READY:
                    continue
                if not instance.leases:
                    self.evict(instance)
                else:
                    instance.advance(InstanceEvent.DRAIN)
                    self._ledger.leaving(instance.id)

    def sweep(self, revision: Revision) -> None:
        """Takes out what a retired revision still has, as soon as nobody needs it."""
        if revision.retired and not revision.wanted():
            for instance in list(revision.instances):
                if instance.state is InstanceState.READY and not instance.leases:
                    self.evict(instance)
            self._let_go(revision)

    def _let_go(self, revision: Revision) -> None:
        """Nothing of a retired revision is left, or will be: its files may go."""
        if revision.retired and not (revision.instances or revision.load is not None or revision.wanted()):
            self._catalog.brought.released(revision)
            self._ledger.forget(revision)

    def worker_came(self) -> None:
        """A worker is up."""
        self._worker_up.set()

    def worker_went(self, worker: Worker) -> None:
        """A worker takes nothing any more; its memory stays accounted until ``worker_reaped``."""
        if not any(w.up for w in self._workers):
            self._worker_up.clear()
        for instance in worker.instances.values():
            instance.advance(InstanceEvent.WORKER_LOST)
            self._ledger.leaving(instance.id)
            if instance in instance.revision.instances:
                self._take_out(instance)

    def worker_reaped(self, worker: Worker) -> None:
        """A worker's process has ended: its memory is free."""
        for instance in worker.instances.values():
            self._ledger.gone(instance.id)
        worker.instances.clear()
        self.room.changed()

    def _make_room(self, idle: Sequence[int], busy: Sequence[int]) -> None:
        for number in (*idle, *busy):
            instance = next(w.instances[number] for w in self._workers if number in w.instances)
            key = instance.revision.key
            self._stats.of(key.name, key.version).evictions += 1
            if not instance.leases:
                log.debug("evicting %s: others need its memory more", key)
                self.evict(instance)
            else:
                log.debug("draining %s: others wait for its memory", key)
                instance.advance(InstanceEvent.DRAIN)
                self._ledger.leaving(number)

    async def _load(self, revision: Revision, load: asyncio.Future[RoostError | None]) -> None:
        """The task of one load: whatever happens is that load's outcome and no other's."""
        error: RoostError | None = _stopping()
        try:
            await self._load_with_retry(revision)
            error = None
        except RoostError as failed:
            error = self._remember(revision, failed)
        except Exception:
            log.exception("loading %s failed", revision.key)
            error = self._remember(revision, Internal("an unexpected error, see the server's log"))
        finally:
            self._settle(revision, load, error)

    def _settle(self, revision: Revision, load: asyncio.Future[RoostError | None], error: RoostError | None) -> None:
        """Ends a load with its outcome, the first time it is called for it."""
        if load.done():
            return
        revision.load = None
        self.room.hurry(revision)
        load.set_result(error)
        self._on_outcome(revision, error)
        self._let_go(revision)

    async def _load_with_retry(self, revision: Revision) -> None:
        await self._catalog.prepare(revision)
        copy = await self.copies.find(revision)
        if copy is not None and await self._load_copy(revision, copy):
            return
        try:
            await self._load_once(revision)
        except WorkerLost:
            log.warning("the worker that loaded %s was lost: it is tried once more", revision.key)
            await self._load_once(revision)

    async def _load_copy(self, revision: Revision, copy: Copy) -> bool:
        """Loads a prepared copy; False if the model itself has to be."""
        try:
            await self._load_once(revision, copy)
            return True
        except (ResourceExhausted, Cancelled):
            raise
        except WorkerLost:
            self.copies.failed(revision, copy, lost=True)
        except WorkerEnded:
            raise
        except RoostError:
            if revision.failure is not None and revision.failure.final:  # it came into quarantine meanwhile
                raise
            self.copies.failed(revision, copy, lost=False)
        return False

    async def _load_once(self, revision: Revision, copy: Copy | None = None) -> None:
        await self._worker_up.wait()
        number = next(self._ids)
        size_bytes = revision.size_bytes() if copy is None else copy_bytes(revision, copy)
        await self.room.reserve(number, revision, size_bytes)
        instance: Instance | None = None
        try:
            async with self._slots:
                worker = await self._choose_worker()
                if revision.retired and not revision.wanted():
                    raise Cancelled("the revision was given up before its load began")
                if revision.failure is not None and revision.failure.final:
                    raise failure_error(revision, revision.failure, time.monotonic())
                instance = Instance(number, revision, worker, size_bytes, copy=copy)
                learned = await self._fill(instance)
        finally:
            if instance is None:
                self._ledger.gone(number)
                self.room.changed()
        await self._catalog.remember(revision, learned)

    async def _choose_worker(self) -> Worker:
        """The worker with the least in it."""
        while not any(w.up for w in self._workers):  # it may be gone again when this task gets its turn
            await self._worker_up.wait()
        return min((w for w in self._workers if w.up), key=lambda w: (w.accounted_bytes(), w.id))

    async def _fill(self, instance: Instance) -> Signature:
        """Has the worker create an instance that has its memory reserved; returns what the model says of itself."""
        revision = instance.revision
        instance.worker.instances[instance.id] = instance
        revision.instances.append(instance)
        started = time.monotonic()
        try:
            signature = await create(instance, self._timeout_s)
            revision.describe(effective_signature(revision.description, signature))
        except WorkerEnded:
            raise
        except InvalidArgument:
            if await discard(instance):
                self._drop(instance, InstanceEvent.FAILED)
            raise
        except BaseException:
            self._drop(instance, InstanceEvent.FAILED)
            raise
        self._finish(instance, time.monotonic() - started)
        return signature

    def _finish(self, instance: Instance, load_s: float) -> None:
        revision = instance.revision
        instance.advance(InstanceEvent.LOADED)
        self._ledger.loaded(instance.id, time.monotonic(), load_s=load_s)
        self._stats.loaded(revision.key.name, revision.key.version, load_s)
        if revision.failure is None or not revision.failure.final:  # one in quarantine stays there
            revision.failure = None
            self._catalog.loaded(revision)
            self.copies.loaded(revision, load_s, instance.copy)
        log.debug(
            "loaded %s on worker %d in %.0f ms (%s accounted)",
            revision.key,
            instance.worker.id,
            load_s * 1e3,
            format_bytes(instance.bytes),
        )
        self.room.changed()  # it may be what another load has to wait for

    def _remember(self, revision: Revision, error: RoostError) -> RoostError:
        """Keeps a failure and says what the callers are told; want of memory is nobody's fault and is not kept."""
        if isinstance(error, ResourceExhausted | Cancelled):
            return error
        fault = Fault.ARTIFACT if isinstance(error, _ARTIFACT_ERRORS) else Fault.WORKER
        now = time.monotonic()
        if revision.failure is not None and revision.failure.final:
            return failure_error(revision, revision.failure, now)  # not replaced by one that passes
        failure = revision.failure = next_failure(revision.failure, error.message, fault, now)
        revision.failure_checked = now
        self._stats.of(revision.key.name, revision.key.version).load_failures += 1
        self._catalog.failed(revision, failure.reason)
        # What was replaced may have lost its files, and its requests go to what took its place.
        log.log(
            logging.DEBUG if revision.retired else logging.ERROR, "loading %s failed: %s", revision.key, failure.reason
        )
        return failure_error(revision, failure, now)

    async def _unload(self, instance: Instance) -> None:
        if await unload(instance):
            self._drop(instance, InstanceEvent.UNLOADED)

    def _drop(self, instance: Instance, event: InstanceEvent) -> None:
        """The instance is no more, and its memory is free; if its worker is lost, that is found out at its end."""
        if instance.state is InstanceState.GONE:
            return
        instance.advance(event)
        del instance.worker.instances[instance.id]
        self._take_out(instance)
        self._ledger.gone(instance.id)
        self.room.changed()

    def _take_out(self, instance: Instance) -> None:
        instance.revision.instances.remove(instance)
        instance.revision.cool()
        self._let_go(instance.revision)


def failure_error(revision: Revision, failure: LoadFailure, now: float) -> Unavailable:
    """What a client is told about a revision that can't be loaded."""
    retry_after_s = None if failure.until == math.inf else max(0.0, failure.until - now)
    name, version = revision.key.name, revision.key.version
    return Unavailable(
        f"model '{name}' version {version} is not at ready state: {failure.reason}", retry_after_s=retry_after_s
    )


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", retry_after_s=1.0, limit=Limit.DRAINING)

"""Step 5 of the data path: instances come and go; loads are single-flight per revision."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from roost.core.errors import Cancelled, Internal, Limit, ResourceExhausted, RoostError, Unavailable
from roost.router.catalog import Catalog
from roost.router.creating import Creator
from roost.router.load_failures import LoadFailures
from roost.router.loads import Load, LoadPriority, Outcome
from roost.router.placement import Ledger
from roost.router.prepared import CopySource
from roost.router.refusals import nobody_waits
from roost.router.revision import Revision
from roost.router.room import Room
from roost.router.states import InstanceState
from roost.router.stats import Stats
from roost.router.unloading import Unloader
from roost.router.worker import Worker

log = logging.getLogger(__name__)


class Loader:
    """Brings instances into memory and takes them out, within the ledger's budget.

    Args:
        ledger: The device's budget.
        workers: All workers of the device.
        catalog: Knows the files and hears how loads went.
        stats: Counts loads and evictions.
        group: Owns the tasks of loads and unloads.
        timeout_s: After so long a load is given up, unless its model says otherwise.
        concurrency: How many instances are created at once.
        on_outcome: Called after each load with the revision and its error, if any.
        on_late: Called for a revision whose load is expected to be over at that time, with what those in its queue are
            told who can't wait so long; returns whether there were any.
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
        on_late: Callable[[Revision, float, RoostError], bool],
    ) -> None:
        self._ledger = ledger
        for worker in workers:
            worker.account = ledger.account_of(worker.id)
        self._catalog = catalog
        self._stats = stats
        self._group = group
        self._on_outcome = on_outcome
        self._on_late = on_late
        unloader = Unloader(ledger, workers, stats, self._start, lambda: self.room.changed(), self._let_go)
        self.room = Room(ledger, unloader.make_room, turns=concurrency, delayed=self._refuse_late)
        self.creator = Creator(ledger, workers, catalog, stats, self.room, timeout_s, unloader.drop)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._failures = LoadFailures(catalog, stats)
        self.check = self._failures.check
        self.evict, self.evict_idle, self.drop_copy = unloader.evict, unloader.evict_idle, unloader.drop_copy
        self.retire_copy = unloader.retire_copy
        self.worker_went, self.worker_reaped = unloader.worker_went, unloader.worker_reaped
        self.when_gone: Callable[[Revision], None] = lambda _: None
        """Told of each retired revision that nothing is left of."""

    @property
    def copies(self) -> CopySource:
        """Where prepared copies are."""
        return self.creator.copies

    @copies.setter
    def copies(self, copies: CopySource) -> None:
        self.creator.copies = copies

    async def bring(
        self,
        revision: Revision,
        *,
        claim: bool = True,
        priority: LoadPriority | None = None,
        older_than: float = math.inf,
        deadline: float = math.inf,
    ) -> None:
        """Waits until the revision has an instance; the load goes on if the caller goes away.

        Args:
            revision: What to load.
            claim: Whether this counts as a use and protects the instance meanwhile.
            priority: How urgent it is; by default that of a request if it counts as a use, else that of a look.
            older_than: Only instances last used before this may be evicted for it.
            deadline: When the instance is of no use any more; that it has come is for the caller to see.

        Raises:
            Unavailable: If it can't be loaded, with the reason.
            ResourceExhausted: If there is no memory for it, or it is expected to take longer than until the deadline.
        """
        await self.check(revision)
        if revision.resident():
            return
        if priority is None:
            priority = LoadPriority.REQUEST if claim else LoadPriority.LOOK
        revision.waiters += 1
        if claim:
            self._ledger.claim(revision, time.monotonic())
        try:
            error = await self._join(revision, priority, older_than, deadline)
            while isinstance(error, Cancelled):  # a load that nobody wanted any more, just before this call came
                error = await self._join(revision, priority, older_than, deadline)
        finally:
            revision.waiters -= 1
            self.left(revision, claim and self._ledger.unclaim(revision))
            self.sweep(revision)
        if error is not None:
            try:
                raise error.with_traceback(None)  # all who wait for the load raise the same one
            finally:
                del error  # which refers to this frame

    async def _join(self, revision: Revision, priority: LoadPriority, older_than: float, deadline: float) -> Outcome:
        """Waits for the outcome of a load, or of being refused as it takes too long."""
        self.ensure(revision, priority=priority, older_than=older_than)
        load = revision.load
        if load is None:
            return _stopping()
        caller = load.join(deadline)
        try:
            self._refuse_late(load)
            return await caller
        finally:
            load.leave(caller)

    def want(self, revision: Revision) -> None:
        """Requests wait for a revision that has no instance: it is loaded, and those are refused that can't wait."""
        self.ensure(revision)
        if revision.load is not None:
            self._refuse_late(revision.load)

    def ensure(
        self,
        revision: Revision,
        *,
        priority: LoadPriority = LoadPriority.REQUEST,
        older_than: float = math.inf,
        kept: bool = False,
    ) -> asyncio.Future[Outcome]:
        """Starts a load unless one is under way; the future's result is its error, None if it went well."""
        load = revision.load
        if load is not None:
            if load.urge(priority, older_than, kept=kept):
                self.room.urged(load)
            return load.future
        now, importance = time.monotonic(), revision.description.policy.priority
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        load = Load(revision, future, priority, older_than, kept, since=now, importance=importance)
        revision.load = load
        if self._stopped:
            self._settle(load, _stopping())
            return load.future
        load.expected_s = self._stats.expected_load_s(revision.key.name, revision.key.version, now)
        self.room.forecast.add(load, now)
        task = self._start(self._load(load))
        task.add_done_callback(lambda _: self._settle(load, _stopping()))  # if cancelled before it began
        return load.future

    def add_copy(
        self,
        revision: Revision,
        *,
        priority: LoadPriority = LoadPriority.SCALE_UP,
        older_than: float = -math.inf,
    ) -> asyncio.Future[Outcome]:
        """Loads one more instance beside those that there are; a load of the revision that is under way is that one.

        Args:
            revision: What to load.
            priority: How urgent it is.
            older_than: Only instances last used before this, or never, may be evicted for it.

        Returns:
            A future whose result is the error, None if it went well. Nobody has to wait for it. An error is remembered
            against the revision only if it has no other instance.
        """
        return self.ensure(revision, priority=priority, older_than=older_than, kept=True)

    @contextmanager
    def claimed(self, revision: Revision) -> Iterator[None]:
        """Protects the instances of a revision as a request in its queue does, until the block ends."""
        self._ledger.claim(revision, time.monotonic())
        try:
            yield
        finally:
            self.left(revision, self._ledger.unclaim(revision))
            self.sweep(revision)

    def left(self, revision: Revision, idle: bool) -> None:
        """Somebody does not wait for a revision any more; an instance may be idle by that."""
        if revision.load is not None and not revision.load.wanted:
            self.room.unwanted(revision.load)
        if idle:
            self.room.changed()

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

    def sweep(self, revision: Revision) -> None:
        """Takes out what a retired revision still has, as soon as nobody needs it."""
        if revision.retired and not revision.wanted():
            for instance in list(revision.instances):
                if instance.state is InstanceState.READY and not instance.leases:
                    self.evict(instance)
            if revision.load is not None:
                self.room.unwanted(revision.load)
            self._let_go(revision)

    def _let_go(self, revision: Revision) -> None:
        """Nothing of a retired revision is left, or will be: its files may go."""
        if revision.retired and not (revision.instances or revision.load is not None or revision.wanted()):
            self._catalog.brought.released(revision)
            self._ledger.forget(revision)
            self.creator.forget(revision)
            self.when_gone(revision)

    def worker_came(self) -> None:
        """A worker is up, or has ended."""
        self.creator.worker_came()

    async def _load(self, load: Load) -> None:
        """The task of one load: whatever happens is that load's outcome and no other's."""
        error: Outcome = _stopping()
        try:
            await self.creator.run(load)
            error = None
        except RoostError as failed:
            error = self._failures.remember(load.revision, failed)
        except Exception:
            log.exception("loading %s failed", load.revision.key)
            error = self._failures.remember(load.revision, Internal("an unexpected error, see the server's log"))
        finally:
            self._settle(load, error)

    def _settle(self, load: Load, error: Outcome) -> None:
        """Ends a load with its outcome, the first time it is called for it."""
        if load.future.done():
            return
        revision = load.revision
        revision.load = None
        self.room.forecast.end(load)
        load.end(error)
        if load.older_than < math.inf and isinstance(error, ResourceExhausted):
            error = nobody_waits()  # none of those in the queue has asked yet: they may have others evicted
        self._on_outcome(revision, error)
        self._let_go(revision)

    def _refuse_late(self, load: Load) -> None:
        """Refuses those who can't wait until a load is expected to be over.

        If nobody is left by that, it is made all the same if nothing is in its way: or a model whose load takes longer
        than requests wait would never be loaded.
        """
        now = time.monotonic()
        self.room.forecast.look_again(load, now)
        if load.expected_at <= now:
            return
        kept, load.kept = load.kept, True
        refusal = load.refusal(now)
        refused = load.refuse_callers(refusal)
        if self._on_late(load.revision, load.expected_at, refusal) or refused:
            load.asked_at = now
            kept = kept or load.expected_at <= now + load.expected_s
        load.kept = kept
        self.left(load.revision, False)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", retry_after_s=1.0, limit=Limit.DRAINING)

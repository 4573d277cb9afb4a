"""Steps 4 to 7 of the data path put together: what waits in ``queues`` becomes what ``runs`` as soon as it can.

All of it runs on one event loop, in callbacks: a request costs neither a future nor a timer nor a task.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from roost.core.errors import Cancelled, Limit, RoostError, Unavailable
from roost.core.frames import Call, Response
from roost.core.requests import InferRequest, InferResponse
from roost.router.admission import ByteBudget
from roost.router.calls import ModelCalls
from roost.router.catalog import Catalog
from roost.router.devices import Devices, GpuState
from roost.router.dispatching import Dispatcher
from roost.router.ends import End
from roost.router.kinds import Kinds, WorkerKind
from roost.router.leases import Leases
from roost.router.loading import Loader
from roost.router.losses import Losses
from roost.router.pending import Batch, Elsewhere, Pending
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.process import Launch, WorkerSpec, launch
from roost.router.queues import Queues
from roost.router.rate_limits import RateLimit, RateLimiter
from roost.router.restoring import Restoring
from roost.router.revision import Revision
from roost.router.runs import Runs
from roost.router.sequence import SequenceBudget
from roost.router.stats import Stats
from roost.router.worker import OFF, Worker
from roost.runtimes.nvml import Gpu

WhenUnloadable: TypeAlias = Callable[[Revision, InferRequest, RoostError], Awaitable[InferResponse | RoostError]]


class KindSettings(NamedTuple):
    """How the workers of one kind are started, how many there are, and their labels."""

    spec: WorkerSpec
    workers: int
    labels: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """How the mesh of this node is made.

    Attributes:
        spec: How worker processes are started.
        workers: How many.
        load_timeout_s: After so long a load is given up.
        load_concurrency: How many instances are created at once.
        max_queue: Requests that may wait for one revision.
        max_queued_bytes: Bytes of input tensors that may wait in all queues together.
        max_answer_bytes: Bytes that large answers may hold together until their clients have read them.
        request_timeout_s: How long a request may take whose own ``timeout`` its model's configuration overrules.
        worker_labels: The labels of each worker; none where it has no entry.
        other_kinds: Workers of other kinds, which are started when they are needed.
        max_sequences: Sequences of requests that may have begun and not ended, of all models together.
        max_sequence_bytes: What their state may take in this process.
        worker_idle_timeout_s: After so long without an instance those end again.
        rate_limits: What there is of resources that runs share; None: nobody waits for any.
        gpus: The GPUs that models may run on, in the order of their numbers.
        gpu_kinds: Workers on them: for each kind, how that of each GPU is started.
        gpu_labels: The labels of those workers.
    """

    spec: WorkerSpec
    workers: int
    load_timeout_s: float
    load_concurrency: int
    max_queue: int
    max_queued_bytes: int
    max_answer_bytes: int
    request_timeout_s: float = math.inf
    worker_labels: tuple[Mapping[str, str], ...] = ()
    other_kinds: tuple[KindSettings, ...] = ()
    worker_idle_timeout_s: float = 60.0
    max_sequences: int = 10_000
    max_sequence_bytes: int = 256 << 20
    rate_limits: tuple[RateLimit, ...] | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_kinds: tuple[tuple[WorkerSpec, ...], ...] = ()
    gpu_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def specs(self) -> list[WorkerSpec]:
        """How the workers of each kind are started that are forked; those on GPUs are not, as CUDA does not bear it."""
        return [self.spec, *(kind.spec for kind in self.other_kinds)]


class Mesh:
    """The workers of this node and what is on them. Implements ``WorkerEvents``.

    Attributes:
        submit: See ``Dispatcher.submit``.
        when_unloadable: Finds another outcome, if there is one, for a request to a model that can't be loaded than
            that error. Not asked where somebody waits who does so: for requests that are not recorded here.
        contended: See ``Dispatcher``.
        gpus: The GPUs that models may run on.
        calls: What models ask of others.
        leases: Those that last longer than a run.
        sequence_budget: What sequences of requests may have.
        stats: Where requests are counted.
    """

    def __init__(
        self,
        settings: MeshSettings,
        ledger: Ledger,
        catalog: Catalog,
        stats: Stats,
        group: asyncio.TaskGroup,
        *,
        launch: Launch = launch,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._group = group
        self.stats = stats
        what = "answers that clients have not read yet"
        self.answers = ByteBudget(settings.max_answer_bytes, what, Limit.ANSWER_BUDGET)
        self.limits = ledger.limits
        self.kinds = Kinds(self._make_kinds(launch), self._set_base)
        self.workers = self.kinds.workers
        self.loader = self._make_loader(catalog)
        self.queues = Queues(
            ledger,
            self.loader,
            max_queue=settings.max_queue,
            max_queued_bytes=settings.max_queued_bytes,
            request_timeout_s=settings.request_timeout_s,
        )
        self._runs = Runs(ledger, self.loader, stats)
        self.leases = Leases(ledger, self._runs)
        self.sequence_budget = SequenceBudget(
            settings.max_sequences, settings.max_sequence_bytes, max_waiting=settings.max_queue
        )
        limiter = RateLimiter(settings.rate_limits) if settings.rate_limits is not None else None
        self._dispatcher = Dispatcher(self.queues, self._runs, stats, self.loader.want, self.loader.sweep, limiter)
        self._grants = self._dispatcher.limiting.grants
        self.loader.creator.held = self.kinds.held
        self.loader.creator.check = self._dispatcher.limiting.check
        self.gpus = self._make_gpus()
        self.submit = self._dispatcher.submit
        self.loader.when_gone = self._dispatcher.forget
        self.contended = self._dispatcher.contended
        self.when_unloadable: WhenUnloadable | None = None
        self.calls = ModelCalls(group)
        self._restoring = Restoring(self.loader, ledger, group)
        self._losses = Losses(self.loader, catalog, self._runs, self._dispatcher, self._restoring)
        self._all_up = asyncio.Event()
        self._stopping = False

    def _make_loader(self, catalog: Catalog) -> Loader:
        return Loader(
            self._ledger,
            self.workers,
            catalog,
            self.stats,
            self._group,
            timeout_s=self._settings.load_timeout_s,
            concurrency=self._settings.load_concurrency,
            on_outcome=self._load_ended,
            on_late=self._load_is_late,
        )

    def _make_kinds(self, launch: Launch) -> list[WorkerKind]:
        settings, numbers = self._settings, itertools.count()
        first = KindSettings(settings.spec, settings.workers, settings.worker_labels)
        kinds: list[WorkerKind] = []
        for spec, count, labels in (first, *settings.other_kinds):
            workers = [Worker(next(numbers), spec, self, launch, self.answers) for _ in range(count)]
            for worker, own in zip(workers, labels, strict=False):
                worker.labels = own
            for worker in workers if kinds else ():  # not those of the first kind, which start with the server
                worker.state = OFF
            kinds.append(WorkerKind(spec.kind, workers, self._group, settings.worker_idle_timeout_s))
        for specs in settings.gpu_kinds:
            workers = [
                Worker(next(numbers), spec, self, launch, self.answers, state=OFF, labels=settings.gpu_labels)
                for spec in specs
            ]
            kinds.append(WorkerKind(specs[0].kind, workers, self._group, settings.worker_idle_timeout_s))
        return kinds

    def _make_gpus(self) -> tuple[GpuState, ...]:
        """Each has a budget of its own, which the workers share that are on it; loads go there from now on."""
        for gpu in self._settings.gpus:
            users = [worker for worker in self.workers if worker.spec.device == gpu.name]
            self._ledger.add_device(gpu.name, [worker.id for worker in users])
            for worker in users:
                worker.gpu_account = self._ledger.device(gpu.name)
        self.loader.creator.devices = Devices(self.workers, self._settings.gpus)
        return tuple(map(GpuState, self._settings.gpus))

    async def start(self) -> None:
        """Starts the workers of the first kind and waits until all of them are up.

        Raises:
            Unavailable: If one of them ends before it is up.
        """
        self.kinds.first.start()
        await self._all_up.wait()
        if not all(worker.up for worker in self.kinds.first.workers):
            raise Unavailable("the workers do not start, see the log")

    async def stop(self) -> None:
        """Ends the workers; requests that are still under way are answered with UNAVAILABLE."""
        self._stopping = True
        self.calls.stop()
        self._losses.stop()
        self._restoring.stop()
        self.loader.stop()
        await self.kinds.stop()

    def set_limits(self, limits: Limits) -> None:
        """Sets what instances may take together, if there are no processes but those of the first kind."""
        self.limits = self._ledger.limits = limits

    def _set_base(self, base_bytes: int) -> None:
        """What processes of other kinds take comes off the memory for files that are mapped, not off the budget."""
        limits = self.limits
        memory_bytes = max(limits.private_bytes, limits.memory_bytes - base_bytes)
        self._ledger.grown |= memory_bytes < self._ledger.limits.memory_bytes
        self._ledger.limits = replace(limits, memory_bytes=memory_bytes)
        self.loader.room.changed()

    @property
    def device(self) -> str:
        """The name of the device whose memory all workers share; see ``gpus`` for others."""
        return self._settings.spec.device

    @property
    def ready(self) -> bool:
        """Whether at least one worker is up."""
        return any(worker.up for worker in self.workers)

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs now."""
        return self.queues.requests > 0 or any(worker.runs for worker in self.workers)

    def begin_use(self, revision: Revision) -> None:
        """A revision gets its first request: what is said of its version starts anew."""
        self._dispatcher.begin_use(revision)

    def retire(self, revision: Revision) -> None:
        """The revision is not asked for any more: its instances go once what it has accepted is answered."""
        revision.retired = True
        if revision.sequences is not None:
            revision.sequences.retired()
        self.loader.sweep(revision)

    def give_way(self, revision: Revision, *, yields: bool) -> None:
        """What is to take its place is loaded now, and may have it evicted although it is pinned; or no longer is."""
        revision.yields = yields
        pinned = revision.description.policy.pin and not yields
        for instance in revision.instances:
            self._ledger.pin(instance.id, pinned=pinned)
            self._ledger.give_way(instance.id, yields=yields)

    def hold(self, worker: Worker) -> None:
        """A worker gets no batches and no loads from now on, until ``resume``; what it has goes on."""
        worker.recycling = True

    def resume(self, worker: Worker) -> None:
        """A worker gets batches and loads again, unless it has gone."""
        worker.recycling = False
        self.loader.worker_came()
        for revision in list(worker.waiting):
            self._dispatcher.pump(revision)

    def _load_ended(self, revision: Revision, error: RoostError | None) -> None:
        if error is None or isinstance(error, Cancelled) or revision.resident():
            now = time.monotonic()
            if error is None and len(revision.instances) == 1:  # else they waited for a slot
                for pending in revision.queue:
                    pending.request.context.load_wait_s = now - pending.request.context.queued
            if error is None or revision.queue:
                self._dispatcher.pump(revision)
            return
        may_be_replaced = self.when_unloadable is not None and revision.failure is not None and not self._stopping
        self._dispatcher.fail_all(revision, error, self._settle_elsewhere if may_be_replaced else None)

    def _load_is_late(self, revision: Revision, until: float, refusal: RoostError) -> bool:
        """See ``Loader``."""
        return self._dispatcher.refuse_late(revision, until, refusal)

    def _settle_elsewhere(self, pending: Pending, error: RoostError) -> None:
        """A request that nobody would send again waits for a model that can't be loaded, but may have a successor."""

        async def settle() -> None:
            assert self.when_unloadable is not None
            self._runs.settle(pending, await self.when_unloadable(pending.revision, pending.request, error))

        pending.owner = Elsewhere(pending.owner, self._group.create_task(settle()))

    def worker_up(self, worker: Worker) -> None:
        """See ``WorkerEvents``."""
        self.loader.worker_came()
        self._restoring.begin()
        if all(w.up for w in self.kinds.first.workers):
            self._all_up.set()

    def worker_lost(self, worker: Worker) -> None:
        """See ``WorkerEvents``."""
        self._losses.lost(worker)
        self.calls.lost(worker)

    def worker_reaped(self, worker: Worker, end: End) -> None:
        """See ``WorkerEvents``."""
        self._all_up.set()  # or start would wait for ever for one that can't start
        self._losses.reaped(worker, end)
        self.loader.worker_came()

    def run_answered(self, worker: Worker, run: int, response: Response) -> None:
        """See ``WorkerEvents``."""
        if not response.final:
            self._runs.emitted(worker, run, response)
            return
        now = time.monotonic()
        batch = self._runs.end(worker, run, now, response.times)
        if batch is not None:
            self._place_is_free(batch, now)
            apart = self._runs.answer(batch, response)
            if apart:
                self._dispatcher.again(apart)
                self._dispatcher.pump(batch.instance.revision)

    def run_failed(self, worker: Worker, run: int, error: Exception) -> None:
        """See ``WorkerEvents``."""
        now = time.monotonic()
        batch = self._runs.end(worker, run, now, None)
        if batch is not None:
            failure = error if isinstance(error, RoostError) else Unavailable("the run failed")
            apart = self._runs.fail(batch, failure)
            self._dispatcher.again(apart)  # before the next batch goes, which they are in front of
            self._place_is_free(batch, now)
            if apart:
                self._dispatcher.pump(batch.instance.revision)

    def _place_is_free(self, batch: Batch, now: float) -> None:
        """The next batch goes before the last one is answered, so that the worker has something to do meanwhile."""
        instance = batch.instance
        if self._grants:
            self._dispatcher.limiting.ended(batch)
        if instance.revision.queue or instance.worker.waiting:
            self._dispatcher.slot_freed(instance.worker, instance.revision)
        self._runs.release(instance, now)

    def response_refused(self, worker: Worker, run: int, error: RoostError) -> None:
        """See ``WorkerEvents``."""
        self._runs.response_refused(worker, run, error)

    def model_called(self, worker: Worker, number: int, call: Call | None) -> None:
        """See ``WorkerEvents``."""
        self.calls.called(worker, number, call)

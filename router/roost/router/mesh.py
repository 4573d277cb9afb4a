"""Steps 4 to 7 of the data path put together: what waits in ``queues`` becomes what ``runs`` as soon as it can.

All of it runs on one event loop, in callbacks: a request costs a future and a timer, never a task.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from dataclasses import dataclass
from functools import partial

from roost.core.errors import Cancelled, DeadlineExceeded, Limit, RoostError, Unavailable
from roost.core.frames import Response
from roost.core.requests import InferRequest
from roost.router.admission import ByteBudget
from roost.router.batching import Dispatch, plan
from roost.router.catalog import Catalog
from roost.router.failures import Fault, next_failure
from roost.router.loading import Loader, failure_error
from roost.router.placement import Ledger
from roost.router.process import Launch, WorkerSpec, launch
from roost.router.queues import Queues
from roost.router.revision import Pending, Revision
from roost.router.runs import Runs
from roost.router.states import InstanceState
from roost.router.stats import Stats
from roost.router.worker import Worker

log = logging.getLogger(__name__)

QUARANTINE_CRASHES = 3


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
    """

    spec: WorkerSpec
    workers: int
    load_timeout_s: float
    load_concurrency: int
    max_queue: int
    max_queued_bytes: int
    max_answer_bytes: int


class Mesh:
    """The workers of this node and what is on them. Implements ``WorkerEvents``."""

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
        self._catalog = catalog
        self._stats = stats
        self._group = group
        what = "answers that clients have not read yet"
        answers = ByteBudget(settings.max_answer_bytes, what, Limit.ANSWER_BUDGET)
        self.workers = [Worker(number, settings.spec, self, launch, answers) for number in range(settings.workers)]
        self.loader = Loader(
            ledger,
            self.workers,
            catalog,
            stats,
            group,
            timeout_s=settings.load_timeout_s,
            concurrency=settings.load_concurrency,
            on_outcome=self._load_ended,
        )
        self.queues = Queues(
            ledger, self.loader, max_queue=settings.max_queue, max_queued_bytes=settings.max_queued_bytes
        )
        self._runs = Runs(ledger, self.loader, self.queues, stats)
        self._suspects: dict[Worker, set[Revision]] = {}
        self._all_up = asyncio.Event()
        self._stopping = False
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts the workers and waits until all of them are up.

        Raises:
            Unavailable: If one of them ends before it is up.
        """
        self._keepers = [self._group.create_task(worker.keep_running()) for worker in self.workers]
        await self._all_up.wait()
        if not all(worker.up for worker in self.workers):
            raise Unavailable("the workers do not start, see the log")

    async def stop(self) -> None:
        """Ends the workers; requests that are still under way are answered with UNAVAILABLE."""
        self._stopping = True
        self.loader.stop()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    @property
    def device(self) -> str:
        """The name of the device that the workers share."""
        return self._settings.spec.device

    @property
    def ready(self) -> bool:
        """Whether at least one worker is up."""
        return any(worker.up for worker in self.workers)

    def begin_use(self, revision: Revision) -> None:
        """A revision gets its first request: what is said of its version starts anew."""
        revision.used = True
        self._stats.of(revision.key.name, revision.key.version).restart()

    def submit(self, revision: Revision, request: InferRequest) -> Pending:
        """Takes a checked request into its revision's queue; the answer comes through the future of what is returned.

        Raises:
            ResourceExhausted: If the queue is full.
            DeadlineExceeded: If the request came too late.
        """
        now = time.monotonic()
        deadline = request.context.deadline
        if now >= deadline:
            raise DeadlineExceeded("the deadline passed before the request was queued")
        nbytes = sum(memoryview(tensor.data).nbytes for tensor in request.inputs)
        self.queues.admit(revision, nbytes)
        loop = asyncio.get_running_loop()
        pending = Pending(revision, request, loop.create_future(), nbytes)
        if pending.stream is not None:
            pending.future.add_done_callback(partial(self._runs.stream_ended, pending))
        if deadline < math.inf:
            pending.timer = loop.call_later(deadline - now, self._expire, pending)
        request.context.queued = request.context.queued or now
        self.queues.put(pending, now)
        self._pump(revision)
        return pending

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for the request any more: it leaves the queue, or its run is told to end."""
        if pending.timer is not None:
            pending.timer.cancel()
        if pending.instance is None:
            self.queues.remove(pending)
        elif pending.instance.worker.link is not None:
            pending.instance.worker.link.send_cancel(pending.run)
        if not pending.future.done():
            pending.future.cancel()

    def retire(self, revision: Revision) -> None:
        """The revision is not asked for any more: its instances go once what it has accepted is answered."""
        revision.retired = True
        self.loader.sweep(revision)

    def _expire(self, pending: Pending) -> None:
        """The deadline of a request has come."""
        if pending.future.done():
            return
        where = "it was running" if pending.instance is not None else "it waited"
        if pending.instance is None and not pending.revision.resident():
            where = "its model was loading"
        limit = Limit.DEADLINE if pending.instance is None else Limit.RUN_DEADLINE
        pending.future.set_exception(DeadlineExceeded(f"Request timeout expired while {where}", limit=limit))
        self.abandon(pending)

    def _pump(self, revision: Revision, *, once: bool = False) -> None:
        """Sends what can be sent of a queue; what can't waits for a slot or a load."""
        while revision.queue:
            instance = revision.free_instance()
            match plan(revision.queue, instance.worker.free_slots if instance is not None else 0):
                case Dispatch(_) if instance is not None:
                    self._runs.begin(instance, revision.queue.popleft())
                case _:
                    break
            if once:
                break
        if not revision.queue:
            self.loader.sweep(revision)
            return
        ready = [instance for instance in revision.instances if instance.state is InstanceState.READY]
        for instance in ready:
            instance.worker.waiting[revision] = None
        if not ready:
            self.loader.ensure(revision)

    def _slot_freed(self, worker: Worker) -> None:
        """Revisions that wait for a slot take turns."""
        while worker.waiting and worker.free_slots > 0:
            revision = next(iter(worker.waiting))
            del worker.waiting[revision]
            self._pump(revision, once=True)

    def _load_ended(self, revision: Revision, error: RoostError | None) -> None:
        if error is None or (isinstance(error, Cancelled) and revision.queue):
            now = time.monotonic()
            for pending in revision.queue:
                pending.request.context.load_wait_s = now - pending.request.context.queued
            self._pump(revision)
            return
        self._fail_queue(revision, error)

    def _fail_queue(self, revision: Revision, error: RoostError) -> None:
        for pending in list(revision.queue):
            self.queues.remove(pending)
            pending.settle(error)

    def worker_up(self, worker: Worker) -> None:
        """See ``WorkerEvents``."""
        self.loader.worker_came()
        if all(w.up for w in self.workers):
            self._all_up.set()

    def worker_lost(self, worker: Worker) -> None:
        """See ``WorkerEvents``: what had begun is answered, what had not goes back to the head of its queue once."""
        suspects = {i.revision for i in worker.instances.values() if i.state is InstanceState.LOADING}
        self.loader.worker_went(worker)
        worker.waiting.clear()
        runs = list(worker.runs.values())
        worker.runs.clear()
        touched = {instance.revision: None for instance in worker.instances.values()}
        now = time.monotonic()
        for pending in reversed(runs):
            if pending.started:
                suspects.add(pending.revision)
            pending.instance = None
            if pending.future.done():
                continue
            if pending.started or pending.retried or self._stopping:
                lost = "the worker that ran the request was lost; it may be sent again"
                pending.settle(Unavailable(lost, retry_after_s=1.0))
            else:
                pending.retried = True
                self.queues.put(pending, now, first=True)
        self._suspects[worker] = suspects
        for revision in touched:
            self._pump(revision)

    def worker_reaped(self, worker: Worker, code: int) -> None:
        """See ``WorkerEvents``."""
        self.loader.worker_reaped(worker)
        self._all_up.set()  # or start would wait for ever for one that can't start
        for revision in self._suspects.pop(worker, ()):
            if code != -signal.SIGKILL:  # that is an operator, or us, and no model's doing
                self._crashed(revision)

    def _crashed(self, revision: Revision) -> None:
        """A revision was running or loading when its worker died: the third time in a row it is put in quarantine."""
        revision.crashes += 1
        if revision.crashes < QUARANTINE_CRASHES:
            return
        reason = f"in quarantine, since {revision.crashes} worker processes ended while they ran or loaded it"
        now = time.monotonic()
        revision.failure = next_failure(revision.failure, reason, Fault.ARTIFACT, now)
        revision.failure.until = math.inf
        revision.failure_checked = now
        self._catalog.failed(revision, reason)
        log.error("%s is put in quarantine", revision.key)
        self._fail_queue(revision, failure_error(revision, revision.failure, now))  # or each would end another worker

    def run_started(self, worker: Worker, run: int) -> None:
        """See ``WorkerEvents``."""
        self._runs.started(worker, run)

    def run_answered(self, worker: Worker, run: int, response: Response) -> None:
        """See ``WorkerEvents``."""
        if self._runs.answered(worker, run, response):
            self._slot_freed(worker)

    def run_failed(self, worker: Worker, run: int, error: Exception) -> None:
        """See ``WorkerEvents``."""
        if self._runs.failed(worker, run, error):
            self._slot_freed(worker)

    def response_refused(self, worker: Worker, run: int, error: RoostError) -> None:
        """See ``WorkerEvents``."""
        self._runs.response_refused(worker, run, error)

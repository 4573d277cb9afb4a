"""Steps 4 to 7 of the data path: requests queue per revision, batches take leases on instances and go to workers.

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
from typing import cast

from roost.core.errors import Cancelled, DeadlineExceeded, Internal, Limit, ResourceExhausted, RoostError, Unavailable
from roost.core.frames import Response, Run, WireTensor
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Buffer, Tensor
from roost.router.admission import ByteBudget
from roost.router.batching import Dispatch, plan
from roost.router.catalog import Catalog
from roost.router.failures import Fault, next_failure
from roost.router.loading import Loader, failure_error
from roost.router.placement import Ledger
from roost.router.process import Launch, WorkerSpec, launch
from roost.router.records import note_steps
from roost.router.revision import Instance, Pending, Revision
from roost.router.states import InstanceState
from roost.router.stats import Stats
from roost.router.validation import rows_of
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
        self._ledger = ledger
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
        self.queued = 0
        self.queued_bytes = 0
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
        self._admit(revision, nbytes)
        loop = asyncio.get_running_loop()
        pending = Pending(revision, request, loop.create_future(), nbytes)
        if pending.stream is not None:
            pending.future.add_done_callback(partial(self._stream_ended, pending))
        if deadline < math.inf:
            pending.timer = loop.call_later(deadline - now, self._expire, pending)
        request.context.queued = request.context.queued or now
        self._enqueue(pending, now)
        self._pump(revision)
        return pending

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for the request any more: it leaves the queue, or its run is told to end."""
        if pending.timer is not None:
            pending.timer.cancel()
        if pending.instance is None:
            self._take_out(pending)
        elif pending.instance.worker.link is not None:
            pending.instance.worker.link.send_cancel(pending.run)
        if not pending.future.done():
            pending.future.cancel()

    def retire(self, revision: Revision) -> None:
        """The revision is not asked for any more: its instances go once what it has accepted is answered."""
        revision.retired = True
        self.loader.sweep(revision)

    def _admit(self, revision: Revision, nbytes: int) -> None:
        limit = self._settings.max_queue
        if len(revision.queue) >= limit:
            raise ResourceExhausted(
                f"Exceeds maximum queue size: {limit} requests wait for model '{revision.key.name}'",
                retry_after_s=1.0,
                limit=Limit.QUEUE_FULL,
            )
        if self.queued_bytes + nbytes > self._settings.max_queued_bytes:
            text = "the requests that wait hold as many bytes as they may"
            raise ResourceExhausted(text, retry_after_s=1.0, limit=Limit.QUEUE_BYTES)

    def _enqueue(self, pending: Pending, now: float, *, first: bool = False) -> None:
        queue = pending.revision.queue
        if first:
            queue.appendleft(pending)
        else:
            queue.append(pending)
        self.queued += 1
        self.queued_bytes += pending.nbytes
        self._ledger.claim(pending.revision, now)

    def _leave_queue(self, pending: Pending) -> None:
        """The counters and the claim of a request that was just taken out of its queue."""
        self.queued -= 1
        self.queued_bytes -= pending.nbytes
        if self._ledger.unclaim(pending.revision) or not pending.revision.wanted():
            self.loader.room.changed()

    def _take_out(self, pending: Pending) -> None:
        try:
            pending.revision.queue.remove(pending)
        except ValueError:
            return
        self._leave_queue(pending)
        if not pending.revision.queue:
            self.loader.sweep(pending.revision)

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
            instance = _free_instance(revision)
            match plan(revision.queue, instance.worker.free_slots if instance is not None else 0):
                case Dispatch(_) if instance is not None:
                    self._dispatch(instance, revision.queue.popleft())
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

    def _dispatch(self, instance: Instance, pending: Pending) -> None:
        now = time.monotonic()
        worker = instance.worker
        assert worker.link is not None
        instance.leases += 1
        self._ledger.lease(instance.id, now)
        self._leave_queue(pending)
        pending.instance = instance
        pending.started = False
        pending.run = worker.link.next_number()
        worker.runs[pending.run] = pending
        credit = pending.stream.begin(worker.link, pending.run) if pending.stream is not None else None
        request = pending.request
        deadline = request.context.deadline
        contract = instance.revision.contract
        reshapes = contract.reshapes if contract is not None else None
        worker.link.send_run(
            pending.run,
            Run(
                instance.id,
                int(deadline * 1e9) if deadline < math.inf else 0,
                [WireTensor(t.name, t.datatype, t.shape, t.data) for t in request.inputs]
                if reshapes is None
                else [WireTensor(t.name, t.datatype, reshapes.input_shape(t), t.data) for t in request.inputs],
                [output.name for output in request.outputs],
                request.parameters,
                credit,
            ),
        )

    def _run_ended(self, worker: Worker, run: int) -> Pending | None:
        """Gives back the lease and the slot of a run; None if it is not known."""
        pending = worker.runs.pop(run, None)
        if pending is None or pending.instance is None:
            return None
        instance, pending.instance = pending.instance, None
        instance.leases -= 1
        idle = self._ledger.release(instance.id, time.monotonic())
        if instance.state is InstanceState.DRAINING and not instance.leases:
            self.loader.evict(instance)
        elif idle:
            self.loader.sweep(instance.revision)
            self.loader.room.changed()
        return pending

    def _settle(self, pending: Pending, outcome: InferResponse | RoostError) -> None:
        if pending.timer is not None:
            pending.timer.cancel()
        if pending.future.done():
            return
        if isinstance(outcome, RoostError):
            pending.future.set_exception(outcome)
        else:
            pending.future.set_result(outcome)

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
            self._take_out(pending)
            self._settle(pending, error)

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
                self._settle(pending, Unavailable(lost, retry_after_s=1.0))
            else:
                pending.retried = True
                self._enqueue(pending, now, first=True)
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
        pending = worker.runs.get(run)
        if pending is not None:
            pending.started = True

    def run_answered(self, worker: Worker, run: int, response: Response) -> None:
        """See ``WorkerEvents``."""
        if not response.final:
            self._emitted(worker, run, response)
            return
        pending = self._run_ended(worker, run)
        if pending is None:
            return
        revision, request = pending.revision, pending.request
        revision.crashes = 0
        self._count_response(pending, response)
        rows = rows_of(request, revision.description.max_batch_size)
        self._stats.of(revision.key.name, revision.key.version).ran(rows, response.times)
        self._settle(pending, _answer(pending, response))
        self._slot_freed(worker)

    def _emitted(self, worker: Worker, run: int, response: Response) -> None:
        """A run has a response that is not the last one: it goes on."""
        pending = worker.runs.get(run)
        if pending is None or pending.future.done():  # its client has gone, and the worker was told
            return
        if pending.stream is None:
            self._give_up(worker, pending, Internal("the model answered more than once and is not decoupled"))
            return
        self._count_response(pending, response)
        pending.stream.put(_answer(pending, response))

    def _count_response(self, pending: Pending, response: Response) -> None:
        context = pending.request.context
        if pending.stream is not None and not pending.future.done():
            key = pending.revision.key
            self._stats.of(key.name, key.version).responded(context, response)
        note_steps(context, response.times)

    def _stream_ended(self, pending: Pending, end: asyncio.Future[InferResponse]) -> None:
        if end.cancelled() or end.exception() is not None:
            key = pending.revision.key
            context = pending.request.context
            self._stats.of(key.name, key.version).stream_failed(context, cancelled=end.cancelled())

    def _give_up(self, worker: Worker, pending: Pending, error: RoostError) -> None:
        """The request fails while its run still goes on: its slot is free when the worker says that it has ended."""
        self._settle(pending, error)
        if worker.link is not None:
            worker.link.send_cancel(pending.run)

    def run_failed(self, worker: Worker, run: int, error: Exception) -> None:
        """See ``WorkerEvents``."""
        pending = self._run_ended(worker, run)
        if pending is None:
            return
        outcome = error if isinstance(error, RoostError) else Unavailable("the run failed")
        self._settle(pending, outcome)
        self._slot_freed(worker)

    def response_refused(self, worker: Worker, run: int, error: RoostError) -> None:
        """See ``WorkerEvents``."""
        pending = worker.runs.get(run)
        if pending is not None:
            self._give_up(worker, pending, error)


def _answer(pending: Pending, response: Response) -> InferResponse:
    # Workers answer inline, as long as no regions are handed to them.
    outputs = [Tensor(t.name, t.datatype, t.shape, cast(Buffer, t.data)) for t in response.outputs]
    request, version = pending.request, pending.revision.key.version
    return InferResponse(request.model_name, version, outputs, request.id, final=response.final)


def _free_instance(revision: Revision) -> Instance | None:
    """The instance on the worker with the most free slots, if any has one."""
    best: Instance | None = None
    for instance in revision.instances:
        if instance.state is not InstanceState.READY or instance.worker.free_slots <= 0:
            continue
        if best is None or instance.worker.free_slots > best.worker.free_slots:
            best = instance
    return best

"""Steps 6 and 7 of the data path: a request becomes a run on an instance that it leases, and is answered by it."""

from __future__ import annotations

import asyncio
import math
import time
from typing import cast

from roost.core.errors import Internal, RoostError, Unavailable
from roost.core.frames import Response, Run, WireTensor
from roost.core.requests import InferResponse
from roost.core.tensors import Buffer, Tensor
from roost.router.loading import Loader
from roost.router.placement import Ledger
from roost.router.queues import Queues
from roost.router.records import note_steps
from roost.router.revision import Instance, Pending
from roost.router.states import InstanceState
from roost.router.stats import Stats
from roost.router.validation import rows_of
from roost.router.worker import Worker


class Runs:
    """The runs of all workers.

    Args:
        ledger: Keeps the leases.
        loader: Takes instances out whose last lease has ended.
        queues: Where requests come from.
        stats: Counts batches and responses.
    """

    def __init__(self, ledger: Ledger, loader: Loader, queues: Queues, stats: Stats) -> None:
        self._ledger = ledger
        self._loader = loader
        self._queues = queues
        self._stats = stats

    def begin(self, instance: Instance, pending: Pending) -> None:
        """Sends a request that was just taken out of its queue to an instance with a free slot."""
        now = time.monotonic()
        worker = instance.worker
        assert worker.link is not None
        instance.leases += 1
        self._ledger.lease(instance.id, now)
        self._queues.left(pending)
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

    def started(self, worker: Worker, run: int) -> None:
        """A run has begun."""
        pending = worker.runs.get(run)
        if pending is not None:
            pending.started = True

    def answered(self, worker: Worker, run: int, response: Response) -> bool:
        """A run has a response; returns whether it was the last one, so that a slot is free."""
        if not response.final:
            self._emitted(worker, run, response)
            return False
        pending = self._end(worker, run)
        if pending is None:
            return False
        revision, request = pending.revision, pending.request
        revision.crashes = 0
        self._count_response(pending, response)
        rows = rows_of(request, revision.description.max_batch_size)
        self._stats.of(revision.key.name, revision.key.version).ran(rows, response.times)
        pending.settle(_answer(pending, response))
        return True

    def failed(self, worker: Worker, run: int, error: Exception) -> bool:
        """A run has failed; returns whether it was known, so that a slot is free."""
        pending = self._end(worker, run)
        if pending is None:
            return False
        pending.settle(error if isinstance(error, RoostError) else Unavailable("the run failed"))
        return True

    def response_refused(self, worker: Worker, run: int, error: RoostError) -> None:
        """There was no memory for a response of a run that goes on."""
        pending = worker.runs.get(run)
        if pending is not None:
            _give_up(worker, pending, error)

    def stream_ended(self, pending: Pending, end: asyncio.Future[InferResponse]) -> None:
        """Counts how a stream has ended, if not with a response."""
        if end.cancelled() or end.exception() is not None:
            key = pending.revision.key
            context = pending.request.context
            self._stats.of(key.name, key.version).stream_failed(context, cancelled=end.cancelled())

    def _end(self, worker: Worker, run: int) -> Pending | None:
        """Gives back the lease and the slot of a run; None if it is not known."""
        pending = worker.runs.pop(run, None)
        if pending is None or pending.instance is None:
            return None
        instance, pending.instance = pending.instance, None
        instance.leases -= 1
        idle = self._ledger.release(instance.id, time.monotonic())
        if instance.state is InstanceState.DRAINING and not instance.leases:
            self._loader.evict(instance)
        elif idle:
            self._loader.sweep(instance.revision)
            self._loader.room.changed()
        return pending

    def _emitted(self, worker: Worker, run: int, response: Response) -> None:
        """A run has a response that is not the last one: it goes on."""
        pending = worker.runs.get(run)
        if pending is None or pending.future.done():  # its client has gone, and the worker was told
            return
        if pending.stream is None:
            _give_up(worker, pending, Internal("the model answered more than once and is not decoupled"))
            return
        self._count_response(pending, response)
        pending.stream.put(_answer(pending, response))

    def _count_response(self, pending: Pending, response: Response) -> None:
        context = pending.request.context
        if pending.stream is not None and not pending.future.done():
            key = pending.revision.key
            self._stats.of(key.name, key.version).responded(context, response)
        note_steps(context, response.times)


def _give_up(worker: Worker, pending: Pending, error: RoostError) -> None:
    """The request fails while its run still goes on: its slot is free when the worker says that it has ended."""
    pending.settle(error)
    if worker.link is not None:
        worker.link.send_cancel(pending.run)


def _answer(pending: Pending, response: Response) -> InferResponse:
    # Workers answer inline, as long as no regions are handed to them.
    outputs = [Tensor(t.name, t.datatype, t.shape, cast(Buffer, t.data)) for t in response.outputs]
    request, version = pending.request, pending.revision.key.version
    return InferResponse(request.model_name, version, outputs, request.id, final=response.final)

"""Steps 6 and 7 of the data path: requests become a run on an instance that they lease, and are answered by it."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from typing import cast

from roost.core.errors import Code, Internal, RoostError
from roost.core.frames import REQUEST_ID, Response, Run, StepTimes, WireTensor
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import NO_PARAMETERS, Tensor
from roost.router import answers
from roost.router.loading import Loader
from roost.router.overruns import Overruns
from roost.router.pending import Batch, Pending
from roost.router.placement import Ledger
from roost.router.records import note_steps
from roost.router.revision import Instance, Revision
from roost.router.states import InstanceState
from roost.router.stats import Stats
from roost.router.validation import Reshapes
from roost.router.worker import SHORT_S, Worker

log = logging.getLogger(__name__)

_NOT_OF_ONE = frozenset(
    {Code.CANCELLED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED}
)
"""Why a batch may fail that has nothing to do with any one of its requests."""


class Runs:
    """The runs of all workers.

    Args:
        ledger: Keeps the leases.
        loader: Takes instances out whose last lease has ended.
        stats: Counts batches, requests and responses.
    """

    def __init__(self, ledger: Ledger, loader: Loader, stats: Stats) -> None:
        self._ledger = ledger
        self._loader = loader
        self._stats = stats
        self._overruns = Overruns()

    def begin(self, instance: Instance, requests: list[Pending], now: float) -> Batch:
        """Sends requests that were just taken out of their queue as one batch to an instance that has room for it."""
        worker, revision = instance.worker, instance.revision
        link = worker.link
        assert link is not None
        number = link.next_number()
        batch = Batch(instance, number, requests, now)
        rows, deadline = 0, math.inf
        for pending in requests:
            pending.batch = batch
            rows += pending.rows
            if pending.deadline < deadline:
                deadline = pending.deadline
        batch.rows, batch.deadline = rows, deadline
        batch.predicted_s = revision.pace.estimate(rows) or SHORT_S
        self._ledger.lease(instance.id, now)
        instance.leases += 1
        if not instance.runs:
            instance.turn_at = now
        instance.runs.append(batch)
        if not worker.runs:
            worker.turn_at = now
        worker.runs[number] = batch
        worker.backlog_s += batch.predicted_s
        run = _run_of(batch)
        stream = requests[0].stream
        if stream is not None:
            run.credit = stream.begin(link, number)
        intake = revision.intake
        link.send_run(number, run, intake.places(rows, run.outputs) if intake is not None else ())
        return batch

    def end(self, worker: Worker, number: int, now: float, times: StepTimes | None) -> Batch | None:
        """A run has ended: its place is free, though its lease is not given back yet; None if it is not known."""
        batch = worker.runs.pop(number, None)
        if batch is None:
            return None
        instance = batch.instance
        instance.runs.remove(batch)
        turn_s = now - max(batch.sent, instance.turn_at)
        instance.busy_s += now - instance.turn_at
        worker.busy_s += now - worker.turn_at
        instance.turn_at = worker.turn_at = now
        worker.backlog_s = worker.backlog_s - batch.predicted_s if worker.runs else 0.0
        if times is not None:
            revision = instance.revision
            revision.crashes = 0
            first = batch.requests[0]
            # What is like nothing else was not measured in the rows that others are.
            if first.stream is None and type(first.key) is not object:
                revision.pace.observe(batch.rows, (times.output_end - times.input_start) / 1e9, now, turn_s)
        return batch

    def release(self, instance: Instance, now: float) -> None:
        """Gives back the lease of a run that has ended."""
        instance.leases -= 1
        idle = self._ledger.release(instance.id, now)
        if instance.state is InstanceState.DRAINING and not instance.leases:
            self._loader.evict(instance)
        elif idle:
            if instance.revision.retired:
                self._loader.sweep(instance.revision)
            self._loader.room.changed()

    def answer(self, batch: Batch, response: Response) -> list[Pending]:
        """Answers the requests of a run that has ended; returns those that have to be run apart."""
        revision, requests = batch.instance.revision, batch.requests
        counters = revision.counters
        assert counters is not None
        counters.ran(batch.rows if revision.description.max_batch_size else len(requests), response.times)
        batch.requests = []  # or it would keep them, and they it
        reshapes = _reshapes_of(revision)
        try:
            if len(requests) == 1:
                outputs = [answers.whole(response.outputs, reshapes)]
            else:
                split = answers.parts(response.outputs, requests, batch.rows, reshapes)
                if split is None:
                    return self._wrong_rows(revision, requests)
                outputs = split
        except Internal as error:
            self.settle_all(requests, error)
            return []
        if revision.in_order is not None or requests[0].stream is not None or batch.mixed:
            self._answer_each(batch, requests, outputs, response)
            return []
        version, times = revision.key.version, response.times
        counted: list[InferRequest] = []
        for pending, tensors in zip(requests, outputs, strict=True):
            if pending.settled:
                continue
            pending.settled = True
            request = pending.request
            if pending.recorded:
                counted.append(request)
            else:
                note_steps(request.context, times)
            try:  # as ``tell`` does, without a call for each
                pending.done(InferResponse(request.model_name, version, tensors, request.id, NO_PARAMETERS))
            except Exception:
                pending.not_told()
        if counted:
            self._stats.answered(counters, counted, times)
        return []

    def _answer_each(
        self, batch: Batch, requests: Sequence[Pending], outputs: Sequence[list[Tensor]], response: Response
    ) -> None:
        """The same where requests are not all alike."""
        version = batch.instance.revision.key.version
        for pending, tensors in zip(requests, outputs, strict=True):
            if pending.settled:
                continue
            request = pending.request
            if pending.stream is not None:
                self._count_response(pending, response)
            note_steps(request.context, response.times)
            if batch.mixed:
                tensors = answers.wanted(tensors, [output.name for output in request.outputs])
            self._ordered(pending, InferResponse(request.model_name, version, tensors, request.id))

    def fail(self, batch: Batch, error: RoostError) -> list[Pending]:
        """Fails the requests of a run; returns those of them that have to be run apart, as one may be to blame."""
        requests, batch.requests = batch.requests, []
        if len(requests) > 1 and error.code not in _NOT_OF_ONE and not batch.instance.revision.is_code:
            return _apart(requests)
        self.settle_all(requests, error)
        return []

    def _wrong_rows(self, revision: Revision, requests: Sequence[Pending]) -> list[Pending]:
        """The answer to a batch can't be split: this model is never to get one again."""
        log.error("%s: its outputs do not have the rows of a batch: its requests are run one by one", revision.key)
        revision.batch_up_to(0)
        if revision.is_code:
            self.settle_all(requests, Internal("the model's outputs do not have as many rows as its inputs"))
            return []
        return _apart(requests)

    def emitted(self, worker: Worker, number: int, response: Response) -> None:
        """A run has a response that is not the last one: it goes on."""
        batch = worker.runs.get(number)
        if batch is None or not batch.open:  # its client has gone, and the worker was told
            return
        pending = batch.requests[0]
        if pending.stream is None:
            self._give_up(worker, batch, Internal("the model answered more than once and is not decoupled"))
            return
        self._count_response(pending, response)
        note_steps(pending.request.context, response.times)
        request, version = pending.request, pending.revision.key.version
        try:
            outputs = answers.whole(response.outputs, _reshapes_of(pending.revision))
        except Internal as error:
            self._give_up(worker, batch, error)
            return
        pending.stream.put(InferResponse(request.model_name, version, outputs, request.id, final=False))

    def response_refused(self, worker: Worker, number: int, error: RoostError) -> None:
        """There was no memory for a response of a run that goes on."""
        batch = worker.runs.get(number)
        if batch is not None:
            self._give_up(worker, batch, error)

    def _give_up(self, worker: Worker, batch: Batch, error: RoostError) -> None:
        """The requests fail while their run still goes on: its slot is free when the worker says that it has ended."""
        self.settle_all(batch.requests, error)
        batch.open = 0
        if worker.link is not None:
            worker.link.send_cancel(batch.number)
            self._overruns.watch(batch)

    def settle_all(self, requests: Sequence[Pending], error: RoostError) -> None:
        """Fails requests; each gets an error of its own, since whoever raises it leaves traces in it."""
        for place, pending in enumerate(requests):
            self._ordered(pending, error if not place else _another(error))

    def _ordered(self, pending: Pending, outcome: InferResponse | RoostError) -> None:
        """Settles a request with the outcome of its run, once those before it are, where the order is to be kept."""
        if pending.revision.in_order is None:
            self.settle(pending, outcome)
        elif not pending.settled and pending.outcome is None:
            pending.outcome = outcome
            self._flush(pending.revision)

    def _flush(self, revision: Revision) -> None:
        order = revision.in_order
        while order and (order[0].settled or order[0].outcome is not None):
            pending = order.popleft()
            outcome = pending.outcome
            if outcome is not None:  # not by ``settle``, which would come back here for each of very many
                self._end_of(pending, outcome if isinstance(outcome, RoostError) else None)
                pending.tell(outcome)

    def settle(self, pending: Pending, outcome: InferResponse | RoostError) -> None:
        """Ends a request with its last response or an error, unless it has ended already."""
        if pending.settled:
            return
        self._end_of(pending, outcome if isinstance(outcome, RoostError) else None)
        pending.tell(outcome)
        if pending.revision.in_order:
            self._flush(pending.revision)

    def drop(self, pending: Pending) -> bool:
        """Ends a request that nobody waits for any more; False if it has ended already."""
        if pending.settled:
            return False
        self._end_of(pending, Code.CANCELLED)
        if pending.revision.in_order:
            self._flush(pending.revision)
        return True

    def leave(self, pending: Pending) -> None:
        """A request that runs was settled: if no other of its batch is left, the worker is told."""
        batch = pending.batch
        if batch is None:
            return
        batch.open -= 1
        worker = batch.instance.worker
        # One that has ended has told so: its number may mean another run by now, of the worker's next process.
        if not batch.open and worker.link is not None and worker.runs.get(batch.number) is batch:
            worker.link.send_cancel(batch.number)
            self._overruns.watch(batch)

    def _end_of(self, pending: Pending, error: RoostError | Code | None) -> None:
        pending.settled = True
        pending.outcome = None
        context = pending.request.context
        if pending.stream is not None and error is not None:
            counters = pending.revision.counters
            assert counters is not None
            counters.stream_failed(context, cancelled=error is Code.CANCELLED)
        if pending.recorded:
            self._stats.finished(pending.request, error)

    @staticmethod
    def _count_response(pending: Pending, response: Response) -> None:
        counters = pending.revision.counters
        assert counters is not None
        counters.responded(pending.request.context, response)


def _apart(requests: Sequence[Pending]) -> list[Pending]:
    """Those who still wait, each unlike all others from now on."""
    again = [pending for pending in requests if not pending.settled]
    for pending in again:
        pending.key = object()
    return again


def _another(error: RoostError) -> RoostError:
    return copy.copy(error).with_traceback(None)


def _reshapes_of(revision: Revision) -> Reshapes | None:
    contract = revision.contract or revision.former
    return contract.reshapes if contract is not None else None


def _run_of(batch: Batch) -> Run:
    requests, rows = batch.requests, batch.rows
    first = requests[0].request
    if len(requests) == 1:
        deadline = batch.deadline
        outputs: Sequence[str] = [output.name for output in first.outputs] if first.outputs else ()
        inputs = cast(Sequence[WireTensor], first.inputs)  # as good as: a copy of each would only cost time
    else:
        deadline = max([pending.deadline for pending in requests])
        outputs = _outputs_of(batch)
        inputs = [
            WireTensor(t.name, t.datatype, (rows, *t.shape[1:]), [p.request.inputs[place].data for p in requests])
            for place, t in enumerate(first.inputs)
        ]
    reshapes = _reshapes_of(batch.instance.revision)
    if reshapes is not None:
        inputs = [WireTensor(t.name, t.datatype, reshapes.input_shape(t), t.data) for t in inputs]
    deadline_ns = int(deadline * 1e9) if deadline < math.inf else 0
    if first.id and batch.instance.revision.is_code and len(requests) == 1:
        parameters = {**first.parameters, REQUEST_ID: first.id}
        return Run(batch.instance.id, deadline_ns, inputs, outputs, parameters)
    return Run(batch.instance.id, deadline_ns, inputs, outputs, first.parameters)


def _outputs_of(batch: Batch) -> Sequence[str]:
    """What anybody of a batch has asked for; empty if somebody wants all."""
    for pending in batch.requests:
        if pending.request.outputs:
            break
    else:
        return ()
    first = [output.name for output in batch.requests[0].request.outputs]
    names = dict.fromkeys(first)
    all_wanted = not first
    for pending in batch.requests:
        own = [output.name for output in pending.request.outputs]
        if own != first:
            batch.mixed = True
            all_wanted = all_wanted or not own
            names.update(dict.fromkeys(own))
    return [] if all_wanted else list(names)

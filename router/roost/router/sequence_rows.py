"""Batches of sequences that have rows of their own: what a model keeps in row 3 is that of the sequence in place 3.

Each run has the requests that are there, each in its sequence's row, and rows without a request, which the model is
told not to look at (READY), wherever a row before the last one has none. One run follows the other.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TypeAlias, cast

from roost.core.errors import Internal, RoostError
from roost.core.frames import WireTensor
from roost.core.requests import Done, InferRequest, InferResponse, RequestContext, RequestedOutput, Ticket
from roost.core.tensors import NO_PARAMETERS, Buffer, Tensor
from roost.registry_client.sequences import SequencePolicy, zeros
from roost.router import answers
from roost.router.intake import Taken
from roost.router.revision import Revision
from roost.router.sequence import Turn
from roost.router.sequence_tensors import Wiring

Submit: TypeAlias = Callable[..., Ticket]
"""Takes requests into their queues: ``Dispatcher.submit``."""


@dataclass(eq=False, slots=True)
class _Row:
    """A request that waits for a run, or is in one. Implements ``roost.core.requests.Ticket``."""

    batches: RowBatches
    place: int
    request: InferRequest
    done: Done
    key: object
    wiring: Wiring
    queued: float
    is_over: bool = False

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.is_over = True
        self.batches.abandoned(self)


class RowBatches:
    """The runs of one revision.

    Args:
        revision: The revision, of which there is one loaded copy.
        policy: How long a run waits for more rows.
        submit: Takes runs into the revision's queue.
    """

    def __init__(self, revision: Revision, policy: SequencePolicy, submit: Submit) -> None:
        self._revision = revision
        self._policy = policy
        self._submit = submit
        self._waiting: list[_Row] = []  # at most one for each place, the first one first
        self._running: list[_Row] = []
        self._ticket: Ticket | None = None
        self._looking: asyncio.Handle | None = None

    def submit(self, turn: Turn, request: InferRequest, done: Done, taken: Taken, wiring: Wiring) -> Ticket:
        """Takes a request, with all the inputs that its model is to get; see ``Dispatcher.submit``."""
        assert turn.sequence.place is not None
        now = time.monotonic()
        request.context.queued = request.context.queued or now
        row = _Row(self, turn.sequence.place, request, done, taken[1], wiring, now)
        self._waiting.append(row)
        self._look_soon(0.0)
        return row

    def abandoned(self, row: _Row) -> None:
        """A request is not to be answered any more; a run that is for nobody is ended."""
        if row in self._waiting:
            self._waiting.remove(row)
        elif self._ticket is not None and all(row.is_over for row in self._running):
            self._ticket.cancel()
            self._ended()

    def _look_soon(self, delay_s: float) -> None:
        """At the end of this turn of the loop, so that what comes together runs together, or when the delay is over."""
        if self._looking is not None:
            self._looking.cancel()
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(delay_s, self._look) if delay_s else loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = None
        if self._running or not self._waiting:
            return
        policy, now = self._policy, time.monotonic()
        wait_s = self._waiting[0].queued + policy.max_delay_s - now
        if wait_s > 0 and len(self._waiting) < policy.minimum_utilization * policy.candidates:
            self._look_soon(wait_s)
            return
        key = self._waiting[0].key
        self._running = [row for row in self._waiting if row.key == key]  # others have other shapes
        self._waiting = [row for row in self._waiting if row.key != key]
        rows = 1 + max(row.place for row in self._running)
        try:
            combined = _combined(self._running, rows)
            taken = rows, object(), sum(_size(tensor) for tensor in combined.inputs)
            self._ticket = self._submit(self._revision, combined, self._done_with(combined, rows), taken)
        except RoostError as error:
            self._settle([error] * len(self._running))

    def _done_with(self, combined: InferRequest, rows: int) -> Done:
        def done(outcome: InferResponse | RoostError) -> None:
            running, context = self._running, combined.context
            for row in running:
                _note_steps(row.request.context, context)
            if isinstance(outcome, RoostError):
                self._settle([outcome] * len(running))
                return
            outputs = cast(Items[WireTensor], outcome.outputs)
            split = answers.parts(outputs, [_ONE_ROW] * rows, rows, None)
            if split is None:
                self._settle([Internal("the model's outputs do not have as many rows as its inputs")] * len(running))
                return
            version = outcome.model_version
            self._settle([_response(row, split[row.place], version) for row in running])

        return done

    def _settle(self, outcomes: Items[InferResponse | RoostError]) -> None:
        running = self._running
        self._ended()
        for row, outcome in zip(running, outcomes, strict=True):
            if not row.is_over:
                row.is_over = True
                # Whoever raises an error leaves traces in it.
                row.done(copy.copy(outcome) if isinstance(outcome, RoostError) else outcome)

    def _ended(self) -> None:
        self._running, self._ticket = [], None
        if self._waiting:
            self._look_soon(0.0)


class _OneRow:
    rows = 1


_ONE_ROW = _OneRow()


def _combined(running: Items[_Row], rows: int) -> InferRequest:
    """One request of all rows."""
    first = running[0].request
    by_place = {row.place: row.request.inputs for row in running}
    own = running[0].wiring.absent()
    count = len(first.inputs) - len(own)
    absent = [*(_nothing(tensor) for tensor in first.inputs[:count]), *own]
    inputs = []
    for position, tensor in enumerate(first.inputs):
        parts = [by_place.get(place, absent)[position].data for place in range(rows)]
        shape = (rows, *tensor.shape[1:])
        inputs.append(Tensor(tensor.name, tensor.datatype, shape, cast(Buffer, parts), NO_PARAMETERS))
    deadline = max(row.request.context.deadline for row in running)
    context = RequestContext(time.monotonic(), deadline)
    return InferRequest(first.model_name, first.model_version, context, inputs, _outputs(running))


def _outputs(running: Items[_Row]) -> list[RequestedOutput]:
    """What any of them wants; none for all."""
    if any(not row.request.outputs for row in running):
        return []
    names = dict.fromkeys(output.name for row in running for output in row.request.outputs)
    return [RequestedOutput(name) for name in names]


def _nothing(tensor: Tensor) -> Tensor:
    """What an input has in a row without a request."""
    return Tensor(tensor.name, tensor.datatype, tensor.shape, zeros(tensor.datatype, tensor.shape), NO_PARAMETERS)


def _size(tensor: Tensor) -> int:
    return sum(memoryview(part).nbytes for part in cast(list[Buffer], tensor.data))


def _response(row: _Row, outputs: list[Tensor], version: str) -> InferResponse:
    request = row.request
    wanted = answers.wanted(outputs, [output.name for output in request.outputs])
    return InferResponse(request.model_name, version, wanted, request.id, NO_PARAMETERS)


def _note_steps(context: RequestContext, run: RequestContext) -> None:
    context.load_wait_s = context.load_wait_s or run.load_wait_s
    context.run_started, context.infer_started = run.run_started, run.infer_started
    context.infer_ended, context.run_ended = run.infer_ended, run.run_ended

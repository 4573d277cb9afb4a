"""One request of a sequence: it waits for its turn, is made what the model is to get, and is run."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import TYPE_CHECKING

from roost.core.errors import DeadlineExceeded, Limit, RoostError, Unavailable
from roost.core.requests import InferRequest, InferResponse, RequestedOutput, Ticket
from roost.core.tasks import by_deadline
from roost.core.tensors import Parameters, Tensor
from roost.registry_client.sequences import PARAMETERS
from roost.router.intake import Taken
from roost.router.sequence import HERE, Turn, nobody
from roost.router.sequence_tensors import Wiring
from roost.router.streams import ResponseStream

if TYPE_CHECKING:
    from roost.router.sequences import Sequences


class SequenceRequest:
    """A request whose turn has come, or will.

    Args:
        sequences: Those of its revision.
        request: The request.
        turn: Its turn.

    Attributes:
        request: What is to be checked: the request without what only the server needs to know of its sequence.
        is_answered: Whether its run went well.
    """

    def __init__(self, sequences: Sequences, request: InferRequest, turn: Turn) -> None:
        self._sequences = sequences
        self._original = request
        self.request = request if sequences.revision.is_code else _without_parameters(request)
        self.turn = turn
        self.is_answered = False
        self._error: RoostError | None = None
        self._ticket: Ticket | None = None
        self._waits: asyncio.Future[InferResponse | None] | None = None
        self._stream: ResponseStream | None = None
        turn.told = self._told

    async def come(self) -> None:
        """Waits until the turn has come.

        Raises:
            RoostError: If it does not.
        """
        if self.turn.phase is HERE:
            return
        context = self._original.context
        context.queued = context.queued or time.monotonic()
        waits = self._waits = asyncio.get_running_loop().create_future()
        try:
            await until(context.deadline, waits)
        finally:
            self._waits = None

    async def run(self, taken: Taken) -> InferResponse:
        """Runs the request, which was checked, and keeps what the model gives for the next one.

        Raises:
            RoostError: How it failed.
        """
        sequences, sequence = self._sequences, self.turn.sequence
        wiring = await self._prepare()
        try:
            response = await self._outcome(wiring, taken)
        except Unavailable:
            sequences.lost_by(sequence)
            raise
        if self._error is not None:  # it was given up in the instant since the model answered
            raise self._error
        if not self.turn.end:
            sequences.keep(sequence, wiring.next_state(response.outputs))
        self.is_answered = True
        response.outputs = wiring.clients_outputs(self._original, response.outputs)
        return response

    async def stream(self, taken: Taken) -> AsyncGenerator[InferResponse, None]:
        """Runs the request of a decoupled model and yields what it answers.

        Raises:
            RoostError: How it failed.
        """
        wiring = await self._prepare()
        stream = self._stream = ResponseStream()
        sequences = self._sequences
        inner, taken = self._inner(wiring, taken)
        self._ticket = sequences.around.submit(sequences.revision, inner, stream.end, taken, stream=stream)
        try:
            final = False
            while not final:
                response = await stream.take()
                final = self.is_answered = response.final
                yield response
        except Unavailable:
            sequences.lost_by(self.turn.sequence)
            raise
        finally:
            self._ticket.cancel()
            stream.close()

    def close(self) -> None:
        """Nobody waits any more; without this, request and turn would keep each other until a garbage collection."""
        self.turn.told = nobody
        self._waits = self._ticket = self._stream = None

    async def _prepare(self) -> Wiring:
        sequences = self._sequences
        wiring = await sequences.wiring()
        if sequences.policy.keeps_inside or sequences.revision.retired:
            await sequences.bind(self.turn, self._original.context.deadline)
        if self._error is not None:
            raise self._error
        return wiring

    def _inner(self, wiring: Wiring, taken: Taken) -> tuple[InferRequest, Taken]:
        """The request as the model is to get it."""
        request = self.request
        own = wiring.inputs(self.turn)
        wanted = [output.name for output in request.outputs]
        names = wiring.outputs(wanted)
        outputs = request.outputs if names == wanted else [RequestedOutput(name) for name in names]
        rows, key, nbytes = taken
        # Tensors of open dimensions may differ between sequences.
        key = (key, *(tensor.shape for tensor in own)) if own else key
        inner = _copy(request, [*request.inputs, *own], outputs, request.parameters)
        return inner, (rows, key, nbytes + sum(len(tensor.data) for tensor in own))

    async def _outcome(self, wiring: Wiring, taken: Taken) -> InferResponse:
        sequences = self._sequences
        outcome: asyncio.Future[InferResponse | None] = asyncio.get_running_loop().create_future()
        inner, taken = self._inner(wiring, taken)
        self._waits = outcome
        if sequences.rows is None:
            self._ticket = sequences.around.submit(sequences.revision, inner, self._done, taken)
        else:
            self._ticket = sequences.rows.submit(self.turn, inner, self._done, taken, wiring)
        try:
            await until(inner.context.deadline if sequences.rows is not None else math.inf, outcome)
        except (asyncio.CancelledError, DeadlineExceeded):
            self._ticket.cancel()
            raise
        response = outcome.result()
        assert response is not None
        return response

    def _done(self, outcome: InferResponse | RoostError) -> None:
        """See ``roost.core.requests.Done``."""
        waits = self._waits
        if waits is None or waits.done():
            return
        if isinstance(outcome, RoostError):
            waits.set_exception(outcome)
        else:
            waits.set_result(outcome)

    def _told(self, error: RoostError | None) -> None:
        """The turn has come, or the request is not to be answered."""
        self._error = error
        waits = self._waits
        if error is None:
            if waits is not None and not waits.done():
                waits.set_result(None)
            return
        if self._ticket is not None:
            self._ticket.cancel()
        if self._stream is not None:
            self._stream.end(error)
        if waits is not None and not waits.done():
            waits.set_exception(error)


def _without_parameters(request: InferRequest) -> InferRequest:
    """Requests of different sequences are alike but for these, and only programs want to know of them."""
    parameters = {name: value for name, value in request.parameters.items() if name not in PARAMETERS}
    return _copy(request, request.inputs, request.outputs, parameters)


def _copy(
    request: InferRequest, inputs: list[Tensor], outputs: list[RequestedOutput], parameters: Parameters
) -> InferRequest:
    """As ``dataclasses.replace`` does, which takes longer than all else that is done to a request here."""
    return InferRequest(
        request.model_name,
        request.model_version,
        request.context,
        inputs,
        outputs,
        request.id,
        parameters,
        request.namespace,
        request.regions,
    )


async def until(deadline: float, what: Awaitable[object]) -> None:
    """Waits for something, but no longer than until a deadline.

    Raises:
        DeadlineExceeded: If that passes before.
    """
    try:
        async with by_deadline(deadline):
            await what
    except TimeoutError:
        text = "Request timeout expired while the request was in line in its sequence"
        raise DeadlineExceeded(text, limit=Limit.DEADLINE) from None

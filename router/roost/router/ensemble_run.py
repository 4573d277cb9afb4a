"""One request to an ensemble on its way through the steps, in callbacks: each goes once all that it takes is there.

What a step answers is handed on as it is: a view on the memory that it lies in. Where that is the arena of the worker
that runs the next step, nothing is copied.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

from roost.core.errors import Internal, RoostError
from roost.core.requests import Done, InferRequest, InferResponse, RequestContext, RequestedOutput, Ticket
from roost.core.tensors import NO_PARAMETERS, Tensor
from roost.router.ensemble_plan import Plan, Route

log = logging.getLogger(__name__)

Ask: TypeAlias = Callable[[InferRequest, Done], Ticket]
"""Sends a step's request; may raise a ``RoostError`` at once instead."""


class Spent(NamedTuple):
    """What a request waited and computed for, in seconds: all steps of the longest way through an ensemble together."""

    load_wait_s: float = 0.0
    queue_s: float = 0.0
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0

    def plus(self, context: RequestContext) -> Spent:
        """With a step that has ended."""
        if not context.run_ended:
            return self
        waited_s = context.run_started - context.queued - context.load_wait_s
        return Spent(
            self.load_wait_s + context.load_wait_s,
            self.queue_s + max(0.0, waited_s),
            self.input_s + context.infer_started - context.run_started,
            self.infer_s + context.infer_ended - context.infer_started,
            self.output_s + context.run_ended - context.infer_ended,
        )


class Ended(NamedTuple):
    """All steps of a route have answered: the tensors that are wanted, and what they took."""

    tensors: Mapping[str, Tensor]
    spent: Spent


@dataclass(slots=True)
class StepContext(RequestContext):
    """The context of a step's request.

    Attributes:
        depth: How many ensembles it is in.
    """

    depth: int = 1


def step_request(
    plan: Plan,
    number: int,
    asked: list[RequestedOutput],
    tensors: Mapping[str, Tensor],
    request: InferRequest,
) -> InferRequest:
    """What a step is asked on behalf of a request: with its deadline, priority, parameters, id and trace.

    An input whose tensor is not there is left out; whether the model can do without it the model's own check says.
    """
    inputs: list[Tensor] = []
    for fit in plan.inputs[number]:
        tensor = tensors.get(fit.tensor)
        if tensor is not None:
            shape = fit.shape_of(tensor.shape)
            inputs.append(Tensor(fit.name, tensor.datatype, shape, tensor.data, NO_PARAMETERS))
    of, step = request.context, plan.ensemble.steps[number]
    context = StepContext(
        time.monotonic(),
        of.deadline,
        of.caller,
        of.priority,
        of.traceparent,
        depth=depth_of(of) + 1,
    )
    return InferRequest(step.model, step.version, context, inputs, asked, request.id, request.parameters)


def depth_of(context: RequestContext) -> int:
    """How many ensembles a request is in."""
    return context.depth if isinstance(context, StepContext) else 0


class RouteRun:
    """A request on one route.

    Args:
        plan: The ensemble.
        route: The steps that go.
        request: Whose deadline, priority and parameters they have.
        tensors: What is there before; tensors that no step takes any more are taken out.
        ask: Sends the requests of steps.
    """

    __slots__ = ("_ask", "_future", "_left", "_plan", "_request", "_route", "_tensors", "_tickets", "_uses", "_waits")

    def __init__(self, plan: Plan, route: Route, request: InferRequest, tensors: dict[str, Tensor], ask: Ask) -> None:
        self._plan = plan
        self._route = route
        self._request = request
        self._tensors = tensors
        self._ask = ask
        self._waits = dict(route.waits)
        self._uses = dict(route.uses)
        self._left = len(route.steps)
        self._tickets: dict[int, Ticket] = {}
        self._future: asyncio.Future[Ended | RoostError] = asyncio.get_running_loop().create_future()

    async def ended(self) -> Ended | RoostError:
        """Runs all steps; returns the error of the first one that fails. Cancelling it cancels those under way."""
        if not self._left:
            return Ended(self._tensors, Spent())
        try:
            for number, waits in self._route.waits.items():
                if not waits and not self._future.done():
                    self._begin(number, Spent())
            return await self._future
        except BaseException:
            self._cancel()
            raise

    def _begin(self, number: int, spent: Spent) -> None:
        request = step_request(self._plan, number, self._route.outputs[number], self._tensors, self._request)
        for tensor in set(self._plan.ensemble.steps[number].inputs.values()):
            self._used(tensor)
        try:
            self._tickets[number] = self._ask(request, partial(self._answered, number, request.context, spent))
        except RoostError as error:
            self._fail(number, error)

    def _used(self, tensor: str) -> None:
        """A step has taken a tensor: the memory of one that nobody else wants goes when that step ends."""
        self._uses[tensor] -= 1
        if not self._uses[tensor]:
            self._tensors.pop(tensor, None)

    def _answered(
        self, number: int, context: RequestContext, spent: Spent, outcome: InferResponse | RoostError
    ) -> None:
        """See ``Done``."""
        self._tickets.pop(number, None)
        if self._future.done():
            return
        if isinstance(outcome, RoostError):
            self._fail(number, outcome)
            return
        try:
            self._go_on(number, outcome, spent.plus(context))
        except Exception:
            log.exception("a step of ensemble '%s' could not be followed by the next one", self._plan.name)
            self._fail(number, Internal("its answer could not be handed on, see the server's log"))

    def _go_on(self, number: int, response: InferResponse, spent: Spent) -> None:
        names = self._plan.ensemble.steps[number].outputs
        for output in response.outputs:
            tensor = names.get(output.name)
            if tensor in self._uses:
                self._tensors[tensor] = output
        self._left -= 1
        if not self._left:
            self._future.set_result(Ended(self._tensors, spent))
            return
        for follower in self._plan.ensemble.behind[number]:
            if follower in self._waits:
                self._waits[follower] -= 1
                if not self._waits[follower] and not self._future.done():
                    self._begin(follower, spent)

    def _fail(self, number: int, error: RoostError) -> None:
        if not self._future.done():
            self._future.set_result(self._plan.error_at(number, error))
            self._cancel()

    def _cancel(self) -> None:
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets.values():
            ticket.cancel()

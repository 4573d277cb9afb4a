"""Inference graphs, KServe's resource: which models a request is put to, one after the other, side by side or instead.

Here are graphs as they were read (``graph_files``) and the order in which their steps are asked. What goes along their
edges is the business of whoever asks the models: this module only hands it on, so that it knows neither JSON nor
tensors. A failure of a model is an answer like any other, since a step that is ``Soft`` goes on with it.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Generic, Protocol, TypeVar

from roost.core.errors import Code, Internal, NotFound, RoostError
from roost.router.graph_conditions import Condition

ROOT = "root"
_NOT_PROCESSED = "Failed to process request"


class Routing(StrEnum):
    """What a node does with its steps."""

    SEQUENCE = "Sequence"
    SPLITTER = "Splitter"
    ENSEMBLE = "Ensemble"
    SWITCH = "Switch"


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a node.

    Attributes:
        key: Its name, else its place among the steps of its node.
        node: The node that it leads to; empty if it asks a model.
        model: The model, or route, that it asks.
        version: The version of the model; empty: what its policy or route says.
        takes_response: Whether it gets what the step before has answered, and not what the node got.
        condition: In a Switch, when it is taken; in a Sequence, what the answer before has to hold to go on.
        weight: The share of requests that it gets in a Splitter, in percent.
        hard: Whether its failure is the node's.
    """

    key: str
    node: str = ""
    model: str = ""
    version: str = ""
    takes_response: bool = False
    condition: Condition | None = None
    weight: int = 0
    hard: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A node: steps and what is done with them."""

    routing: Routing
    steps: tuple[Step, ...]

    def pick(self, draw: float) -> Step:
        """The step of a Splitter for a draw from [0, 1): each gets its share."""
        edges = list(itertools.accumulate(step.weight for step in self.steps))
        return self.steps[bisect.bisect_right(edges, draw * edges[-1])]


class GraphCounts:
    """The requests to a graph.

    Attributes:
        requests: How many have ended, by how they did; None: with an answer.
        seconds: What they took together.
    """

    __slots__ = ("requests", "seconds")

    def __init__(self) -> None:
        self.requests: dict[Code | None, int] = {None: 0}
        self.seconds = 0.0

    def ended(self, code: Code | None, took_s: float) -> None:
        """Counts one."""
        self.requests[code] = self.requests.get(code, 0) + 1
        self.seconds += took_s


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph.

    Attributes:
        name: Its name.
        nodes: Its nodes by name, ``root`` among them; they lead nowhere in circles.
        timeout_s: How long a request may take at most.
        step_timeout_s: How long one step of it may.
        counts: Its requests since the start; its steps count as requests to their models.
    """

    name: str
    nodes: Mapping[str, Node]
    timeout_s: float = math.inf
    step_timeout_s: float = math.inf
    counts: GraphCounts = field(default_factory=GraphCounts, compare=False, repr=False)

    def models(self) -> list[tuple[str, str]]:
        """The models that it may ask, with their versions, sorted."""
        steps = itertools.chain.from_iterable(node.steps for node in self.nodes.values())
        return sorted({(step.model, step.version) for step in steps if step.model})


class NotRouted(NotFound):
    """No step of the root, a Switch, fits the request.

    Attributes:
        cause: That it is so; the message begins with what KServe calls the error.
    """

    cause: ClassVar[str] = "None of the routes matched with the switch condition"

    def __init__(self) -> None:
        super().__init__(f"{_NOT_PROCESSED}: {self.cause}")


class GraphFailed(Internal):
    """A graph could not go on, whatever its steps allow to fail.

    Attributes:
        cause: Why; the message begins with what KServe calls the error.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"{_NOT_PROCESSED}: {cause}")
        self.cause = cause


class Payload(Protocol):
    """What goes along an edge: the request, or an answer."""

    async def meets(self, condition: Condition) -> bool:
        """Whether a condition holds for it."""


class Answer(Payload, Protocol):
    """What a step has answered."""

    @property
    def failure(self) -> RoostError | None:
        """Why it is no good answer, if so."""


Q = TypeVar("Q", bound=Payload)
A = TypeVar("A", bound=Answer)
Ask = Callable[[Step, Q | A], Awaitable[A]]
Merge = Callable[[Mapping[str, A]], A]


class GraphRun(Generic[Q, A]):
    """One request on its way through a graph.

    Args:
        graph: The graph.
        ask: Asks the model of a step; a model's failure is an answer.
        merge: Makes one answer of those of an Ensemble, by the keys of its steps.
        draw: Gives numbers from [0, 1), uniform, which Splitters go by.
    """

    def __init__(self, graph: Graph, ask: Ask[Q, A], merge: Merge[A], draw: Callable[[], float]) -> None:
        self._graph = graph
        self._ask = ask
        self._merge = merge
        self._draw = draw

    async def answer(self, request: Q) -> A:
        """The answer to a request; cancelling it cancels all steps that are under way.

        Raises:
            NotRouted: If no step of a Switch at the root fits.
            GraphFailed: If no step of another Switch fits.
            RoostError: If an answer can't be looked at, for a condition.
        """
        return await self._node(ROOT, request)

    async def _node(self, name: str, given: Q | A) -> A:
        node = self._graph.nodes[name]
        if node.routing is Routing.SEQUENCE:
            return await self._sequence(node, given)
        if node.routing is Routing.ENSEMBLE:
            return await self._ensemble(node, given)
        if node.routing is Routing.SPLITTER:
            return await self._step(node.pick(self._draw()), given)
        for step in node.steps:
            if step.condition is not None and await given.meets(step.condition):
                return await self._step(step, given)
        raise NotRouted

    async def _step(self, step: Step, given: Q | A) -> A:
        if not step.node:
            return await self._ask(step, given)
        try:
            return await self._node(step.node, given)
        except NotRouted as error:
            raise GraphFailed(f"{error.cause} of node '{step.node}'") from None

    async def _sequence(self, node: Node, given: Q | A) -> A:
        answer: A | None = None
        for step in node.steps:
            if answer is None:
                answer = await self._step(step, given)
            elif step.condition is not None and not await answer.meets(step.condition):
                break
            else:
                answer = await self._step(step, answer if step.takes_response else given)
            if step.hard and answer.failure is not None:
                break
        assert answer is not None, "a node has steps"
        return answer

    async def _ensemble(self, node: Node, given: Q | A) -> A:
        """All steps at once; the first in their order that has failed and may not decides, the others are given up."""
        answers: dict[str, A] = {}
        decided: A | RoostError | None = None
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._outcome(step, given)) for step in node.steps]
            for step, task in zip(node.steps, tasks, strict=True):
                outcome = await task
                if isinstance(outcome, RoostError) or (step.hard and outcome.failure is not None):
                    decided = outcome
                    break
                answers[step.key] = outcome
            for task in tasks:
                task.cancel()
        if isinstance(decided, RoostError):
            raise decided
        return self._merge(answers) if decided is None else decided

    async def _outcome(self, step: Step, given: Q | A) -> A | RoostError:
        """An answer, or why the graph can't go on here; a task group would wrap that."""
        try:
            return await self._step(step, given)
        except RoostError as error:
            return error

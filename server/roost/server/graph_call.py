"""What the steps of one request to an inference graph have in common: whose request it is, and how long it may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar, TypeVarTuple, Unpack

from roost.core.errors import Unimplemented
from roost.core.metadata import ModelMetadata
from roost.core.requests import InferRequest, InferResponse, RequestContext
from roost.core.tensors import Parameters
from roost.router.graphs import Graph
from roost.server.data_plane_protocol import DataPlane
from roost.server.offload import Held, Offload
from roost.server.region_io import uses_regions
from roost.server.rest.codec_json import LARGE_JSON_BYTES
from roost.server.rest.exchange import metadata_in_time

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Form: TypeAlias = Literal["v2", "rows", "columns"]
"""How answers are written as JSON: the v2 protocol's way, or v1's, which has two."""


class GraphCall:
    """A request to a graph.

    Args:
        data_plane: Answers the requests of its steps, each of them counted as its model's.
        graph: The graph.
        context: The request's.
        offload: Where much JSON is read and written.
        held: What is held as long as a thread works for the request.
        parameters: Request parameters that all models get.
        form: How answers are written.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        graph: Graph,
        context: RequestContext,
        offload: Offload,
        held: Held | None,
        parameters: Parameters,
        form: Form,
    ) -> None:
        self._data_plane = data_plane
        self._offload = offload
        self._held = held
        self._received = context.received
        self._deadline = min(context.deadline, context.received + graph.timeout_s)
        self._timeout_s = context.timeout_s
        self._priority = context.priority
        self._caller = context.caller
        self._traceparent = context.traceparent
        self._step_timeout_s = graph.step_timeout_s
        self._parameters = parameters
        self.form = form

    def context(self) -> RequestContext:
        """A context for a step; as long as its request is read, it counts from when the graph's was received."""
        return RequestContext(
            self._received,
            self._deadline,
            self._caller,
            self._priority,
            self._traceparent,
            timeout_s=self._timeout_s,
        )

    def note(self, context: RequestContext) -> None:
        """Has the deadline and the priority that were read for one step hold for those after it."""
        self._deadline = min(self._deadline, context.deadline)
        self._timeout_s = context.timeout_s
        self._priority = context.priority

    async def run(self, size_bytes: int, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Calls a function that goes through so much JSON; in a thread if that takes long."""
        if size_bytes > LARGE_JSON_BYTES:
            return await self._offload.run(self._held, function, *args)
        return function(*args)

    async def metadata(self, model: str, version: str) -> ModelMetadata:
        """The metadata of a model, which may have to be loaded for it.

        Raises:
            RoostError: If there is none, or not in time.
        """
        return await metadata_in_time(self._data_plane, model, version, self.context())

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answers the request of a step.

        Raises:
            RoostError: What ``DataPlane.infer`` raises.
            Unimplemented: If tensors are in shared memory.
        """
        if uses_regions(request):
            raise Unimplemented("tensors in shared memory can't be sent to a graph")
        if self._parameters:
            request.parameters = {**request.parameters, **self._parameters}
        context = request.context
        context.received = time.monotonic()
        context.deadline = min(context.deadline, context.received + self._step_timeout_s)
        return await self._data_plane.infer(request)

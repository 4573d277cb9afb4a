"""A data plane that answers for inference graphs as it does for models; only servers that have graphs use it."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from roost.core.errors import NotFound, Unimplemented
from roost.core.metadata import ModelMetadata
from roost.core.requests import Done, InferRequest, InferResponse, Ticket
from roost.proto import model_config_pb2 as mc
from roost.router.graphs import Graph
from roost.router.router import Router
from roost.server.data_plane import RouterDataPlane
from roost.server.graph_answers import VERSION, answer_of
from roost.server.graph_call import GraphCall
from roost.server.graph_questions import TensorQuestion
from roost.server.offload import Offload
from roost.server.region_io import uses_regions


class GraphDataPlane(RouterDataPlane):
    """A graph goes before a model of its name; what is not a graph's is answered as by ``RouterDataPlane``.

    Args:
        graphs: The graphs by name.
        router: Answers for models.
        options: What ``RouterDataPlane`` takes besides.
    """

    def __init__(self, graphs: Mapping[str, Graph], router: Router, **options: Any) -> None:
        super().__init__(router, **options)
        self._graphs = graphs
        self._offload = Offload("graphs")

    async def close(self) -> None:
        """Ends its threads; nobody may call it any more."""
        await super().close()
        await self._offload.close()

    def begin(self, request: InferRequest, done: Done) -> Ticket | None:
        """See ``DataPlane``."""
        return None if request.model_name in self._graphs else super().begin(request, done)

    async def _infer(self, request: InferRequest) -> InferResponse:
        graph = self._graphs.get(request.model_name)
        return await (super()._infer(request) if graph is None else self._answer(graph, request))

    def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """See ``DataPlane``; a graph answers once."""
        graph = self._graphs.get(request.model_name)
        return super().infer_stream(request) if graph is None else self._stream(graph, request)

    async def model_ready(self, name: str, version: str = "") -> bool:
        """See ``DataPlane``; a graph is ready if its models are."""
        graph = self._graphs.get(name)
        if graph is None:
            return await super().model_ready(name, version)
        if version not in ("", VERSION):
            return False
        return all([await super(GraphDataPlane, self).model_ready(*model) for model in graph.models()])

    async def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """See ``DataPlane``.

        Raises:
            Unimplemented: For a graph, whose inputs and outputs depend on the way that a request takes.
        """
        self._check_is_model(name)
        return await super().model_metadata(name, version)

    async def model_config(self, name: str, version: str = "") -> mc.ModelConfig:
        """See ``DataPlane``.

        Raises:
            Unimplemented: For a graph, likewise.
        """
        self._check_is_model(name)
        return await super().model_config(name, version)

    def _check_is_model(self, name: str) -> None:
        if name in self._graphs:
            raise Unimplemented(
                f"'{name}' is an inference graph, which has no inputs and outputs of its own; "
                f"it takes JSON for its models at /graphs/{name}"
            )

    async def _stream(self, graph: Graph, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        yield await self._answer(graph, request)

    async def _answer(self, graph: Graph, request: InferRequest) -> InferResponse:
        if request.model_version not in ("", VERSION):
            raise NotFound(f"Request for unknown model: '{graph.name}' version {request.model_version} is not found")
        if uses_regions(request):
            raise Unimplemented("tensors in shared memory can't be sent to a graph")
        if any(output.classification for output in request.outputs):
            raise Unimplemented("the outputs of a graph can't be classified")
        call = GraphCall(self, graph, request.context, self._offload, None, request.parameters, "v2")
        answer = await answer_of(call, graph, TensorQuestion(call, request), random.random)
        return answer.response(graph.name, [output.name for output in request.outputs], request.id)

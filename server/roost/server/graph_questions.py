"""What is put to inference graphs: JSON of either protocol, or tensors; how models get it, and conditions see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from roost.core.requests import InferRequest
from roost.router.graph_conditions import Condition
from roost.server.graph_call import Form, GraphCall
from roost.server.graph_tensors import as_json, size_bytes_of
from roost.server.offload import without_collections
from roost.server.rest.codec import infer_of
from roost.server.rest.v1_codec import predict_of


class GraphPayload(ABC):
    """A question or an answer; see ``roost.router.graphs.Payload``.

    Args:
        call: The request that it belongs to.
    """

    def __init__(self, call: GraphCall) -> None:
        self._call = call
        self._document: Any = None
        self._document_bytes = 0

    async def meets(self, condition: Condition) -> bool:
        """Whether a condition holds for it as JSON.

        Raises:
            InvalidArgument: If it can't be written as JSON.
        """
        if self._document is None:
            self._document, self._document_bytes = await self._read()
        return await self._call.run(self._document_bytes, condition.holds, self._document)

    @abstractmethod
    async def request(self, model: str, version: str) -> InferRequest:
        """The request that puts it to a model.

        Raises:
            RoostError: If that is not possible, or nothing can be known of the model.
        """

    @abstractmethod
    async def _read(self) -> tuple[Any, int]:
        """It as parsed JSON, and how many bytes that stands for."""


class JsonQuestion(GraphPayload):
    """What a client has asked in JSON.

    Args:
        call: The request that it belongs to.
        document: The JSON, parsed.
        body: Its text.
    """

    def __init__(self, call: GraphCall, document: Any, body: memoryview) -> None:
        super().__init__(call)
        self._asked = document
        self._body = body

    async def request(self, model: str, version: str) -> InferRequest:
        """See ``GraphPayload``."""
        call, body, document = self._call, self._body, _with_instances(self._asked)
        context = call.context()
        request: InferRequest
        if call.form == "v2":
            of_v2 = document, body, len(body), model, version, context
            request = await call.run(len(body), without_collections, infer_of, *of_v2)
        else:
            specs = (await call.metadata(model, version)).inputs
            of_v1 = document, body, specs, model, version, context
            request = await call.run(len(body), without_collections, predict_of, *of_v1)
        call.note(context)
        return request

    async def _read(self) -> tuple[Any, int]:
        return self._asked, len(self._body)


class TensorQuestion(GraphPayload):
    """What a client has asked of a graph as of a model.

    Args:
        call: The request that it belongs to.
        asked: The client's request.
    """

    def __init__(self, call: GraphCall, asked: InferRequest) -> None:
        super().__init__(call)
        self._asked = asked

    async def request(self, model: str, version: str) -> InferRequest:
        """See ``GraphPayload``; the outputs that are asked for are the graph's, not those of each model."""
        return InferRequest(model, version, self._call.context(), list(self._asked.inputs), id=self._asked.id)

    async def _read(self) -> tuple[Any, int]:
        asked = self._asked
        size_bytes = size_bytes_of(asked.inputs)
        inputs = await self._call.run(size_bytes, without_collections, as_json, asked.inputs)
        return {"id": asked.id, "parameters": dict(asked.parameters), "inputs": inputs}, size_bytes


def form_of(document: Any) -> Form:
    """How an answer to JSON is written: a request of v2 is one whose inputs say their datatypes."""
    inputs = document.get("inputs") if isinstance(document, dict) else None
    if isinstance(inputs, list) and all(isinstance(item, dict) and "datatype" in item for item in inputs):
        return "v2"
    return "rows" if inputs is None else "columns"


def _with_instances(document: Any) -> Any:
    """What another graph has answered is as good as instances."""
    if isinstance(document, dict) and "predictions" in document and not document.keys() & {"instances", "inputs"}:
        return {**document, "instances": document["predictions"]}
    return document

"""What models answer in inference graphs, and a graph in the end.

An answer becomes JSON only when it leaves the graph or a condition looks at it. A model that is given the answer of
another gets its tensors: what v1 calls predictions are the next one's instances, what v2 calls outputs its inputs.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from roost.core.errors import Code, InvalidArgument, RoostError
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Buffer, Tensor
from roost.router.graphs import Graph, GraphRun, Step
from roost.server.graph_call import GraphCall
from roost.server.graph_questions import GraphPayload
from roost.server.graph_tensors import have_datatypes, inputs_of, named, retyped, selected, size_bytes_of
from roost.server.offload import without_collections
from roost.server.rest.codec import RestInferRequest
from roost.server.rest.codec_json import parse_json
from roost.server.rest.codec_response import encode_large_response, write_outputs
from roost.server.rest.errors import MalformedRequest, error_body
from roost.server.rest.v1_response import encode_predictions

VERSION = "1"
"""The version of all graphs, for those who ask for one."""


class GraphAnswer(GraphPayload):
    """An answer; see ``roost.router.graphs.Answer``.

    Attributes:
        failure: Why it is no good answer, if so.
        id: What the request to the model was called, and the next one is.
    """

    failure: RoostError | None = None
    id = ""

    @abstractmethod
    def tensors(self) -> Sequence[Tensor]:
        """What it consists of."""

    @abstractmethod
    async def json(self) -> list[Buffer]:
        """It as JSON, in pieces.

        Raises:
            InvalidArgument: If it can't be written so.
        """

    @abstractmethod
    def response(self, graph: str, wanted: Sequence[str], id_: str) -> InferResponse:
        """It as the answer of a model.

        Args:
            graph: What the model is called.
            wanted: The outputs that are asked for; empty: all.
            id_: The id of the request.

        Raises:
            InvalidArgument: If there is no such output.
            RoostError: The failure.
        """

    async def request(self, model: str, version: str) -> InferRequest:
        """See ``GraphPayload``."""
        call = self._call
        specs = (await call.metadata(model, version)).inputs
        inputs = inputs_of(self.tensors(), specs, model)
        if call.form != "v2" and not have_datatypes(inputs, specs):
            inputs = await call.run(size_bytes_of(inputs), without_collections, retyped, inputs, specs, model)
        return InferRequest(model, version, call.context(), inputs, id=self.id)

    async def _read(self) -> tuple[Any, int]:
        text = b"".join(await self.json())
        return await self._call.run(len(text), without_collections, parse_json, text), len(text)


class Answered(GraphAnswer):
    """What a model has answered; keeps the response, and with it the memory that its tensors are in."""

    def __init__(self, call: GraphCall, request: InferRequest, response: InferResponse) -> None:
        super().__init__(call)
        self._context = request.context
        self._response = response
        self.id = request.id

    def tensors(self) -> Sequence[Tensor]:
        """See ``GraphAnswer``."""
        return self._response.outputs

    async def json(self) -> list[Buffer]:
        """See ``GraphAnswer``."""
        call, response = self._call, self._response
        size_bytes = size_bytes_of(response.outputs)
        if call.form != "v2":
            return await call.run(size_bytes, _write_predictions, response.outputs, call.form == "rows")
        # Without the outputs that were asked for, of which some may be wanted in binary.
        plain = RestInferRequest(response.model_name, response.model_version, self._context, [], id=self.id)
        return await call.run(size_bytes, _write_response, response, plain)

    def response(self, graph: str, wanted: Sequence[str], id_: str) -> InferResponse:
        """See ``GraphAnswer``."""
        own = self._response
        return KeepingResponse(graph, VERSION, selected(own.outputs, wanted, graph), id_, own.parameters, keeps=self)


class Failed(GraphAnswer):
    """Why a model has not answered, which is an answer like any other."""

    def __init__(self, call: GraphCall, failure: RoostError) -> None:
        super().__init__(call)
        self.failure: RoostError = failure.with_traceback(None)  # which would keep all that its frames refer to

    def tensors(self) -> Sequence[Tensor]:
        """See ``GraphAnswer``."""
        return ()

    async def request(self, model: str, version: str) -> InferRequest:
        """See ``GraphPayload``."""
        raise InvalidArgument(f"there is no input for model '{model}', the step before has failed: {self.failure}")

    async def json(self) -> list[Buffer]:
        """See ``GraphAnswer``."""
        return [error_body(self.failure)]

    def response(self, graph: str, wanted: Sequence[str], id_: str) -> InferResponse:
        """See ``GraphAnswer``."""
        raise self.failure


class Merged(GraphAnswer):
    """The answers of an Ensemble by the keys of its steps.

    As tensors, that of a step with one output is called like the step; several have its key and a dot before their own
    names.
    """

    def __init__(self, call: GraphCall, parts: Mapping[str, GraphAnswer]) -> None:
        super().__init__(call)
        self._parts = parts

    def tensors(self) -> Sequence[Tensor]:
        """See ``GraphAnswer``."""
        found: list[Tensor] = []
        for key, part in self._parts.items():
            tensors = part.tensors()
            names = [key] if len(tensors) == 1 else [f"{key}.{tensor.name}" for tensor in tensors]
            found += map(named, tensors, names)
        return found

    async def json(self) -> list[Buffer]:
        """See ``GraphAnswer``."""
        pieces: list[Buffer] = []
        before = b"{"
        for key, part in self._parts.items():
            pieces += [before + orjson.dumps(key) + b":", *await part.json()]
            before = b","
        return [*pieces, b"}"]

    def response(self, graph: str, wanted: Sequence[str], id_: str) -> InferResponse:
        """See ``GraphAnswer``."""
        return KeepingResponse(graph, VERSION, selected(self.tensors(), wanted, graph), id_, keeps=self)


@dataclass(slots=True)
class KeepingResponse(InferResponse):
    """A response whose tensors are in the memory of others, which it keeps."""

    keeps: GraphAnswer | None = None


async def answer_of(call: GraphCall, graph: Graph, question: GraphPayload, draw: Callable[[], float]) -> GraphAnswer:
    """Puts a question to a graph, and counts how that ends; see ``GraphRun.answer``."""
    run: GraphRun[GraphPayload, GraphAnswer]
    run = GraphRun(graph, partial(_ask, call), partial(Merged, call), draw)
    started = time.monotonic()
    code: Code | None = Code.CANCELLED  # if nothing else becomes of it
    try:
        answer = await run.answer(question)
        code = None if answer.failure is None else answer.failure.code
    except Exception as error:
        code = error.code if isinstance(error, RoostError) else Code.INTERNAL
        raise
    finally:
        graph.counts.ended(code, time.monotonic() - started)
    return answer


async def _ask(call: GraphCall, step: Step, given: GraphPayload) -> GraphAnswer:
    try:
        request = await given.request(step.model, step.version)
        response = await call.infer(request)
    except MalformedRequest as error:
        # Triton has no graphs, so that its status for this means nothing here.
        return Failed(call, InvalidArgument(error.message))
    except RoostError as error:
        return Failed(call, error)
    return Answered(call, request, response)


def _write_response(response: InferResponse, request: RestInferRequest) -> list[Buffer]:
    return encode_large_response(response, request, write_outputs(response.outputs))[1]


def _write_predictions(outputs: Sequence[Tensor], in_rows: bool) -> list[Buffer]:
    return [*encode_predictions(outputs, in_rows=in_rows)]

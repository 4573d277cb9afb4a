"""Requests to inference graphs on their way to the data plane: what steps get, and whose memory answers are in."""

from __future__ import annotations

import gc
import json
import math
import time
from typing import Any

import pytest
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, RequestContext
from roost.core.tensors import Signature, Tensor, TensorSpec, pack_bytes, to_array
from roost.router.graphs import ROOT, Graph, Node, Routing, Step
from roost.router.validation import Contract
from roost.server.graph_answers import GraphAnswer, answer_of
from roost.server.graph_call import GraphCall
from roost.server.graph_questions import JsonQuestion, TensorQuestion, form_of
from roost.server.graph_tensors import inputs_of, retyped
from roost.server.offload import Offload

from tests.fakes import SIMPLE, FakeDataPlane


def chain(*models: str, **fields: Any) -> Graph:
    steps = [Step(str(index), model=model, takes_response=True) for index, model in enumerate(models)]
    return Graph("g", {ROOT: Node(Routing.SEQUENCE, tuple(steps))}, **fields)


async def ask(plane: FakeDataPlane, graph: Graph, asked: Any, **context: Any) -> GraphAnswer:
    """Puts JSON, or a request, to a graph."""
    received = time.monotonic()
    context = {"deadline": received + 30, **context}
    offload = Offload("test")
    try:
        if isinstance(asked, InferRequest):
            call = GraphCall(plane, graph, asked.context, offload, None, asked.parameters, "v2")
            return await answer_of(call, graph, TensorQuestion(call, asked), lambda: 0.0)
        of = RequestContext(received, **context)
        call = GraphCall(plane, graph, of, offload, None, {"X-Tenant": "blue"}, form_of(asked))
        body = memoryview(json.dumps(asked).encode())
        return await answer_of(call, graph, JsonQuestion(call, asked, body), lambda: 0.0)
    finally:
        await offload.close()


async def test_what_is_known_of_the_request_goes_to_all_its_steps() -> None:
    plane = FakeDataPlane()
    parameters = {"timeout": 20_000_000, "priority": 3, "more": 1}
    asked = {"instances": [[1, 2]], "parameters": parameters}
    started = time.monotonic()
    answer = await ask(plane, chain("id_INT32", "id_FP32"), asked, caller="me", traceparent="00-a-b-01")
    assert json.loads(b"".join(await answer.json())) == {"predictions": [[1.0, 2.0]]}
    first, second = plane.requests
    assert first.parameters == {"more": 1, "X-Tenant": "blue"}
    assert second.parameters == {"X-Tenant": "blue"}
    for request in (first, second):
        context = request.context
        assert (context.caller, context.traceparent, context.priority) == ("me", "00-a-b-01", 3)
        assert started + 20 <= context.deadline < started + 30
        assert context.received <= time.monotonic()
    assert first.context.received <= second.context.received


@pytest.mark.parametrize(
    ("limits", "within_s"),
    [({}, 30), ({"timeout_s": 5}, 5), ({"step_timeout_s": 2}, 2), ({"timeout_s": 5, "step_timeout_s": math.inf}, 5)],
)
async def test_graphs_bound_their_steps(limits: dict[str, float], within_s: float) -> None:
    plane = FakeDataPlane()
    await ask(plane, chain("id_FP32", "id_FP32", **limits), {"instances": [[1]]})
    for request in plane.requests:
        assert request.context.deadline - request.context.received <= within_s


async def test_tensors_are_handed_on_without_copies() -> None:
    plane = FakeDataPlane()
    data = b"\1\0\0\0"
    inputs = [Tensor("IN", "INT32", (1, 1), data)]
    request = InferRequest("g", "", RequestContext(0.0), inputs, parameters={"a": 1})
    answer = await ask(plane, chain("id_INT32", "id_INT32", "id_INT32"), request)
    assert len(plane.requests) == 3
    assert all(asked.inputs[0].data is data and asked.parameters == {"a": 1} for asked in plane.requests)
    response = answer.response("g", ["OUT"], "7")
    assert (response.model_name, response.id, response.outputs[0].data) == ("g", "7", data)


async def test_answers_keep_the_memory_that_they_are_in() -> None:
    """The fake data plane wipes the memory of responses that nobody holds."""
    plane = FakeDataPlane()
    request = InferRequest("g", "", RequestContext(0.0), [Tensor("IN", "INT32", (1, 1), bytearray(b"\1\0\0\0"))])
    response = (await ask(plane, chain("id_INT32"), request)).response("g", [], "")
    gc.collect()
    assert to_array(response.outputs[0]).tolist() == [[1]]


async def test_merged_tensors_keep_all_of_it() -> None:
    plane = FakeDataPlane()
    steps = Step("a", model="big"), Step("b", model="simple"), Step("c", model="down")
    graph = Graph("g", {ROOT: Node(Routing.ENSEMBLE, steps)})
    inputs = [Tensor(f"INPUT{i}", "INT32", (1, 16), bytes(64)) for i in range(2)]
    plane.contracts["big"] = Contract("big", Signature(SIMPLE.inputs, (TensorSpec("OUT", "UINT8", (-1,)),)), 0)
    request = InferRequest("g", "", RequestContext(0.0), inputs, parameters={"size": 3, "fill": 7})
    response = (await ask(plane, graph, request)).response("g", [], "")
    gc.collect()
    assert [tensor.name for tensor in response.outputs] == ["a", "b.OUTPUT0", "b.OUTPUT1"]
    assert bytes(response.outputs[0].data) == b"\7\7\7"


def _spec(name: str, datatype: str = "FP32", *, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, datatype, (-1,), optional)


def _tensor(name: str, datatype: str = "FP32") -> Tensor:
    return Tensor(name, datatype, (1,), bytes(4))


@pytest.mark.parametrize(
    ("outputs", "inputs", "expected"),
    [
        ("a", [_spec("x")], ["x"]),
        ("a", [_spec("x"), _spec("y", optional=True)], ["x"]),
        ("ab", [_spec("b")], ["b"]),
        ("ab", [_spec("b"), _spec("a"), _spec("c", optional=True)], ["a", "b"]),
        ("a", [_spec("x", optional=True)], ["x"]),
        ("a", [_spec("x"), _spec("y")], "model 'm' takes 'x', 'y', and the step before has answered 'a'"),
        ("ab", [_spec("x")], "model 'm' takes 'x', and the step before has answered 'a', 'b'"),
        ("", [_spec("x")], "model 'm' takes 'x', and the step before has answered nothing"),
    ],
)
def test_whose_input_an_output_is(outputs: str, inputs: list[TensorSpec], expected: list[str] | str) -> None:
    tensors = [_tensor(name) for name in outputs]
    if isinstance(expected, str):
        with pytest.raises(InvalidArgument, match=expected):
            inputs_of(tensors, inputs, "m")
    else:
        assert [tensor.name for tensor in inputs_of(tensors, inputs, "m")] == expected


def test_v1_has_no_datatypes() -> None:
    ints = Tensor("x", "INT64", (2, 1), b"\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0")
    texts = Tensor("y_bytes", "BYTES", (1,), pack_bytes([b"\xff"]))
    specs = TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y_bytes", "BYTES", (-1,))
    (alone,) = retyped([ints], specs, "m")
    assert (alone.datatype, alone.shape, to_array(alone).tolist()) == ("FP32", (2, 1), [[1.0], [2.0]])
    assert [tensor.name for tensor in retyped([ints, texts], specs, "m")] == ["x", "y_bytes"]
    with pytest.raises(InvalidArgument, match="BYTES expects strings"):
        retyped([ints], [TensorSpec("x", "BYTES", (-1, 1))], "m")


@pytest.mark.parametrize(
    ("document", "form"),
    [
        ({"instances": [1]}, "rows"),
        ({"inputs": [[1]]}, "columns"),
        ({"inputs": {"a": [1]}}, "columns"),
        ({"inputs": [{"name": "a", "datatype": "FP32"}]}, "v2"),
        ({"inputs": [{"b64": "YQ=="}]}, "columns"),
        ({"inputs": []}, "v2"),
        ([1], "rows"),
        (None, "rows"),
    ],
)
def test_forms(document: Any, form: str) -> None:
    assert form_of(document) == form

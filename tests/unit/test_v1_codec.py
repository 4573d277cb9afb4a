"""KServe's v1 protocol: bodies to tensors, tensors to bodies."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.requests import RequestContext
from roost.core.tensors import Tensor, TensorSpec, from_array, pack_bytes, to_array
from roost.server.rest.codec_json import SLICE_ELEMENTS
from roost.server.rest.v1_codec import PredictRequest, decode_predict
from roost.server.rest.v1_response import encode_predictions

BATCH = (TensorSpec("x", "FP32", (-1, 2)),)
FIXED = (TensorSpec("x", "INT32", (1, 2)),)
SCALAR = (TensorSpec("x", "INT32", ()),)
FLAGS = (TensorSpec("x", "BOOL", (-1,)),)
TEXTS = (TensorSpec("x", "BYTES", (-1,)),)
GRIDS = (TensorSpec("x", "BYTES", (-1, 2)),)
PAIR = (TensorSpec("a", "INT64", (-1, 2)), TensorSpec("b", "BYTES", (-1,)))
OPTIONAL = (*BATCH, TensorSpec("y", "FP32", (-1,), optional=True))


def decode(inputs: tuple[TensorSpec, ...], document: Any) -> PredictRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode_predict(memoryview(body), inputs, model_name="m", model_version="", context=RequestContext(0.0, 60.0))


@pytest.mark.parametrize(
    ("inputs", "document", "expected"),
    [
        (BATCH, {"instances": [[1, 2.5], [3, 4]]}, {"x": [[1, 2.5], [3, 4]]}),
        (BATCH, {"instances": [{"x": [1, 2]}]}, {"x": [[1, 2]]}),
        (BATCH, {"inputs": [[1, 2]]}, {"x": [[1, 2]]}),
        (BATCH, {"inputs": {"x": [[1, 2]]}}, {"x": [[1, 2]]}),
        (BATCH, {"inputs": [[1, 2]], "signature_name": "other", "id": 3, "more": {"a": [1]}}, {"x": [[1, 2]]}),
        (BATCH, b'{"instances": [[NaN, -Infinity]]}', {"x": [[math.nan, -math.inf]]}),
        (BATCH, {"inputs": []}, {"x": []}),
        (OPTIONAL, {"instances": [[1, 2]]}, {"x": [[1, 2]]}),
        (FIXED, {"instances": [[1, 2]]}, {"x": [[1, 2]]}),
        (SCALAR, {"inputs": 5}, {"x": 5}),
        (FLAGS, {"instances": [True, False]}, {"x": [True, False]}),
        (TEXTS, {"instances": ["é", {"b64": "/wA="}]}, {"x": ["é".encode(), b"\xff\0"]}),
        (TEXTS, {"instances": [{"b64": "QQ"}, {"b64": ""}]}, {"x": [b"A", b""]}),
        (TEXTS, {"instances": [{"x": {"b64": "QQ=="}}]}, {"x": [b"A"]}),
        (TEXTS, {"inputs": {"b64": "QQ=="}}, {"x": b"A"}),
        (GRIDS, {"instances": [["a", "b"], ["c", {"b64": "ZA=="}]]}, {"x": [[b"a", b"b"], [b"c", b"d"]]}),
        (
            PAIR,
            {"instances": [{"a": [1, 2], "b": "x"}, {"b": "y", "a": [3, 2**63 - 1]}]},
            {"a": [[1, 2], [3, 2**63 - 1]], "b": [b"x", b"y"]},
        ),
        (PAIR, {"inputs": {"a": [[1, 2]], "b": ["x"]}}, {"a": [[1, 2]], "b": [b"x"]}),
    ],
)
def test_tensors(inputs: tuple[TensorSpec, ...], document: Any, expected: dict[str, Any]) -> None:
    request = decode(inputs, document)
    datatypes = {spec.name: spec.datatype for spec in inputs}
    assert {tensor.name: tensor.datatype for tensor in request.inputs} == {name: datatypes[name] for name in expected}
    for tensor in request.inputs:
        np.testing.assert_equal(to_array(tensor).tolist(), expected[tensor.name])


@pytest.mark.parametrize(
    ("inputs", "document", "gist"),
    [
        (BATCH, b"", "failed to parse the request JSON"),
        (BATCH, [], "expected an object, got an array"),
        (BATCH, {}, "this one has neither"),
        (BATCH, {"instances": [[1, 2]], "inputs": [[1, 2]]}, "this one has both"),
        (BATCH, {"instances": []}, "no instances"),
        (BATCH, {"instances": {"x": [1, 2]}}, "'instances': expected an array, got an object"),
        (BATCH, {"instances": [[1, 2], [3]]}, "unequal length"),
        (BATCH, {"instances": [[1, 2], 3]}, "on the same level"),
        (BATCH, {"instances": [["1", "2"]]}, "expects numbers, element 0 is a string"),
        (BATCH, {"instances": [[1, 2], {"x": [1, 2]}]}, "on the same level"),
        (BATCH, {"instances": [{"x": [1, 2]}, [1, 2]]}, "instance 1 does not have the same inputs"),
        (BATCH, {"instances": [{"z": [1, 2]}]}, "unexpected inference input 'z' for model 'm', it takes 'x'"),
        (BATCH, {"inputs": {"z": [1, 2]}}, "unexpected inference input 'z'"),
        (BATCH, {"inputs": None}, "expects numbers, element 0 is null"),
        (BATCH, {"instances": [[1e39, 0]]}, "out of range of FP32"),
        (BATCH, b'{"inputs": ' + b"[" * 40 + b"]" * 40 + b"}", "over the limit of 32"),
        (BATCH, b'{"inputs": [], "z": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper"),
        (BATCH, {"inputs": [], "parameters": []}, "'parameters' of the request: expected an object"),
        (BATCH, {"inputs": [], "parameters": {"triton_x": 1}}, "reserved"),
        (FIXED, {"instances": [[1, 2], [3, 4]]}, "got 2 instances for model 'm', which has no batch dimension"),
        (FIXED, {"instances": [[1, 2**31]]}, "out of range of INT32"),
        (FIXED, {"instances": [[1, 1.0]]}, "expects integers"),
        (FIXED, {"instances": [[True, False]]}, "expects integers"),
        (SCALAR, {"instances": [5]}, "single value"),
        (FLAGS, {"instances": [1, 0]}, "expects booleans"),
        (TEXTS, {"instances": ["a", 1]}, "expects strings, element 1 is an integer"),
        (TEXTS, {"instances": ["a", {"b64": "QQ=="}, 1]}, 'BYTES expects strings and objects like {"b64": "..."}'),
        (TEXTS, {"instances": [{"b64": "!"}]}, "not base64"),
        (TEXTS, {"instances": [{"b64": "QUJDR"}]}, "not base64"),
        (TEXTS, {"instances": ["a", {"b64": 1}]}, "got an object"),
        (PAIR, {"instances": [[1, 2]]}, "takes 2 inputs ('a', 'b'), so that 'instances' holds objects"),
        (PAIR, {"inputs": [[1, 2]]}, "so that 'inputs' is an object"),
        ((), {"instances": [1]}, "takes 0 inputs"),
    ],
)
def test_refused(inputs: tuple[TensorSpec, ...], document: Any, gist: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(inputs, document)
    assert gist in caught.value.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.builds(lambda: {"b64": "QQ=="}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "a", "b", "b64"]), inner),
    max_leaves=12,
)


@given(
    st.sampled_from([BATCH, FIXED, SCALAR, FLAGS, TEXTS, GRIDS, PAIR, OPTIONAL, ()]),
    st.dictionaries(st.sampled_from(["instances", "inputs", "id", "parameters", "z"]), VALUES, max_size=3),
)
def test_any_document_is_read_or_refused(inputs: tuple[TensorSpec, ...], document: dict[str, Any]) -> None:
    try:
        request = decode(inputs, document)
    except InvalidArgument:
        return
    for tensor in request.inputs:
        to_array(tensor)


def test_id_and_parameters() -> None:
    parameters = {"timeout": 1_000_000, "priority": 3, "colour": "red"}
    request = decode(BATCH, {"inputs": [], "id": "seven", "parameters": parameters})
    assert (request.id, request.parameters) == ("seven", {"colour": "red"})
    assert (request.context.deadline, request.context.priority) == (1.0, 3)


def tensor(name: str, datatype: str, values: Any) -> Tensor:
    dtype = object if datatype == "BYTES" else {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}[datatype]
    return from_array(name, datatype, np.array(values, dtype))


ONE = tensor("y", "FP32", [[0.5, 1], [2, 3]])
LABELS = tensor("label", "BYTES", [b"cat", b"d\xc3\xa9g"])


@pytest.mark.parametrize(
    ("outputs", "in_rows", "expected"),
    [
        ([ONE], True, '{"predictions":[[0.5,1.0],[2.0,3.0]]}'),
        ([ONE], False, '{"outputs":[[0.5,1.0],[2.0,3.0]]}'),
        ([tensor("y", "FP32", 0.5)], False, '{"outputs":0.5}'),
        ([tensor("y", "FP32", np.empty((2, 0)))], True, '{"predictions":[[],[]]}'),
        ([tensor("y", "FP32", [np.nan, np.inf])], True, '{"predictions":[NaN, Infinity]}'),
        ([ONE, LABELS], False, '{"outputs":{"y":[[0.5,1.0],[2.0,3.0]],"label":["cat","dég"]}}'),
        (
            [ONE, LABELS],
            True,
            '{"predictions":[{"y":[0.5,1.0],"label":"cat"},{"y":[2.0,3.0],"label":"dég"}]}',
        ),
        (
            [tensor("y", "FP32", [np.nan]), tensor("ok", "BOOL", [True])],
            True,
            '{"predictions":[{"y": NaN, "ok": true}]}',
        ),
        ([Tensor("raw_bytes", "BYTES", (1,), pack_bytes([b"\xff"]))], True, '{"predictions":[{"b64":"/w=="}]}'),
        ([], False, '{"outputs":{}}'),
    ],
)
def test_answers(outputs: list[Tensor], in_rows: bool, expected: str) -> None:
    assert b"".join(encode_predictions(outputs, in_rows=in_rows)).decode() == expected


@pytest.mark.parametrize(
    ("outputs", "in_rows", "gist"),
    [
        ([Tensor("raw", "BYTES", (1,), pack_bytes([b"\xff"]))], True, "not UTF-8"),
        ([ONE, tensor("k", "INT64", [1])], True, "can't be answered in rows, since output 'k' has the shape [1]"),
        ([ONE, tensor("k", "INT64", 1)], True, "can't be answered in rows"),
        ([Tensor("y", "FP32", (2**40, 0), b"")], True, "too many empty arrays"),
    ],
)
def test_answers_that_json_can_not_hold(outputs: list[Tensor], in_rows: bool, gist: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        encode_predictions(outputs, in_rows=in_rows)
    assert gist in caught.value.message


@pytest.mark.parametrize("shape", [(3 * SLICE_ELEMENTS + 5,), (2, SLICE_ELEMENTS + 3), (3, 2, 40_000), (40_000, 3)])
@pytest.mark.parametrize("in_rows", [True, False])
def test_large_answers_are_written_in_pieces(shape: tuple[int, ...], in_rows: bool) -> None:
    values = np.arange(math.prod(shape)).reshape(shape)
    first = values[tuple(slice(1) if axis else slice(None) for axis in range(len(shape)))]
    outputs = [tensor("a", "INT64", values), tensor("b", "BYTES", first.astype(str))]
    names = {"a": values.tolist(), "b": first.astype(str).tolist()}
    rows = [{"a": a, "b": b} for a, b in zip(names["a"], names["b"], strict=True)]
    pieces = encode_predictions(outputs, in_rows=in_rows)
    assert max(map(len, pieces)) < 20 * SLICE_ELEMENTS
    assert json.loads(b"".join(pieces)) == ({"predictions": rows} if in_rows else {"outputs": names})
    alone = json.loads(b"".join(encode_predictions(outputs[:1], in_rows=in_rows)))
    assert alone == {"predictions" if in_rows else "outputs": values.tolist()}

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, InferResponse, RequestContext
from roost.core.tensors import Tensor, TensorSpec, pack_bytes, to_array
from roost.server.rest.codec_generate import decode_generate, encode_generate

SPECS = [TensorSpec("X", "INT32", (-1, -1)), TensorSpec("TEXT", "BYTES", (-1, 1))]


def decode(document: Any, *specs: TensorSpec) -> InferRequest:
    body = memoryview(document if isinstance(document, bytes) else json.dumps(document).encode())
    context = RequestContext(100.0, 160.0)
    return decode_generate(body, specs or SPECS, model_name="m", model_version="2", context=context)


def test_keys_become_inputs_and_parameters() -> None:
    request = decode({"id": "i", "X": [1, 2], "n": 3, "parameters": {"TEXT": "hi", "stop": True, "timeout": 1000000}})
    assert (request.model_name, request.model_version, request.id) == ("m", "2", "i")
    assert [(tensor.name, to_array(tensor).tolist()) for tensor in request.inputs] == [
        ("X", [[1, 2]]),
        ("TEXT", [[b"hi"]]),
    ]
    assert request.parameters == {"n": 3, "stop": True}
    assert request.context.deadline == 101.0


@pytest.mark.parametrize(
    ("spec", "value", "shape"),
    [
        ((), 5, ()),
        ((1,), 5, (1,)),
        ((-1,), 5, (1,)),
        ((-1,), [], (0,)),
        ((-1, -1), [1, 2, 3], (1, 3)),
        ((-1, 1), [1, 2, 3], (3, 1)),
        ((-1, 2), [1, 2, 3, 4], (2, 2)),
        ((-1, 2, -1), [1, 2, 3, 4], (1, 2, 2)),
        ((2, 2), [[1, 2], [3, 4]], (2, 2)),
        ((2, 2), [1, 2, 3], None),
        ((-1, 2), 5, None),
        ((1,), [], None),
        ((0, -1), [1], None),
        ((-1,), {}, None),
        ((-1,), [[1], 2], None),
        ((-1,), None, None),
        ((-1,), 2**64, None),
    ],
)
def test_shapes_are_filled(spec: tuple[int, ...], value: Any, shape: tuple[int, ...] | None) -> None:
    one = TensorSpec("X", "INT32", spec)
    if shape is None:
        with pytest.raises(InvalidArgument, match="'X'"):
            decode({"X": value}, one)
    else:
        assert decode({"X": value}, one).inputs[0].shape == shape


def test_answers_are_flat_with_sorted_keys() -> None:
    outputs = [
        Tensor("one", "FP32", (1, 1), b"\0\0\xc0\x7f"),
        Tensor("a", "BYTES", (2,), pack_bytes([b"x", "é".encode()])),
        Tensor("none", "INT32", (0,), b""),
    ]
    text = encode_generate(InferResponse("m", "1", outputs, parameters={"stop": True}), "i")
    assert text.decode() == (
        '{"a":["x","é"],"id":"i","model_name":"m","model_version":"1","none":[],"one":NaN,"stop":true}'
    )
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        encode_generate(InferResponse("m", "1", [Tensor("a", "BYTES", (1,), pack_bytes([b"\xff"]))]), "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["X", "TEXT", "id", "parameters", "k"]), json_values))
def test_arbitrary_bodies_raise_nothing_but_invalid_argument(document: dict[str, Any]) -> None:
    with suppress(InvalidArgument):
        decode(document)

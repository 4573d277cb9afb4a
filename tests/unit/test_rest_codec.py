from __future__ import annotations

import json
import math
import time
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import Code, InvalidArgument
from roost.core.requests import InferResponse, RegionSlice, RequestContext, RequestedOutput
from roost.core.tensors import DATATYPES, Tensor, TensorSpec, pack_bytes, to_array
from roost.proto import model_config_pb2 as mc
from roost.server.rest.codec import RestInferRequest, decode_infer, parse_header_length
from roost.server.rest.codec_json import pack_elements
from roost.server.rest.codec_raw import decode_raw
from roost.server.rest.codec_response import encode_large_response, encode_response, large_outputs, write_outputs
from roost.server.rest.compression import Inflater, preferred_coding, request_coding
from roost.server.rest.config_json import config_to_json
from roost.server.rest.errors import HTTP_STATUS, TRITON_STATUS, MalformedRequest, Refusal


def decode(body: bytes, header_length: int | None = None) -> RestInferRequest:
    context = RequestContext(100.0, 160.0)
    return decode_infer(memoryview(body), header_length, model_name="m", model_version="", context=context)


def decode_document(document: Any, tail: bytes = b"") -> RestInferRequest:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode(head + tail, len(head) if tail else None)


def one_input(datatype: str, shape: list[int], data: Any) -> Tensor:
    document = {"inputs": [{"name": "X", "datatype": datatype, "shape": shape, "data": data}]}
    return decode_document(document).inputs[0]


def tensor_in(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "X", "datatype": "INT32", "shape": [2], "data": [1, 2], **changes}
    return {key: value for key, value in tensor.items() if value is not ...}


def encode(tensor: Tensor, request: RestInferRequest | None = None) -> Any:
    headers, buffers = encode_response(InferResponse("m", "1", [tensor]), request or decode_document({"inputs": []}))
    assert headers == {"Content-Type": "application/json"}
    return json.loads(bytes(buffers[0]))["outputs"][0]["data"]


def in_region(region: Any = "r", size: Any = ..., offset: Any = ..., data: Any = ...) -> dict[str, Any]:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset}
    return tensor_in(data=data, parameters={key: value for key, value in parameters.items() if value is not ...})


REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


def output_with(**parameters: Any) -> dict[str, Any]:
    return {"inputs": [], "outputs": [{"name": "O", "parameters": parameters}]}


def test_every_code_has_a_status() -> None:
    assert set(HTTP_STATUS) == set(TRITON_STATUS) == set(Code)


def test_json_request() -> None:
    request = decode_document(
        {
            "id": "abc",
            "parameters": {
                "a": "s",
                "b": 1,
                "c": 1.5,
                "d": True,
                "timeout": 5_000_000,
                "priority": 3,
                "sequence_id": 7,
            },
            "inputs": [tensor_in(parameters={"p": 1}), tensor_in(name="Y", data=[[3], [4]], shape=[2, 1])],
            "outputs": [{"name": "O", "parameters": {"binary_data": True, "q": "r"}}, {"name": "P"}],
            "unknown": {"ignored": [1]},
        }
    )
    assert (request.id, request.model_name, request.model_version) == ("abc", "m", "")
    assert request.parameters == {"a": "s", "b": 1, "c": 1.5, "d": True, "sequence_id": 7}
    assert (request.context.deadline, request.context.priority) == (105.0, 3)
    assert [to_array(tensor).tolist() for tensor in request.inputs] == [[1, 2], [[3], [4]]]
    assert request.inputs[0].parameters == {"p": 1}
    assert [(o.name, o.binary, dict(o.parameters)) for o in request.outputs] == [
        ("O", True, {"q": "r"}),
        ("P", False, {}),
    ]
    assert not request.binary_by_default


def test_timeout_never_extends_the_deadline() -> None:
    assert decode_document({"inputs": [], "parameters": {"timeout": 10**15}}).context.deadline == 160.0
    assert decode_document({"inputs": [], "parameters": {"timeout": 0}}).context.deadline == 160.0


def test_tensors_in_shared_memory() -> None:
    request = decode_document(
        {
            "inputs": [in_region(size=8, offset=2**40), tensor_in(name="Y")],
            "outputs": [
                {"name": "O", "parameters": {**REGION, "classification": 0, "binary_data": False, "k": 1}},
                {"name": "P", "parameters": {"classification": 3, "binary_data": True}},
            ],
        }
    )
    assert request.regions == {"X": RegionSlice("r", 8, 2**40)}
    assert [bytes(tensor.data) for tensor in request.inputs] == [b"", np.array([1, 2], "<i4").tobytes()]
    assert request.inputs[0].parameters == {}
    assert request.outputs == [
        RequestedOutput("O", parameters={"k": 1}, region=RegionSlice("r", 8)),
        RequestedOutput("P", binary=True, classification=3),
    ]


def test_outputs_in_shared_memory_are_only_described() -> None:
    large = many("INT32")
    outputs = [Tensor("A", "INT32", (2,), b"", {"p": 1}), Tensor("B", "INT32", (1,), bytes(4))]
    for tensors in (outputs, [*outputs, large]):
        response = InferResponse("m", "1", tensors, in_regions=frozenset({"A"}))
        request = decode_document({"inputs": []})
        text = joined(encode_response(response, request))[1]
        assert json.loads(text)["outputs"][:2] == [
            {"name": "A", "datatype": "INT32", "shape": [2]},
            {"name": "B", "datatype": "INT32", "shape": [1], "data": [0]},
        ]
    assert large_outputs(response, request) == [outputs[1], large]
    in_pieces = encode_large_response(response, request, write_outputs(large_outputs(response, request)))
    assert joined(in_pieces)[1] == text


def test_what_is_no_json_of_the_call_has_a_class_of_its_own() -> None:
    """Triton has another status for it."""
    one = tensor_in(shape=[1], data=[1])
    for document, malformed in (
        (b"{", True),
        ({}, True),
        ({"inputs": [{**one, "data": [1, 2]}]}, True),
        ({"inputs": [{**one, "data": ["1"]}]}, True),
        ({"inputs": [{**one, "shape": [-1]}]}, True),
        ({"inputs": [], "parameters": {"priority": -1}}, True),
        ({"inputs": [one, one]}, False),
        ({"inputs": [{**one, "datatype": "FLOAT"}]}, False),
        ({"inputs": [{**one, "data": [2**40]}]}, False),
        ({"inputs": [{**one, "shape": [1, 2**62]}]}, False),
        ({"inputs": [], "parameters": {"k": None}}, False),
    ):
        with pytest.raises(InvalidArgument) as error:
            decode_document(document)
        assert (type(error.value) is MalformedRequest) == malformed, document


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("INT8", [-128, 127]),
        ("UINT16", [0, 65535]),
        ("INT16", [-32768, 32767]),
        ("UINT32", [0, 2**32 - 1]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP16", [1.5, -2]),
        ("BF16", [1.5, -2]),
        ("FP32", [0.5, 3]),
        ("FP64", [0.1, 3]),
        ("BYTES", ["h\u00e9", "a\0b"]),
    ],
)
def test_json_elements_survive_both_ways(datatype: str, data: list[Any]) -> None:
    for shape, nested in (([1, 2], [data]), ([2, 1], [[item] for item in data]), ([2], data), ([1, 1, 2], data)):
        assert encode(one_input(datatype, shape, nested)) == data
    for shape, rows in (([2, 0], 0), ([2, 0], 2), ([0], 0)):
        assert encode(one_input(datatype, shape, [[]] * rows)) == []
    for ragged in ([data, data[:1]], [data[:1], data[1]]):
        with pytest.raises(InvalidArgument, match="'X'"):
            one_input(datatype, [3], ragged)


def test_floats_are_widened_and_may_be_non_finite() -> None:
    body = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[4],"data":[0.1,NaN,Infinity,-Infinity]}]}'
    tensor = decode(body).inputs[0]
    values = encode(tensor)
    assert values[0] == 0.10000000149011612
    assert math.isnan(values[1])
    assert values[2:] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("datatype", "text", "written"),
    [
        ("FP32", "0.1", "0.10000000149011612"),
        ("FP32", "3", "3.0"),
        ("FP32", "-0.0", "-0.0"),
        ("FP32", "16777216", "16777216.0"),
        ("FP32", "1e16", "10000000272564224.0"),
        ("FP64", "1e15", "1000000000000000.0"),
        ("FP64", "1e16", "10000000000000000.0"),
        ("FP64", "-1.5e20", "-150000000000000000000.0"),
        ("FP64", "18446744073709551616", "18446744073709552000.0"),
        ("FP64", "1e22", "1e+22"),
        ("FP64", "1e-7", "1e-7"),
        ("FP64", "NaN", "NaN"),
        ("FP64", "-Infinity", "-Infinity"),
        ("FP16", "0.1", "0.0999755859375"),
        ("BF16", "0.1", "0.10009765625"),
        ("UINT64", "18446744073709551615", "18446744073709551615"),
        ("INT64", "-9223372036854775808", "-9223372036854775808"),
    ],
)
def test_digits_of_numbers(datatype: str, text: str, written: str) -> None:
    body = f'{{"inputs":[{{"name":"X","datatype":"{datatype}","shape":[1],"data":[{text}]}}]}}'.encode()
    answer = InferResponse("m", "1", decode(body).inputs)
    assert f'"data":[{written}]'.encode() in joined(encode_response(answer, decode_document({"inputs": []})))[1]


def test_large_numbers_among_parameters_may_be_floats() -> None:
    parameters = {"a": 1e300, "b": -1e19, "c": 2**64 - 1, "d": math.inf}
    assert decode_document({"inputs": [], "parameters": parameters}).parameters == parameters


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_large_numbers_among_the_parameters_of_many_tensors(where: str) -> None:
    rest = {"datatype": "UINT8", "shape": [0], "data": []} if where == "inputs" else {}
    items = [{"name": f"n{i}", "parameters": {"a": 1e300}, **rest} for i in range(3000)]
    began = time.process_time()
    assert len(getattr(decode_document({"inputs": [], where: items}), where)) == len(items)
    assert time.process_time() - began < 2  # 10 s if the text is looked through for each


_EDGES: list[Any] = [
    0,
    1,
    -1,
    127,
    128,
    255,
    256,
    65504,
    65519,
    65520,
    2**31,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    True,
    False,
]
_EDGES += [0.1, 1e-45, 5e-324, 3.4028235677973366e38, 3.5e38, 1e308, math.nan, math.inf, -math.inf, None, "1"]


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
@given(st.lists(st.sampled_from(_EDGES) | st.integers(-(2**63), 2**64 - 1) | st.floats(), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_few_elements_are_packed_as_many_are(datatype: str, elements: list[Any]) -> None:
    def packed(repeats: int) -> bytes | str:
        data = elements * repeats
        try:
            return bytes(pack_elements("X", DATATYPES[datatype], [len(data)], len(data), data))
        except InvalidArgument as error:
            return error.message

    few, many = packed(1), packed(100)
    assert few == (many if isinstance(many, str) else many[: len(many) // 100])


def test_bfloat16_rounds_to_nearest_even() -> None:
    # Halfway between two values of BF16 near 1 (steps of 2**-7), and just beside it.
    step = 2.0**-7
    tensor = one_input("BF16", [4], [1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, 3.3e38])
    assert encode(tensor) == [1.0, 1 + 2 * step, 1 + step, pytest.approx(3.3e38, rel=0.01)]
    nan = decode(b'{"inputs":[{"name":"X","datatype":"BF16","shape":[1],"data":[NaN]}]}').inputs[0]
    assert math.isnan(encode(nan)[0])


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        (b"", ["JSON"]),
        (b"{", ["failed to parse the request JSON buffer"]),
        (b"[]", ["expected an object", "an array"]),
        (b'{"inputs":[],"x":' + b"[" * 101 + b"]" * 101 + b"}", ["nested deeper than 100"]),
        (b'{"inputs":[],"outputs":[{"name":"O","data":' + b"[" * 101 + b"]" * 101 + b"}]}", ["nested deeper than 100"]),
        (b"[" * 100_000, ["failed to parse"]),
        (b"[" * 100_000 + b"NaN", ["failed to parse"]),
        (b'{"id":"\\ud800","x":NaN,"inputs":[]}', ["failed to parse"]),
        ({}, ["Unable to parse 'inputs'", "nothing"]),
        ({"inputs": 5}, ["Unable to parse 'inputs'", "an integer"]),
        ({"inputs": [5]}, ["Unable to parse 'inputs'"]),
        ({"id": 5, "inputs": []}, ["Unable to parse 'id'", "an integer"]),
        ({"inputs": [tensor_in(name=...)]}, ["'name'", "nothing"]),
        ({"inputs": [tensor_in(name="")]}, ["'name'", "empty"]),
        ({"inputs": [tensor_in(), tensor_in()]}, ["'X' already exists"]),
        ({"inputs": [tensor_in(datatype="FLOAT")]}, ["invalid datatype", "'X'", "FLOAT"]),
        ({"inputs": [tensor_in(datatype=...)]}, ["invalid datatype", "'X'", "nothing"]),
        ({"inputs": [tensor_in(shape=...)]}, ["'shape'", "'X'", "nothing"]),
        ({"inputs": [tensor_in(shape=[True, 2])]}, ["'shape'", "'X'", "a boolean"]),
        ({"inputs": [tensor_in(shape=[-1, 2])]}, ["'X'", "negative"]),
        ({"inputs": [tensor_in(shape=[1, 2**62])]}, ["'X'", "too many elements"]),
        ({"inputs": [tensor_in(shape=[1] * 33)]}, ["'X'", "33 dimensions"]),
        ({"inputs": [tensor_in(data=...)]}, ["'X'", "must set only one of", "But no field is set"]),
        ({"inputs": [tensor_in(parameters={"binary_data_size": 8})]}, ["'X'", "must set only one of"]),
        ({"inputs": [in_region()]}, ["'X'", "must set 'shared_memory_byte_size'"]),
        ({"inputs": [in_region(data=[1, 2], size=8)]}, ["'X'", "must set only one of"]),
        ({"inputs": [in_region(size=-1)]}, ["'shared_memory_byte_size' of input 'X'", "unsigned integer, got -1"]),
        ({"inputs": [in_region(size=8, offset=0.5)]}, ["'shared_memory_offset' of input 'X'", "unsigned integer"]),
        ({"inputs": [in_region(size=8, region=5)]}, ["'shared_memory_region' of input 'X'", "a string"]),
        ({"inputs": [tensor_in(parameters={"shared_memory_offset": 8})]}, ["'X'", "without 'shared_memory_region'"]),
        ({"inputs": [tensor_in(data=..., parameters={"binary_data_size": -1})]}, ["'X'", "binary_data_size"]),
        ({"inputs": [tensor_in(data=..., parameters={"binary_data_size": True})]}, ["'X'", "binary_data_size"]),
        ({"inputs": [tensor_in(data="no")]}, ["'X'", "expected an array", "a string"]),
        ({"inputs": [tensor_in(data=[1])]}, ["Shape does not match true shape", "'X'", "expected 2", "got 1"]),
        ({"inputs": [tensor_in(data=[1, 2, 3])]}, ["Shape does not match true shape", "got 3"]),
        ({"inputs": [tensor_in(data=[[1], 2])]}, ["'X'", "same level"]),
        ({"inputs": [tensor_in(data=[[1, 2], []])]}, ["'X'", "unequal length"]),
        ({"inputs": [tensor_in(data=json.loads("[" * 60 + "]" * 60))]}, ["'X'", "nested deeper"]),
        ({"inputs": [tensor_in(data=[1, "2"])]}, ["'X'", "INT32", "integers", "element 1 is a string"]),
        ({"inputs": [tensor_in(data=[1, 2.0])]}, ["'X'", "element 1 is a number with"]),
        ({"inputs": [tensor_in(data=[1, True])]}, ["'X'", "element 1 is a boolean"]),
        ({"inputs": [tensor_in(data=[1, None])]}, ["'X'", "element 1 is null"]),
        ({"inputs": [tensor_in(data=[1, 2**40])]}, ["'X'", str(2**40), "out of range of INT32"]),
        ({"inputs": [tensor_in(datatype="UINT8", data=[1, -1])]}, ["'X'", "-1 is out of range of UINT8"]),
        ({"inputs": [tensor_in(datatype="UINT64", data=[1, -1])]}, ["'X'", "-1 is out of range of UINT64"]),
        ({"inputs": [tensor_in(datatype="INT64", data=[1, 2**64])]}, ["'X'", "INT64"]),
        ({"inputs": [tensor_in(datatype="BOOL", data=[1, 0])]}, ["'X'", "booleans", "an integer"]),
        ({"inputs": [tensor_in(datatype="FP32", data=[1.0, 1e39])]}, ["'X'", "1e+39 is out of range of FP32"]),
        ({"inputs": [tensor_in(datatype="FP16", data=[1.0, -65520])]}, ["'X'", "-65520.0 is out of range of FP16"]),
        ({"inputs": [tensor_in(datatype="BF16", data=[1.0, 3.4e38])]}, ["'X'", "out of range of BF16"]),
        ({"inputs": [tensor_in(datatype="FP32", data=[1.0, True])]}, ["'X'", "numbers", "a boolean"]),
        ({"inputs": [tensor_in(datatype="BYTES", data=["a", 5])]}, ["'X'", "strings", "an integer"]),
        ({"inputs": [], "outputs": {}}, ["Unable to parse 'outputs'", "an object"]),
        ({"inputs": [], "outputs": [{"name": "O"}, {"name": "O"}]}, ["'O' already exists"]),
        ({"inputs": [], "outputs": [{"name": "O", "parameters": {"binary_data": 1}}]}, ["'O'", "binary_data"]),
        (output_with(classification=-1), ["'classification' of output 'O'", "unsigned integer, got -1"]),
        (output_with(classification=1.5), ["'classification' of output 'O'", "unsigned integer"]),
        (output_with(classification=True), ["'classification' of output 'O'", "unsigned integer"]),
        (output_with(shared_memory_region="r"), ["'O'", "must set 'shared_memory_byte_size'"]),
        (output_with(shared_memory_byte_size=8), ["'O'", "without 'shared_memory_region'"]),
        (output_with(**REGION, binary_data=True), ["'O'", "both 'binary_data' and 'shared_memory_region'"]),
        (output_with(**REGION, classification=1), ["'O'", "both 'classification' and 'shared_memory_region'"]),
        ({"inputs": [], "parameters": []}, ["'parameters'", "an array"]),
        ({"inputs": [], "parameters": {"k": []}}, ["'k'", "invalid type", "an array"]),
        ({"inputs": [], "parameters": {"k": 2**64}}, ["64-bit range"]),
        ({"inputs": [], "parameters": {"k": -(2**63) - 1}}, ["64-bit range"]),
        ({"inputs": [], "parameters": {"priority": 2**64}}, ["64-bit range"]),
        ({"inputs": [tensor_in(parameters={"k": 2**70})]}, ["64-bit range"]),
        (output_with(k=2**70), ["64-bit range"]),
        ({"inputs": [tensor_in(shape=[2**64])]}, ["'shape'", "integers"]),
        ({"inputs": [tensor_in(datatype="UINT64", shape=[1], data=[2**64])]}, ["'X'", "more than 64 bits"]),
        ({"inputs": [tensor_in(datatype="UINT64", shape=[1, 1], data=[[2**64]])]}, ["'X'", "more than 64 bits"]),
        ({"inputs": [], "parameters": {"k": None}}, ["'k'", "invalid type", "null"]),
        ({"inputs": [], "parameters": {"triton_x": 1}}, ["'triton_x'", "reserved"]),
        ({"inputs": [], "parameters": {"headers": "x"}}, ["'headers'", "reserved"]),
        ({"inputs": [], "parameters": {"timeout": "x"}}, ["'timeout'", "unsigned", "a string"]),
        ({"inputs": [], "parameters": {"priority": -1}}, ["'priority'", "unsigned", "-1"]),
        ({"inputs": [], "parameters": {"sequence_id": 1.5}}, ["'sequence_id'"]),
        ({"inputs": [], "parameters": {"sequence_start": 1}}, ["'sequence_start'", "boolean"]),
        ({"inputs": [], "parameters": {"binary_data_output": 1}}, ["'binary_data_output'", "boolean"]),
    ],
)
def test_refusals_say_what_is_wrong(document: Any, parts: list[str]) -> None:
    with pytest.raises(InvalidArgument) as error:
        decode_document(document)
    for part in parts:
        assert part in error.value.message


def binary_in(name: str, size: int) -> dict[str, Any]:
    return tensor_in(name=name, data=..., parameters={"binary_data_size": size, "p": True})


def test_binary_inputs_are_views_in_order() -> None:
    document = {"inputs": [binary_in("A", 8), tensor_in(name="B"), binary_in("C", 8)]}
    head = json.dumps(document).encode()
    elements = np.arange(4, dtype="<i4").tobytes()
    body = head + elements
    request = decode(body, len(head))
    assert [to_array(tensor).tolist() for tensor in request.inputs] == [[0, 1], [1, 2], [2, 3]]
    view = request.inputs[2].data
    assert isinstance(view, memoryview)
    assert view.obj is body
    assert request.inputs[0].parameters == {"p": True}


def test_binary_sizes_must_match() -> None:
    document = {"inputs": [binary_in("A", 8), binary_in("C", 8)]}
    with pytest.raises(
        InvalidArgument, match="unexpected size for input 'C', expecting 4 additional bytes for model 'm'"
    ):
        decode_document(document, bytes(12))
    with pytest.raises(InvalidArgument, match="unexpected additional input data for model 'm'"):
        decode_document(document, bytes(18))
    with pytest.raises(InvalidArgument, match="unexpected size for input 'A', expecting 8 additional"):
        decode_document(document)


@pytest.mark.parametrize("text", ["-1", "abc", "1.5", "", "9" * 30, "\u0663"])
def test_bad_header_length(text: str) -> None:
    with pytest.raises(InvalidArgument, match="should be in range"):
        parse_header_length(text)


def test_header_length_out_of_range() -> None:
    assert parse_header_length(None) is None
    assert parse_header_length("17") == 17
    with pytest.raises(InvalidArgument, match="should be in range 0 to 2, got 99999"):
        decode(b"{}", 99999)


def raw(body: bytes, datatype: str, shape: tuple[int, ...], max_batch_size: int = 8) -> Tensor:
    specs = [TensorSpec("X", datatype, shape)]
    context = RequestContext(0.0)
    request = decode_raw(memoryview(body), specs, max_batch_size, model_name="m", model_version="", context=context)
    assert request.binary_by_default
    return request.inputs[0]


def test_raw_requests_deduce_the_shape() -> None:
    assert raw(bytes(16), "FP32", (-1, -1)).shape == (1, 4)
    assert raw(bytes(16), "FP32", (-1, 4)).shape == (1, 4)
    assert raw(bytes(32), "FP32", (-1, 4), 0).shape == (2, 4)
    assert raw(bytes(0), "FP32", (-1,), 0).shape == (0,)
    assert raw(b"word", "BYTES", (-1, 1)).data == pack_bytes([b"word"])


@pytest.mark.parametrize(
    ("size", "datatype", "shape", "max_batch_size", "text"),
    [
        (17, "FP32", (-1, -1), 8, "input byte size mismatch for input 'X'.*Expected a multiple of 4, got 17"),
        (32, "FP32", (-1, 4), 8, "Expected 16, got 32"),
        (16, "FP32", (-1, -1), 0, "more than one variable dimension"),
        (4, "FP32", (-1, 0), 0, "mismatch"),
        (4, "BYTES", (-1, -1), 8, r"must have input shape \[1\]"),
    ],
)
def test_raw_requests_that_do_not_fit(
    size: int, datatype: str, shape: tuple[int, ...], max_batch_size: int, text: str
) -> None:
    with pytest.raises(InvalidArgument, match=text):
        raw(bytes(size), datatype, shape, max_batch_size)


def test_raw_requests_need_one_input() -> None:
    specs = [TensorSpec("A", "FP32", (4,)), TensorSpec("B", "FP32", (4,))]
    with pytest.raises(InvalidArgument, match="must only have 1 input"):
        decode_raw(memoryview(b""), specs, 0, model_name="m", model_version="", context=RequestContext(0.0))


def response() -> InferResponse:
    outputs = [
        Tensor("O", "INT32", (1, 2), np.array([1, 2], "<i4").tobytes()),
        Tensor("P", "BYTES", (2,), pack_bytes([b"ab", b"\xff\x00"]), {"p": 1}),
    ]
    return InferResponse("m", "1", outputs, parameters={"k": "v"})


def test_response_keys_come_in_order() -> None:
    request = decode_document(
        {"id": "abc", "inputs": [], "outputs": [{"name": "P", "parameters": {"binary_data": True}}]}
    )
    headers, buffers = encode_response(response(), request)
    head = bytes(buffers[0])
    document = json.loads(head)
    assert list(document) == ["id", "model_name", "model_version", "parameters", "outputs"]
    assert [list(output) for output in document["outputs"]] == [
        ["name", "datatype", "shape", "data"],
        ["name", "datatype", "shape", "parameters"],
    ]
    assert document["outputs"][0]["data"] == [1, 2]
    assert document["outputs"][1]["parameters"] == {"p": 1, "binary_data_size": 12}
    assert headers["Inference-Header-Content-Length"] == str(len(head))
    assert headers["Content-Type"] == "application/octet-stream"
    assert b"".join(buffers[1:]) == b"\x02\0\0\0ab\x02\0\0\0\xff\0"


def test_parameters_that_are_not_finite_are_written() -> None:
    answer = InferResponse("m", "1", [Tensor("O", "INT32", (0,), b"", {"p": -math.inf})], parameters={"k": math.nan})
    text = joined(encode_response(answer, decode_document({"inputs": []})))[1]
    assert b'"parameters":{"k":NaN}' in text
    assert b'"parameters":{"p":-Infinity}' in text


def test_binary_by_default_is_for_outputs_that_are_not_listed() -> None:
    parameters = {"binary_data_output": True}
    _, buffers = encode_response(response(), decode_document({"inputs": [], "parameters": parameters}))
    assert len(buffers) == 3
    assert "id" not in json.loads(bytes(buffers[0]))
    only_o = InferResponse("m", "1", response().outputs[:1])
    request = decode_document({"id": "", "inputs": [], "parameters": parameters, "outputs": [{"name": "O"}]})
    headers, buffers = encode_response(only_o, request)
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(bytes(buffers[0]))["outputs"][0]["data"] == [1, 2]


def test_bytes_that_are_not_utf8_need_binary_output() -> None:
    with pytest.raises(InvalidArgument, match=r"output 'P' holds bytes that are not UTF-8.*binary_data"):
        encode_response(response(), decode_document({"inputs": []}))


def test_unaligned_output_is_written_right() -> None:
    data = memoryview(b"x" + np.arange(5, dtype="<i8").tobytes())[1:]
    assert encode(Tensor("O", "INT64", (5,), data)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", "identity"),
        ("gzip", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip", "deflate"),
        ("deflate;q=0.5, gzip;q=0.8", "gzip"),
        ("identity;q=0.9, gzip;q=0.8", "identity"),
        ("*", "identity"),
        ("br", "identity"),
        ("GZIP", "identity"),
        ("gzip;q=0", "identity"),
        ("gzip;q=x", "identity"),
        ("gzip;q=nan", "identity"),
        ("gzip ; q=1.0", "gzip"),
    ],
)
def test_accepted_codings(accept: str, coding: str) -> None:
    assert preferred_coding(accept) == coding


def test_request_codings() -> None:
    assert request_coding(None) == request_coding("identity") == "identity"
    with pytest.raises(Refusal, match="Unsupported compression type") as error:
        request_coding("br")
    assert error.value.headers == {"Accept-Encoding": "gzip, deflate"}


@given(st.binary(max_size=2000), st.integers(0, 3), st.integers(0, 2**16))
def test_inflater_gives_the_data_or_invalid_argument(data: bytes, damage: int, place: int) -> None:
    compressed = bytearray(zlib.compress(data))
    if damage == 1:
        del compressed[place % len(compressed) :]
    elif damage == 2:
        compressed += b"x"
    inflater = Inflater("deflate", memoryview(bytes(compressed)))
    out = b""
    try:
        while not inflater.done:
            out += inflater.step()
    except InvalidArgument:
        assert damage in (1, 2)
    else:
        assert out == data
        assert damage in (0, 3)


def test_deflate_is_the_zlib_format() -> None:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    raw_deflate = compressor.compress(b'{"inputs":[]}') + compressor.flush()
    with pytest.raises(InvalidArgument, match=r"not valid deflate \(the zlib format\)"):
        Inflater("deflate", memoryview(raw_deflate)).step()


def test_inflater_steps_are_bounded() -> None:
    data = bytes(5_000_000)
    inflater = Inflater("deflate", memoryview(zlib.compress(data)))
    pieces = []
    while not inflater.done:
        pieces.append(inflater.step())
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 256 * 1024


def test_config_is_written_in_order_with_numbers() -> None:
    config = mc.ModelConfig(name="m", max_batch_size=8)
    config.input.add(name="X", data_type=mc.TYPE_FP32, dims=[-1, 2**40])
    config.parameters["k"].string_value = "v"
    document = config_to_json(config)
    order = ["name", "platform", "backend", "max_batch_size", "input", "output", "instance_group", "parameters"]
    assert [key for key in document if key in order] == order
    assert document["input"][0]["dims"] == [-1, 2**40]
    assert document["input"][0]["data_type"] == "TYPE_FP32"
    assert document["input"][0]["optional"] is False
    assert document["parameters"] == {"k": {"string_value": "v"}}
    assert document["output"] == []
    assert "dynamic_batching" not in document
    assert "optimization" not in document
    json.dumps(document)
    config.dynamic_batching.max_queue_delay_microseconds = 2**40
    config.instance_group.add()
    config.optimization.eager_batching = True
    order = ["optimization", "dynamic_batching", "instance_group"]
    assert [key for key in config_to_json(config) if key in order] == order


@given(st.binary(max_size=300), st.none() | st.integers(0, 400))
def test_arbitrary_bytes_raise_nothing_but_invalid_argument(body: bytes, header_length: int | None) -> None:
    with suppress(InvalidArgument):
        decode(body, header_length)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
KEYS = ["name", "datatype", "shape", "data", "parameters", "id", "inputs", "outputs"]


@st.composite
def almost_requests(draw: st.DrawFn) -> dict[str, Any]:
    """Requests that are right but for a few values put where they do not belong."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    tensor: dict[str, Any] = {
        "name": "X",
        "datatype": datatype,
        "shape": draw(st.lists(st.integers(-1, 3), max_size=3)),
    }
    if draw(st.booleans()):
        tensor["data"] = draw(st.lists(json_values, max_size=4))
    else:
        tensor["parameters"] = {"binary_data_size": draw(st.integers(-1, 20))}
    output: dict[str, Any] = {"name": "O", "parameters": {"binary_data": True}}
    document: dict[str, Any] = {
        "id": "i",
        "inputs": [tensor],
        "outputs": [output],
        "parameters": {draw(st.sampled_from(["timeout", "priority", "sequence_id", "k"])): draw(json_values)},
    }
    for _ in range(draw(st.integers(0, 2))):
        target = draw(st.sampled_from([document, tensor, output]))
        target[draw(st.sampled_from(KEYS))] = draw(json_values)
    return document


@settings(max_examples=300)
@given(almost_requests(), st.binary(max_size=20), st.integers(-2, 30))
def test_mutated_requests_raise_nothing_but_invalid_argument(document: dict[str, Any], tail: bytes, shift: int) -> None:
    head = json.dumps(document).encode()
    with suppress(InvalidArgument):
        decode(head + tail, max(0, len(head) + shift) if shift else None)


@given(almost_requests(), st.data())
def test_damaged_texts_raise_nothing_but_invalid_argument(document: dict[str, Any], data: st.DataObject) -> None:
    text = bytearray(json.dumps(document).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidArgument):
        decode(bytes(text))


MANY = 100_000


def many(datatype: str) -> Tensor:
    """More elements than are written in one go, and not a multiple of a slice."""
    numbers = np.random.default_rng(1)
    if datatype == "BYTES":
        return Tensor("O", datatype, (MANY,), pack_bytes(f"h\u00e9 {i}".encode() for i in range(MANY)))
    dtype = DATATYPES[datatype].dtype
    assert dtype is not None
    elements = numbers.standard_normal(MANY) if dtype.kind == "f" else numbers.integers(0, 127, MANY)
    return Tensor("O", datatype, (MANY // 10, 10), elements.astype(dtype).tobytes())


def joined(encoded: tuple[dict[str, str], list[Any]]) -> tuple[dict[str, str], bytes]:
    headers, buffers = encoded
    return headers, b"".join(buffers)


def encode_both_ways(outputs: list[Tensor], document: dict[str, Any]) -> bytes:
    """Writes a response whole and in pieces, which must be the same."""
    response = InferResponse("m", "1", outputs, parameters={"k": "v"})
    request = decode_document({"inputs": [], **document})
    large = large_outputs(response, request)
    assert large
    in_pieces = joined(encode_large_response(response, request, write_outputs(large)))
    assert in_pieces == joined(encode_response(response, request))
    return in_pieces[1]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_large_outputs_are_written_alike(datatype: str) -> None:
    tensor = many(datatype)
    assert len(json.loads(encode_both_ways([tensor], {}))["outputs"][0]["data"]) == MANY


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_large_outputs_that_are_not_finite_are_written_alike(datatype: str, special: float) -> None:
    array = to_array(many(datatype)).copy()
    array[-1, -1] = special
    encode_both_ways([Tensor("O", datatype, array.shape, array.tobytes())], {})


def test_large_outputs_beside_others_are_written_alike() -> None:
    outputs = [
        Tensor("A", "INT32", (0,), b""),
        many("FP32"),
        Tensor("P", "BYTES", (2,), pack_bytes([b"ab", b"\xff\x00"]), {"p": 1}),
        Tensor("Z", "INT64", (1,), bytes(8), {"q": True}),
    ]
    wanted = [{"name": name, "parameters": {"binary_data": name == "P"}} for name in "AOPZ"]
    body = encode_both_ways(outputs, {"id": "abc", "outputs": wanted})
    assert body.endswith(b"\x02\0\0\0ab\x02\0\0\0\xff\0")


def test_binary_and_small_outputs_are_not_large() -> None:
    response = InferResponse("m", "1", [many("FP32")])
    assert not large_outputs(response, decode_document({"inputs": [], "parameters": {"binary_data_output": True}}))
    assert not large_outputs(InferResponse("m", "1", [one_input("FP32", [2], [1, 2])]), decode_document({"inputs": []}))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_long_inputs(datatype: str) -> None:
    tensor = many(datatype)
    _, text = joined(encode_response(InferResponse("m", "1", [tensor]), decode_document({"inputs": []})))
    data = json.loads(text)["outputs"][0]["data"]
    assert bytes(one_input(datatype, [MANY], data).data) == bytes(tensor.data)


@pytest.mark.parametrize("rows", [1, 2, MANY // 10, MANY])
def test_long_nested_inputs(rows: int) -> None:
    data = list(range(MANY))
    columns = MANY // rows
    nested = [data[start : start + columns] for start in range(0, MANY, columns)]
    assert to_array(one_input("INT32", [rows, columns], nested)).reshape(-1).tolist() == data


@pytest.mark.parametrize(
    ("datatype", "last", "text"),
    [
        ("INT32", "x", f"element {MANY} is a string"),
        ("INT32", 2**31, f"{2**31} is out of range of INT32"),
        ("INT64", -(2**70), "64-bit"),
        ("FP32", 1e39, "1e\\+39 is out of range of FP32"),
        ("FP32", [1], "arrays and elements on the same level"),
    ],
)
def test_long_inputs_that_do_not_fit(datatype: str, last: Any, text: str) -> None:
    # NaN in a place that nobody reads makes the document one for the slow parser.
    for beside in (None, math.nan):
        document = {
            "x": beside,
            "inputs": [{"name": "X", "datatype": datatype, "shape": [MANY + 1], "data": [1] * MANY + [last]}],
        }
        if type(last) is int and beside is None and last < -(2**63):
            continue  # the fast parser makes a float of it
        with pytest.raises(InvalidArgument, match=text):
            decode_document(document)


def test_long_document_with_nan() -> None:
    data = [0.5, 3] * MANY + [math.nan]
    tensor = one_input("FP64", [len(data)], data)
    assert np.array_equal(to_array(tensor), np.array(data), equal_nan=True)
    with pytest.raises(InvalidArgument, match="failed to parse"):
        decode_document(json.dumps({"inputs": [], "x": [*data, "\ud800"]}).encode())
    with pytest.raises(InvalidArgument, match="nested deeper than 100"):
        decode(b'{"inputs":[],"x":[' + b"1," * MANY + b"[" * 101 + b"]" * 101 + b"]}")

"""The quick codec gives what the general one gives, byte for byte, or leaves it to that."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.requests import InferResponse, RequestContext, RequestedOutput
from roost.core.tensors import DATATYPES, Tensor
from roost.server.rest.codec import RestInferRequest, decode_infer
from roost.server.rest.codec_quick import decode_plain
from roost.server.rest.codec_quick_out import encode, write_plain
from roost.server.rest.codec_response import encode_response, write_response

# Both letters that tell of booleans, the booleans themselves, and what needs escapes.
NAMES = st.sampled_from(["X", "Y", "input_values", "ulu", "true", "false", "", "é\n", "OUTPUT0"]) | st.text(max_size=4)
ELEMENTS = st.one_of(
    st.integers(-129, 256),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.sampled_from([True, False, None, "1", 1e16, 65504.0, 65520.0, 3.4028235677973366e38, 1e39, {}, {"u": True}]),
)
DIMS = st.sampled_from([0, 1, 2, 3, -1, 2**40, True, 1.0, "2"])
SHAPES: st.SearchStrategy[Any] = st.lists(DIMS, max_size=3) | st.just({})
# Mostly of one kind, so that something can be right.
FLAT = (
    st.lists(st.integers(0, 127), max_size=6)
    | st.lists(st.floats(width=16), max_size=6)
    | st.lists(ELEMENTS, max_size=6)
)
DATA = FLAT | st.lists(FLAT, max_size=3) | st.lists(st.lists(FLAT, max_size=2), max_size=2) | ELEMENTS
PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "priority", "binary_data_output", "triton_x", "ul", "k"]),
    st.sampled_from([True, False, 0, 1, 2_000_000, 1.5, "true", "lu", None]),
    max_size=2,
)


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, Any]:
    item: dict[str, Any] = {
        "name": draw(NAMES | st.sampled_from([5, None, ["X"], {"X": 1}, True])),
        "datatype": draw(st.sampled_from([*DATATYPES, "FLOAT", 5, None, ["FP32"], True])),
        "shape": draw(SHAPES),
    }
    match draw(st.integers(0, 9)):
        case 0:
            item["parameters"] = {"binary_data_size": draw(st.sampled_from([0, 1, 4, 8, -1, True, "4"]))}
        case 1:
            item |= {"data": draw(DATA), "parameters": draw(PARAMETERS)}
        case 2:
            item |= {"data": draw(DATA), "more": True}
        case _:
            # With a shape that fits, more often than chance would have it.
            data = draw(FLAT)
            item |= {"data": data, "shape": draw(st.sampled_from([[len(data)], [1, len(data)], item["shape"]]))}
    if draw(st.integers(0, 20)) == 0:
        del item[draw(st.sampled_from(sorted(item)))]
    return item


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """The JSON of a request, right or wrong."""
    document: dict[str, Any] = {"inputs": draw(st.lists(inputs(), max_size=3))}
    for key, values in (
        ("id", st.sampled_from(["", "7", "true", "ul", 5])),
        ("parameters", PARAMETERS | st.sampled_from([["timeout"], "t", 5, None])),
        ("outputs", st.lists(st.fixed_dictionaries({"name": NAMES}, optional={"parameters": PARAMETERS}), max_size=2)),
        ("outputs", st.sampled_from([["Y"], {"Y": True}, 5, None])),
        ("more", st.sampled_from([True, False, [[1]]])),
    ):
        if draw(st.integers(0, 3)) == 0:
            document[key] = draw(values)
    text = json.dumps(document, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        letter = draw(st.sampled_from("ulXtf"))
        # Within strings this is the same letter, elsewhere it is not JSON.
        text = text.replace(letter, f"\\u{ord(letter):04x}", draw(st.integers(1, 3)))
    return text.encode()


def plain_input(**changes: Any) -> dict[str, Any]:
    return {"name": "X", "datatype": "INT32", "shape": [1, 2], "data": [1, 2], **changes}


def of_inputs(*items: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": items, **more}).encode()


def check_decode(text: bytes, binary: bytes = b"") -> RestInferRequest | None:
    """The quick decoder's request; it is the general one's too."""
    context = RequestContext(100.0, 160.0)
    found = decode_plain(text, memoryview(binary), "m", "2", context)
    if found is not None:
        body, expected_context = memoryview(text + binary), RequestContext(100.0, 160.0)
        expected = decode_infer(body, len(text), model_name="m", model_version="2", context=expected_context)
        # NaN in a parameter is not equal to itself, but is written the same.
        assert repr(normal(found)) == repr(normal(expected))
    return found


def normal(request: RestInferRequest) -> Any:
    tensors = [(t.name, t.datatype, t.shape, bytes(t.data), dict(t.parameters)) for t in request.inputs]
    return (
        *(request.model_name, request.model_version, request.context, tensors, request.outputs, request.id),
        *(dict(request.parameters), request.namespace, dict(request.regions), request.binary_by_default),
    )


@settings(max_examples=200, deadline=None)
@given(documents(), st.binary(max_size=12))
@example(of_inputs(plain_input(data=[True, 2])), b"")
@example(of_inputs(plain_input(name="l", data=[False, 2])).replace(b'"l"', b'"\\u006c"'), b"")
@example(of_inputs(plain_input(name="lu", data=[True, False])).replace(b'"lu"', b'"\\u006c\\u0075"'), b"")
@example(of_inputs(plain_input(data=[True, 2])).replace(b'"inputs"', b'"inp\\u0075ts"'), b"")
@example(of_inputs(plain_input(shape=[1, 2.0])), b"")
def test_quick_decoder_agrees(text: bytes, binary: bytes) -> None:
    check_decode(text, binary)


PLAIN = {
    "integers": of_inputs(plain_input()),
    "a nested row": of_inputs(plain_input(data=[[1, 2]])),
    "nested rows": of_inputs(plain_input(shape=[2, 2], data=[[1, 2], [3, 4]])),
    "nested deep": of_inputs(plain_input(datatype="FP32", shape=[1, 2, 2, 2], data=[[[[1, 2], [3, 4]]] * 2])),
    "floats": of_inputs(plain_input(datatype="FP32", data=[1, 2.5])),
    "many floats": of_inputs(plain_input(datatype="FP32", shape=[40_000], data=[0.1] * 40_000)),
    "half floats": of_inputs(plain_input(datatype="FP16", data=[1.0009765625, -2])),
    "booleans": of_inputs(plain_input(datatype="BOOL", data=[True, False])),
    "strings": of_inputs(plain_input(datatype="BYTES", data=["a", "ü"])),
    "brain floats": of_inputs(plain_input(datatype="BF16", data=[1, 2.5])),
    "a lower-case name": of_inputs(plain_input(name="full_input_values")),
    "an id": of_inputs(plain_input(), id="abc"),
    "outputs": of_inputs(plain_input(), outputs=[{"name": "Y", "parameters": {"binary_data": True}}, {"name": "Z"}]),
    "a timeout": of_inputs(plain_input(), parameters={"timeout": 20_000, "priority": 1}),
    "no inputs": of_inputs(),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_documents_are_read_quickly(case: str) -> None:
    assert check_decode(PLAIN[case]) is not None


def test_binary_inputs_are_views_on_the_body() -> None:
    items = [plain_input(name=name, data=..., parameters={"binary_data_size": 8}) for name in ("X", "Y")]
    text = of_inputs(*({key: value for key, value in item.items() if value is not ...} for item in items))
    body = np.arange(4, dtype="<i4").tobytes()
    found = check_decode(text, body)
    assert found is not None
    assert [memoryview(tensor.data).obj for tensor in found.inputs] == [body, body]
    assert check_decode(text, body + b"x") is None
    assert check_decode(text, body[:-1]) is None


@st.composite
def responses(draw: st.DrawFn) -> tuple[InferResponse, RestInferRequest]:
    outputs = []
    for name in draw(st.lists(st.sampled_from(["Y", "Z", 'a"\né']), unique=True, max_size=3)):
        datatype = DATATYPES[draw(st.sampled_from(list(DATATYPES)))]
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        count = int(np.prod(shape))
        size = count * (datatype.itemsize or 4)
        # Strings: all of them empty.
        data = draw(st.binary(min_size=size, max_size=size)) if datatype.itemsize else bytes(size)
        if datatype.dtype is not None and datatype.dtype.kind == "f" and draw(st.booleans()):
            values = np.array(draw(st.lists(st.floats(width=16), min_size=1)), datatype.dtype)
            data = np.resize(values, count).tobytes()
        parameters = draw(st.sampled_from([{}, {}, {}, {"p": 1}]))
        outputs.append(
            Tensor(name, datatype.name, shape, memoryview(data) if draw(st.booleans()) else data, parameters)
        )
    request = RestInferRequest("m", "", RequestContext(0.0), [], id=draw(st.sampled_from(["", "7", 'a"é'])))
    request.binary_by_default = draw(st.booleans())
    if draw(st.booleans()):
        request.outputs = [RequestedOutput(tensor.name, draw(st.booleans())) for tensor in outputs]
    response = InferResponse("m", "1", outputs, parameters=draw(st.sampled_from([{}, {}, {"q": 0.5}])))
    if draw(st.integers(0, 5)) == 0:
        response.in_regions = frozenset(tensor.name for tensor in outputs)
    return response, request


@settings(max_examples=150, deadline=None)
@given(responses())
def test_quick_encoder_agrees(pair: tuple[InferResponse, RestInferRequest]) -> None:
    response, request = pair
    found = write_plain(response, request)
    if found is not None:
        assert list(map(bytes, found)) == list(map(bytes, write_response(response, request)))


@pytest.mark.parametrize(
    "values", [[0.1, 1e-7, 1.0], [1e15, 3e-5], [1e16], [1e22, 1.0], [float("nan")], [float("-inf")]]
)
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("repeat", [1, 50])
def test_floats_are_written_the_same(values: list[float], datatype: str, repeat: int) -> None:
    dtype = DATATYPES[datatype].dtype
    assert dtype is not None
    array = np.array(values * repeat, dtype)
    response = InferResponse("m", "1", [Tensor("Y", datatype, array.shape, array.tobytes())])
    request = RestInferRequest("m", "", RequestContext(0.0), [])
    assert encode(response, request) == encode_response(response, request)
    is_plain = bool(np.isfinite(array).all()) and max(values) < 1e16
    assert (write_plain(response, request) is not None) == is_plain


WRONG = {
    "too short": Tensor("Y", "INT32", (2,), bytes(7)),
    "too long": Tensor("Y", "FP32", (100,), bytes(401)),
    "not UTF-8": Tensor("Y", "BYTES", (1,), b"\x01\0\0\0\xff"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_left_to_the_general_encoder(case: str) -> None:
    request, response = RestInferRequest("m", "", RequestContext(0.0), []), InferResponse("m", "1", [WRONG[case]])
    assert write_plain(response, request) is None
    with pytest.raises(InvalidArgument):
        encode(response, request)

"""The codec without protobuf objects gives what the general one gives, for every message and however often it came."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor
from roost.proto import grpc_service_pb2 as pb
from roost.server import grpc_codec, grpc_plain
from roost.server.grpc_plain import InferCodec

names = st.sampled_from(["", "m", "X", "näme", "n" * 130])
datatypes = st.sampled_from(["FP32", "INT8", "BYTES", "nonsense"])
shapes = st.lists(st.integers(-1, 300), max_size=3)
parameters = st.sampled_from(["priority", "timeout", "sequence_start", "triton_x", "scale", "shared_memory_region"])
contents = st.one_of(st.binary(max_size=300), st.sampled_from([bytes(20_000), bytes(140_000)]))


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=draw(names), model_version=draw(st.sampled_from(["", "1"])))
    for _ in range(draw(st.integers(0, 3))):
        item = message.inputs.add(name=draw(names), datatype=draw(datatypes), shape=draw(shapes))
        if draw(st.integers(0, 9)) == 0:
            item.contents.int_contents.extend([1, 2])
        if draw(st.integers(0, 9)) == 0:
            item.parameters[draw(parameters)].string_param = "x"
    for name in draw(st.lists(names, max_size=2)):
        message.outputs.add(name=name)
    if draw(st.integers(0, 3)) == 0:
        message.parameters[draw(parameters)].int64_param = draw(st.integers(-1, 5))
    return message


def outcome(codec: InferCodec | None, raw: bytes, headers: dict[str, str] | None = None) -> InferRequest | str:
    decode = grpc_codec.decode_infer if codec is None else codec.decode_infer
    try:
        request = decode(raw, 7.0, 2.0, caller="me", traceparent="00-1", headers=headers)
    except InvalidArgument as error:
        return error.message
    request.parameters = dict(request.parameters)
    for item in request.inputs:
        item.data = bytes(item.data)
    return request


CODEC = InferCodec()  # one for all, so that what it remembers of one message meets the others


@given(
    requests(),
    st.lists(st.tuples(st.sampled_from(["", "a", "ä" * 40, "i" * 200]), st.lists(contents, max_size=3)), min_size=1),
    st.sampled_from([None, {"scale": "header"}]),
)
@settings(deadline=None)
def test_decoding_is_the_general_decoding(
    message: pb.ModelInferRequest, varied: list[tuple[str, list[bytes]]], headers: dict[str, str] | None
) -> None:
    for request_id, raws in varied:
        message.id = request_id
        del message.raw_input_contents[:]
        message.raw_input_contents.extend(raws)
        raw = message.SerializeToString()
        expected = outcome(None, raw, headers)
        assert outcome(CODEC, raw, headers) == expected
        assert outcome(CODEC, raw, headers) == expected


@given(requests(), st.lists(st.binary(max_size=40), min_size=1, max_size=3), st.data())
@settings(deadline=None)
def test_damaged_and_oddly_written_messages_are_too(
    message: pb.ModelInferRequest, raws: list[bytes], choices: st.DataObject
) -> None:
    message.raw_input_contents.extend(raws)
    good = message.SerializeToString()
    outcome(CODEC, good)
    raw = bytearray(good)
    for _ in range(choices.draw(st.integers(1, 3))):
        at = choices.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[at : at + choices.draw(st.integers(0, 2))] = choices.draw(st.binary(max_size=3))
    assert outcome(CODEC, bytes(raw)) == outcome(None, bytes(raw))
    twice = good + bytes(raw)
    assert outcome(CODEC, twice) == outcome(None, twice)


ONE_INPUT = pb.ModelInferRequest(model_name="m")
ONE_INPUT.inputs.add(name="X", datatype="UINT8", shape=[1])
HEAD = ONE_INPUT.SerializeToString()


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"\x3a\x81\x00x",  # an overlong length
        HEAD + b"\x3a\x01x\x3a\x01y",  # more contents than inputs
        HEAD + b"\x3a\x01x\x1a\x01i",  # the id behind the contents
        HEAD + b"\x1a\x01i\x3a\x01x",  # the id behind the inputs
        b"\x1a\x01i" + HEAD + b"\x3a\x01x",  # the id before the name
        HEAD[:3] + b"\x1a\x02\xff\xfe" + HEAD[3:] + b"\x3a\x01x",  # an id that is no text
        HEAD + b"\x3a\x05x",
        HEAD + b"\x3a",
        HEAD,
        b"",
    ],
)
def test_what_is_not_plain_after_what_is(raw: bytes) -> None:
    codec = InferCodec()
    assert not isinstance(outcome(codec, HEAD + b"\x3a\x01x"), str)
    assert outcome(codec, raw) == outcome(None, raw)


def test_requests_share_nothing_that_is_theirs() -> None:
    codec = InferCodec()
    first, second = (codec.decode_infer(HEAD + b"\x3a\x01" + data, 0.0, 1.0) for data in (b"x", b"y"))
    assert [item.inputs[0].data for item in (first, second)] == [b"x", b"y"]
    assert first.inputs is not second.inputs
    assert first.context is not second.context


responses = st.builds(
    InferResponse,
    names,
    st.sampled_from(["", "1", "12"]),
    st.lists(
        st.builds(
            Tensor,
            names,
            datatypes,
            shapes.map(tuple),
            st.one_of(contents, contents.map(bytearray), contents.map(lambda data: memoryview(data))),
            st.sampled_from([{}, {}, {"binary_data_size": 3}]),
        ),
        max_size=3,
    ),
    st.sampled_from(["", "a", "ä" * 100]),
    st.sampled_from([{}, {}, {"p": 1.5}]),
)


@given(responses)
@settings(deadline=None)
def test_encoding_is_the_general_encoding(response: InferResponse) -> None:
    expected = grpc_codec.encode_response(response)
    assert CODEC.encode_response(response) == expected
    parts, size_bytes = CODEC.encode_parts(response)
    assert b"".join(parts) == expected
    assert size_bytes == len(expected)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_plain, "_MAX_TEMPLATES", 4)
    codec = InferCodec()
    for number in range(30):
        name = f"model {number}"
        message = pb.ModelInferRequest(model_name=name, raw_input_contents=[b"x" * number])
        message.inputs.add(name="X", datatype="UINT8", shape=[number])
        assert codec.decode_infer(message.SerializeToString(), 0.0, 1.0).model_name == name
        codec.encode_response(InferResponse(name, "1", [Tensor("Y", "UINT8", (number,), bytes(number))]))
    assert all(len(memory) <= 4 for memory in codec.memories)
    large = "m" * 100
    message = pb.ModelInferRequest(model_name=large, raw_input_contents=[b"x"])
    message.inputs.add(name="X" * 100_000, datatype="UINT8", shape=[1])
    before = [len(memory) for memory in codec.memories]
    codec.decode_infer(message.SerializeToString(), 0.0, 1.0)
    assert len(codec.memories[0]) == before[0]

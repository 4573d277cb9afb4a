"""The gRPC codec: what valid messages become, and that invalid ones become InvalidArgument and nothing else."""

from __future__ import annotations

import contextlib
import gzip
import math
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import (
    Code,
    InvalidArgument,
    LoadFailed,
    PollFailed,
    RegionTooSmall,
    ResourceExhausted,
    RoostError,
    error_of,
)
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.requests import InferRequest, InferResponse, RegionSlice
from roost.core.tensors import DATATYPES, ParameterValue, Tensor, TensorSpec, pack_bytes, to_array
from roost.proto import grpc_service_pb2 as pb
from roost.server import grpc_codec as codec
from roost.server import grpc_messages as messages
from roost.server import grpc_wire
from roost.server.grpc_errors import STATUS_OF_CODE, details_of, status_of, trailing_metadata_of
from roost.server.grpc_receive import inflate
from roost.server.unexpected import unexpected


def decode(message: pb.ModelInferRequest, timeout_s: float = 60.0) -> InferRequest:
    return codec.decode_infer(message.SerializeToString(), 1000.0, timeout_s)


def typed(datatype: str, field: str, values: list[object], shape: list[int] | None = None) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    item = message.inputs.add(name="X", datatype=datatype, shape=shape if shape is not None else [len(values)])
    item.contents.SetInParent()
    getattr(item.contents, field).extend(values)
    return message


def with_raws(*raws: bytes, inputs: int = 1) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=raws)
    for index in range(inputs):
        message.inputs.add(name=f"X{index}", datatype="UINT8", shape=[len(raws[0])])
    return message


def refusal(message: pb.ModelInferRequest) -> str:
    with pytest.raises(InvalidArgument) as info:
        decode(message)
    return info.value.message


# -- requests -------------------------------------------------------------------------------------------------------


def test_everything_of_a_request_arrives() -> None:
    message = pb.ModelInferRequest(model_name="m", model_version="3", id="an id", raw_input_contents=[b"\x01\x00" * 2])
    message.inputs.add(name="X", datatype="INT16", shape=[2, 1]).parameters["note"].string_param = "x"
    message.outputs.add(name="Y").parameters["scale"].double_param = 0.5
    message.parameters["flag"].bool_param = True
    message.parameters["level"].int64_param = -4
    message.parameters["name"].string_param = "n"
    message.parameters["factor"].double_param = 1.5
    request = codec.decode_infer(message.SerializeToString(), 5.0, 2.0, caller="me", traceparent="00-aa")
    assert (request.model_name, request.model_version, request.id) == ("m", "3", "an id")
    assert request.parameters == {"flag": True, "level": -4, "name": "n", "factor": 1.5}
    assert [(o.name, o.parameters) for o in request.outputs] == [("Y", {"scale": 0.5})]
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape, tensor.parameters) == ("X", "INT16", (2, 1), {"note": "x"})
    assert to_array(tensor).tolist() == [[1], [1]]
    assert (request.context.received, request.context.deadline) == (5.0, 7.0)
    assert (request.context.caller, request.context.traceparent) == ("me", "00-aa")


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False, True]),
        ("INT8", "int_contents", [-128, 0, 127]),
        ("INT16", "int_contents", [-32768, 0, 32767]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, math.inf, -1.25]),
        ("FP64", "fp64_contents", [0.1, -math.inf]),
        ("BYTES", "bytes_contents", [b"", b"ab", b"\xff\x00"]),
        ("FP32", "fp32_contents", []),
        ("BYTES", "bytes_contents", []),
    ],
)
def test_typed_contents_become_the_bytes_of_their_datatype(datatype: str, field: str, values: list[object]) -> None:
    (tensor,) = decode(typed(datatype, field, values)).inputs
    assert to_array(tensor).tolist() == values
    if datatype == "BYTES":
        assert bytes(tensor.data) == pack_bytes(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("INT8", "int_contents", 128),
        ("INT8", "int_contents", -129),
        ("INT16", "int_contents", 40000),
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 65536),
    ],
)
def test_integers_that_do_not_fit_are_refused_not_truncated(datatype: str, field: str, value: int) -> None:
    text = refusal(typed(datatype, field, [0, value]))
    assert str(value) in text
    assert datatype in text
    assert "'X'" in text


def test_wrong_typed_field_is_refused() -> None:
    assert "unexpected explicit tensor data" in refusal(typed("INT32", "fp32_contents", [1.0]))
    both = typed("INT32", "int_contents", [1])
    both.inputs[0].contents.fp32_contents.append(1.0)
    assert "unexpected explicit tensor data" in refusal(both)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_raw_only(datatype: str) -> None:
    assert "raw_input_contents" in refusal(typed(datatype, "fp32_contents", [1.0]))
    message = pb.ModelInferRequest(raw_input_contents=[b"\x00\x3c"])
    message.inputs.add(name="X", datatype=datatype, shape=[1])
    assert bytes(decode(message).inputs[0].data) == b"\x00\x3c"


def test_unknown_datatype_is_left_to_validation_if_raw_and_refused_if_typed() -> None:
    message = with_raws(b"ab")
    message.inputs[0].datatype = "FP7"
    assert decode(message).inputs[0].datatype == "FP7"
    assert "FP7" in refusal(typed("FP7", "fp32_contents", [1.0]))


def test_raw_and_typed_together_are_refused() -> None:
    message = typed("INT32", "int_contents", [1])
    message.raw_input_contents.append(b"\x01\x00\x00\x00")
    assert "must not be specified when using raw_input_contents" in refusal(message)


def test_no_data_is_refused_naming_the_tensor() -> None:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="X", datatype="FP32", shape=[1])
    assert "unable to find data for input tensor 'X'" in refusal(message)
    assert "unable to find data for input tensor 'X1'" in refusal(with_raws(b"ab", inputs=2))


@pytest.mark.parametrize("size", [2, 200_000])
def test_raws_go_to_the_inputs_in_order_and_extra_ones_are_ignored(size: int) -> None:
    request = decode(with_raws(b"a" * size, b"b" * size, b"c" * size, inputs=2))
    assert [bytes(t.data) for t in request.inputs] == [b"a" * size, b"b" * size]


def test_large_raws_are_views_on_the_message() -> None:
    raw = with_raws(b"a" * 200_000).SerializeToString()
    data = codec.decode_infer(raw, 0.0, 1.0).inputs[0].data
    assert isinstance(data, memoryview)
    assert data.obj is raw


def test_empty_raw_is_data() -> None:
    message = with_raws(b"")
    message.inputs[0].shape[:] = [1, 0]
    assert bytes(decode(message).inputs[0].data) == b""


# -- parameters -----------------------------------------------------------------------------------------------------


def parameter(name: str, field: str, value: object) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    setattr(message.parameters[name], field, value)
    return message


def test_deadline_is_the_earliest() -> None:
    assert decode(parameter("timeout", "int64_param", 2_500_000)).context.deadline == 1002.5
    assert decode(parameter("timeout", "int64_param", 2_500_000), 1.0).context.deadline == 1001.0
    assert decode(parameter("timeout", "int64_param", 0)).context.deadline == 1060.0
    assert "timeout" in refusal(parameter("timeout", "int64_param", -1))
    assert "timeout" in refusal(parameter("timeout", "string_param", "x"))


@pytest.mark.parametrize("field", ["int64_param", "uint64_param"])
def test_priority(field: str) -> None:
    request = decode(parameter("priority", field, 2))
    assert request.context.priority == 2
    assert request.parameters == {}
    assert "priority" in refusal(parameter("priority", "int64_param", -1))


def test_sequence_parameters_reach_the_model() -> None:
    assert decode(parameter("sequence_id", "uint64_param", 2**64 - 1)).parameters == {"sequence_id": 2**64 - 1}
    assert decode(parameter("sequence_id", "string_param", "s")).parameters == {"sequence_id": "s"}
    assert decode(parameter("sequence_start", "bool_param", True)).parameters == {"sequence_start": True}
    assert "sequence_end" in refusal(parameter("sequence_end", "int64_param", 1))


def test_reserved_and_mistyped_parameters_are_refused() -> None:
    assert "reserved" in refusal(parameter("triton_x", "bool_param", True))
    assert "reserved" in refusal(parameter("headers", "string_param", ""))
    assert "uint64_param" in refusal(parameter("mine", "uint64_param", 1))
    message = pb.ModelInferRequest()
    message.parameters["empty"].SetInParent()
    assert "'empty'" in refusal(message)
    assert decode(parameter("triton_enable_empty_final_response", "bool_param", True)).parameters == {}


def shared(item: Any, **values: object) -> None:
    for name, value in values.items():
        field = "string_param" if isinstance(value, str) else "int64_param"
        setattr(item.parameters["shared_memory_" + name], field, value)


def test_inputs_in_shared_memory_have_no_raw_contents() -> None:
    message = with_raws(b"ab", b"cd", inputs=4)
    shared(message.inputs[0], region="r", byte_size=8)
    shared(message.inputs[2], region="s", byte_size=4, offset=16)
    message.inputs[2].parameters["note"].string_param = "x"
    request = decode(message)
    assert request.regions == {"X0": RegionSlice("r", 8), "X2": RegionSlice("s", 4, 16)}
    assert [bytes(tensor.data) for tensor in request.inputs] == [b"", b"ab", b"", b"cd"]
    assert request.inputs[2].parameters == {"note": "x"}
    only_shared = pb.ModelInferRequest()
    shared(only_shared.inputs.add(name="X", datatype="UINT8", shape=[2]), region="r", byte_size=2)
    assert decode(only_shared).regions == {"X": RegionSlice("r", 2)}
    assert decode(with_raws(b"ab")).regions == {}


def test_outputs_may_be_classified_or_go_to_shared_memory() -> None:
    message = with_raws(b"ab")
    shared(message.outputs.add(name="Y"), region="r", byte_size=8, offset=4)
    message.outputs.add(name="Z").parameters["classification"].int64_param = 3
    first, second = decode(message).outputs
    assert (first.region, first.classification, first.parameters) == (RegionSlice("r", 8, 4), 0, {})
    assert (second.region, second.classification, second.parameters) == (None, 3, {})


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"region": "r"}, "shared_memory_byte_size"),
        ({"byte_size": 8}, "without 'shared_memory_region'"),
        ({"offset": 8}, "without 'shared_memory_region'"),
        ({"region": "r", "byte_size": -1}, "-1"),
        ({"region": "r", "byte_size": 8, "offset": -1}, "-1"),
        ({"region": 5, "byte_size": 8}, "string_param"),
        ({"region": "r", "byte_size": "8"}, "int64_param"),
    ],
)
def test_shared_memory_parameters_that_make_no_sense(parameters: dict[str, object], expected: str) -> None:
    message = with_raws(b"ab")
    shared(message.inputs[0], **parameters)
    assert expected in refusal(message)
    message = with_raws(b"ab")
    shared(message.outputs.add(name="Y"), **parameters)
    text = refusal(message)
    assert expected in text


def test_conflicts_of_tensors_are_refused() -> None:
    message = typed("INT32", "int_contents", [1])
    shared(message.inputs[0], region="r", byte_size=4)
    assert "unexpected 'content' provided when using shared memory for input tensor 'X'" in refusal(message)
    twice = pb.ModelInferRequest()
    for _ in range(2):
        shared(twice.inputs.add(name="X", datatype="UINT8", shape=[2]), region="r", byte_size=2)
    assert "already exists" in refusal(twice)
    many = pb.ModelInferRequest()
    for index in [*range(20_000), 19_999]:
        many.outputs.add(name=f"Y{index}")
    began = time.process_time()
    assert "output 'Y19999' already exists" in refusal(many)
    assert time.process_time() - began < 2  # 5 s if each name is looked for among all
    for field, value in (("int64_param", 0), ("int64_param", -1), ("string_param", "2")):
        message = with_raws(b"ab")
        setattr(message.outputs.add(name="Y").parameters["classification"], field, value)
        assert "'classification'" in refusal(message)
    message.outputs[0].parameters["classification"].int64_param = 2
    shared(message.outputs[0], region="r", byte_size=4)
    assert "shared memory" in refusal(message)


def test_forwarded_headers_are_parameters_that_the_client_cannot_replace() -> None:
    raw = parameter("x-user", "string_param", "somebody").SerializeToString()
    assert codec.decode_infer(raw, 0.0, 1.0, headers={"x-user": "me"}).parameters == {"x-user": "me"}


# -- responses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 127, 128, 70_000])
def test_response_is_what_protobuf_reads(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    strings = pack_bytes([b"a", b"\xff"])
    outputs = [
        Tensor("Y", "UINT8", (size,), memoryview(data), {"p": 1.5}),
        Tensor("Z", "BYTES", (2,), bytearray(strings)),
        Tensor("W", "FP32", (2, 2), np.ones((2, 2), np.float32).data),
    ]
    parameters: dict[str, ParameterValue] = {"b": True, "i": -1, "u": 2**64 - 1, "s": "text"}
    message = pb.ModelInferResponse.FromString(
        codec.encode_response(InferResponse("m", "7", outputs, "id", parameters))
    )
    assert (message.model_name, message.model_version, message.id) == ("m", "7", "id")
    assert [(o.name, o.datatype, list(o.shape)) for o in message.outputs] == [
        ("Y", "UINT8", [size]),
        ("Z", "BYTES", [2]),
        ("W", "FP32", [2, 2]),
    ]
    assert list(message.raw_output_contents) == [data, strings, np.ones(4, np.float32).tobytes()]
    assert message.parameters["b"].bool_param is True
    assert message.parameters["i"].int64_param == -1
    assert message.parameters["u"].uint64_param == 2**64 - 1
    assert message.parameters["s"].string_param == "text"
    assert message.outputs[0].parameters["p"].double_param == 1.5


def test_response_beyond_what_grpc_can_carry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_RESPONSE_BYTES", 1000)
    with pytest.raises(InvalidArgument, match="over gRPC's limit"):
        codec.encode_response(InferResponse("m", "1", [Tensor("Y", "UINT8", (1000,), bytes(1000))]))


def test_stream_responses_carry_the_flag() -> None:
    outputs = [Tensor("Y", "UINT8", (200,), bytes(200))]
    for final in (True, False):
        response = InferResponse("m", "1", outputs, "id", {"mine": 1}, final=final)
        message = pb.ModelStreamInferResponse.FromString(codec.encode_stream_response(response))
        assert not message.error_message
        flag = message.infer_response.parameters.pop("triton_final_response")
        assert flag.WhichOneof("parameter_choice") == "bool_param"
        assert flag.bool_param is final
        assert message.infer_response.SerializeToString() == codec.encode_response(response)
    error = pb.ModelStreamInferResponse.FromString(codec.encode_stream_error("a\udc80b", "id"))
    assert (error.error_message, error.infer_response.id, len(error.infer_response.parameters)) == ("a?b", "id", 0)


def test_streams_read_whether_an_empty_end_is_wanted() -> None:
    for wanted in (True, False):
        message = parameter("triton_enable_empty_final_response", "bool_param", wanted)
        assert codec.read_infer(message, [], 0.0, 1.0)[1] is wanted
    assert "bool_param" in refusal(parameter("triton_enable_empty_final_response", "int64_param", 1))


def test_metadata_and_index() -> None:
    server = pb.ServerMetadataResponse.FromString(messages.encode_server_metadata(ServerMetadata("n", "v", ("a", "b"))))
    assert (server.name, server.version, list(server.extensions)) == ("n", "v", ["a", "b"])
    spec = TensorSpec("X", "FP32", (-1, 3))
    raw = messages.encode_model_metadata(ModelMetadata("m", ("1", "2"), "p", (spec,), (spec,)))
    model = pb.ModelMetadataResponse.FromString(raw)
    assert (model.name, list(model.versions), model.platform) == ("m", ["1", "2"], "p")
    assert [(t.name, t.datatype, list(t.shape)) for t in (*model.inputs, *model.outputs)] == [
        ("X", "FP32", [-1, 3])
    ] * 2
    index = pb.RepositoryIndexResponse.FromString(messages.encode_index([IndexEntry("m", "1", "READY", "r")]))
    assert [(e.name, e.version, e.state, e.reason) for e in index.models] == [("m", "1", "READY", "r")]


def test_repository_call() -> None:
    message = pb.RepositoryModelLoadRequest(model_name="m")
    message.parameters["config"].string_param = "{}"
    message.parameters["file:1/model.onnx"].bytes_param = b"\x00\xff"
    call = messages.decode_repository_call(pb.RepositoryModelLoadRequest, message.SerializeToString())
    assert (call.model_name, call.repository_name) == ("m", "")
    assert call.parameters == {"config": "{}", "file:1/model.onnx": b"\x00\xff"}
    message.parameters["nothing"].SetInParent()
    with pytest.raises(InvalidArgument, match="'nothing'"):
        messages.decode_repository_call(pb.RepositoryModelLoadRequest, message.SerializeToString())


# -- arbitrary bytes ------------------------------------------------------------------------------------------------


def decode_or_refuse(raw: bytes) -> InferRequest | None:
    try:
        return codec.decode_infer(raw, 0.0, 60.0)
    except InvalidArgument:
        return None


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_nothing_else(raw: bytes) -> None:
    decode_or_refuse(raw)
    for cls in (pb.RepositoryModelLoadRequest, pb.RepositoryModelUnloadRequest):
        with contextlib.suppress(InvalidArgument):
            messages.decode_repository_call(cls, raw)


TENSOR_PARAMETERS = ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "classification", "x"]


@st.composite
def infer_messages(draw: st.DrawFn) -> bytes:
    """Serialized requests that are valid as messages, if not always as requests."""
    message = pb.ModelInferRequest(model_name=draw(st.text(max_size=8)), id=draw(st.text(max_size=4)))
    for name in draw(st.lists(st.sampled_from(["priority", "timeout", "mine", "triton_a"]), max_size=2)):
        field = draw(st.sampled_from(["int64_param", "uint64_param"]))
        setattr(message.parameters[name], field, draw(st.integers(0, 2**63 - 1)))
    datatypes = st.sampled_from([*DATATYPES, "NONE"])
    for name in draw(st.lists(st.text(max_size=4), max_size=3)):
        shape = draw(st.lists(st.integers(-1, 2**40), max_size=3))
        item = message.inputs.add(name=name, datatype=draw(datatypes), shape=shape)
        for tensor in (item, message.outputs.add(name=name)):
            for key in draw(st.lists(st.sampled_from(TENSOR_PARAMETERS), max_size=2)):
                tensor.parameters[key].int64_param = draw(st.integers(-1, 2**63 - 1))
        if draw(st.booleans()):
            item.contents.int_contents.extend(draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)))
            item.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=3), max_size=2)))
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=200), max_size=4)))
    return message.SerializeToString()


LARGE_RAW = b"\x3a" + grpc_wire.encode_varint(140_000) + bytes(140_000)


@given(infer_messages(), st.sampled_from([b"", LARGE_RAW]), st.data())
def test_mutated_messages_raise_nothing_else(raw: bytes, before: bytes, data: st.DataObject) -> None:
    mutated = bytearray(raw)
    for _ in range(data.draw(st.integers(0, 4))):
        if not mutated:
            break
        at = data.draw(st.integers(0, len(mutated) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                mutated[at] = data.draw(st.integers(0, 255))
            case 1:
                del mutated[at:]
            case _:
                mutated[at:at] = data.draw(st.binary(max_size=6))
    decode_or_refuse(before + bytes(mutated))


@given(st.one_of(infer_messages(), st.binary(max_size=60), st.lists(infer_messages(), max_size=3).map(b"".join)))
def test_cutting_out_gives_what_protobuf_gives(raw: bytes) -> None:
    separated = grpc_wire.cut_out(raw, 7)
    try:
        expected = codec.parse_message(pb.ModelInferRequest, raw)
    except InvalidArgument:
        if separated is not None:
            with pytest.raises(InvalidArgument):
                codec.parse_message(pb.ModelInferRequest, separated[0])
        return
    if separated is None:
        return
    rest = codec.parse_message(pb.ModelInferRequest, separated[0])
    assert [bytes(v) for v in separated[1]] == list(expected.raw_input_contents)
    assert not rest.raw_input_contents
    expected.ClearField("raw_input_contents")
    assert rest == expected


def test_too_many_fields_are_refused_before_they_cost_memory() -> None:
    with pytest.raises(InvalidArgument, match="more than"):
        codec.decode_infer(b"\x2a\x00" * 70_000, 0.0, 1.0)


@given(st.integers(0, 2**63))
def test_varint_is_protobufs(value: int) -> None:
    message = pb.InferParameter(uint64_param=value)
    assert message.SerializeToString() == b"\x28" + grpc_wire.encode_varint(value)


# -- compression, errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_inflate(pack: object) -> None:
    assert callable(pack)
    packed = pack(bytes(10_000))
    assert inflate(packed, 10_000) == bytes(10_000)
    with pytest.raises(ResourceExhausted):
        inflate(packed, 9_999)
    for damaged in (packed[:-3], packed[:5], packed + b"x", packed[:8] + b"\xff\xff\xff\xff" + packed[12:]):
        with pytest.raises(InvalidArgument):
            inflate(damaged, 10_000)


def test_status_map_is_total_and_keeps_names() -> None:
    assert set(STATUS_OF_CODE) == set(Code)
    assert all(status.name == code.name for code, status in STATUS_OF_CODE.items())


def test_tritons_statuses_are_total() -> None:
    for code in Code:
        assert status_of(error_of(code, "x")) is STATUS_OF_CODE[code]
        status_of(error_of(code, "x"), "ModelInfer", compat_triton=True)
    full = ResourceExhausted("full")
    assert status_of(full, "ModelInfer", compat_triton=True) is StatusCode.UNAVAILABLE
    unknown = error_of(Code.NOT_FOUND, "x")
    assert status_of(unknown, "ModelInfer", compat_triton=True) is StatusCode.NOT_FOUND
    assert status_of(unknown, "ModelStatistics", compat_triton=True) is StatusCode.INVALID_ARGUMENT
    for error, status in ((PollFailed("x"), StatusCode.INTERNAL), (LoadFailed("x"), StatusCode.INVALID_ARGUMENT)):
        assert status_of(error, "RepositoryModelLoad") is StatusCode.FAILED_PRECONDITION
        assert status_of(error, "RepositoryModelLoad", compat_triton=True) is status
    small = RegionTooSmall("x")
    assert status_of(small, "ModelInfer") is StatusCode.INVALID_ARGUMENT
    assert status_of(small, "ModelInfer", compat_triton=True) is StatusCode.INTERNAL


def test_details_are_bounded_and_always_text() -> None:
    assert details_of(InvalidArgument("fine")) == "fine"
    assert len(details_of(InvalidArgument("é" * 5000)).encode()) < 2500
    assert details_of(InvalidArgument("a\udc80b")) == "a?b"


def test_retry_after_becomes_both_headers() -> None:
    error = error_of(Code.UNAVAILABLE, "later", retry_after_s=0.0123)
    assert trailing_metadata_of(error) == (("retry-after-ms", "13"), ("grpc-retry-pushback-ms", "13"))
    assert trailing_metadata_of(InvalidArgument("no")) == ()


def test_unexpected_errors_show_an_id_only(caplog: pytest.LogCaptureFixture) -> None:
    error = unexpected(ValueError("secret"), "ModelInfer")
    assert isinstance(error, RoostError)
    assert "secret" not in error.message
    assert error.message.split()[-1] in caplog.text
    assert "secret" in caplog.text


def test_struct_of_a_raw_bytes_tensor_is_untouched() -> None:
    packed = struct.pack("<I", 2) + b"ab"
    message = with_raws(packed)
    message.inputs[0].datatype = "BYTES"
    assert bytes(decode(message).inputs[0].data) == packed

"""What takes bytes from clients: the REST decoders and the gRPC converters, and what else there is to fuzz.

Each target goes on with what was accepted as the server would: it is checked against its model, echoed and written.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any, Final

import numpy as np
from google.protobuf.message import Message
from roost.core.requests import InferRequest, InferResponse, RequestContext
from roost.core.tensors import (
    DATATYPES,
    MAX_ELEMENTS,
    Signature,
    TensorSpec,
    element_count,
    pack_bytes,
    to_array,
)
from roost.proto import grpc_service_pb2 as pb
from roost.registry_client.overrides import read_overrides
from roost.router.validation import Contract
from roost.server import grpc_codec, grpc_messages
from roost.server.log_settings import LogBook
from roost.server.rest.codec import RestInferRequest, decode_infer
from roost.server.rest.codec_generate import decode_generate, encode_generate
from roost.server.rest.codec_json import parse_json
from roost.server.rest.codec_quick import decode
from roost.server.rest.codec_quick_out import encode
from roost.server.rest.codec_raw import decode_raw
from roost.server.rest.codec_response import encode_large_response, encode_response, write_outputs
from roost.server.rest.v1_codec import decode_predict
from roost.server.rest.v1_response import encode_predictions
from roost.server.trace import TraceBook

from tests.fuzz.driver import Target
from tests.fuzz.http2_target import http2_target
from tests.fuzz.more_targets import configuration_targets, shared_memory_target
from tests.fuzz.mutation import mutate_bytes, mutate_json, mutate_message

_LENGTH: Final = struct.Struct("<I")
_WHOLE: Final = 2**32 - 1
_SHAPE: Final = (1, 4)
_CONTRACTS: Final = {
    name: Contract(name, Signature((TensorSpec("X", name, (-1, -1)),), (TensorSpec("Y", name, (-1, -1)),)), 0)
    for name in DATATYPES
}


def targets() -> list[Target]:
    """All of them."""
    return [
        Target("rest", _rest_seeds(), _rest, _mutate_rest),
        Target("rest-raw", [bytes([index]) + bytes(16) for index in range(len(_RAW_SPECS))], _rest_raw, mutate_bytes),
        Target("v1", _v1_seeds(), _v1, _mutate_v1),
        Target("generate", _generate_seeds(), _generate, _mutate_v1),
        *configuration_targets(),
        *(_grpc_target(*row) for row in _GRPC),
        shared_memory_target(),
        http2_target(),
    ]


def _context() -> RequestContext:
    return RequestContext(100.0, 160.0)


def _values(datatype: str) -> Any:
    dtype = DATATYPES[datatype].dtype
    if dtype is None:
        return [[b"a", "é".encode(), b"", b"0"]]
    return np.array([[0, 1, 1, 0]], dtype=bool if dtype.kind == "b" else dtype)


def _bytes_of(datatype: str) -> bytes:
    values = _values(datatype)
    return bytes(values.tobytes()) if isinstance(values, np.ndarray) else pack_bytes(values[0])


def _listed(datatype: str) -> list[Any]:
    values = _values(datatype)
    rows: list[Any] = values.tolist() if isinstance(values, np.ndarray) else [[item.decode() for item in values[0]]]
    return [[float(item) for item in rows[0]]] if datatype in ("FP16", "FP32", "FP64", "BF16") else rows


# -- REST -----------------------------------------------------------------------------------------------------------


def _rest_input(document: Any, binary: bytes = b"", whole: bool = False) -> bytes:
    """The input of ``_rest``: the header's value, then the body."""
    head = json.dumps(document).encode()
    return _LENGTH.pack(_WHOLE if whole else len(head)) + head + binary


def _rest_seeds() -> list[bytes]:
    seeds = []
    for datatype in DATATYPES:
        tensor: dict[str, Any] = {"name": "X", "datatype": datatype, "shape": list(_SHAPE)}
        data = _bytes_of(datatype)
        outputs = [{"name": "Y", "parameters": {"binary_data": True}}]
        options = {"binary_data_output": True, "timeout": 5, "priority": 1, "note": "x"}
        in_json = {"id": "a", "inputs": [{**tensor, "data": _listed(datatype)}], "parameters": options}
        in_binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}], "outputs": outputs}
        seeds += [_rest_input(in_json, whole=True), _rest_input(in_binary, data)]
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 16, "shared_memory_offset": 4}
    tensor = {"name": "X", "datatype": "FP32", "shape": [1, 4], "parameters": region}
    seeds.append(_rest_input({"inputs": [tensor], "outputs": [{"name": "Y", "parameters": region}]}, whole=True))
    classes = [{"name": "Y", "parameters": {"classification": 2}}]
    seeds.append(
        _rest_input({"inputs": [{**tensor, "parameters": {}, "data": [1, 2, 3, 4]}], "outputs": classes}, whole=True)
    )
    return seeds


def _mutate_rest(rng: Random, data: bytes) -> bytes:
    """Changes the JSON part and, most of the time, sets its length anew."""
    if len(data) < _LENGTH.size:
        return data
    (length,) = _LENGTH.unpack_from(data)
    body = data[_LENGTH.size :]
    head, binary = (body, b"") if length == _WHOLE else (body[:length], body[length:])
    head = mutate_json(rng, head)
    if rng.random() < 0.1:
        binary = mutate_bytes(rng, binary)
    return _LENGTH.pack(_WHOLE if length == _WHOLE and rng.random() < 0.95 else len(head)) + head + binary


def _rest(data: bytes) -> None:
    if len(data) < _LENGTH.size:
        return
    (length,) = _LENGTH.unpack_from(data)
    body = memoryview(data)[_LENGTH.size :]
    header_length = None if length == _WHOLE else length
    # What the quick decoder does not take, the general one does, so this reads what is wrong only once.
    quick = decode(body, header_length, model_name="m", model_version="", context=_context())
    request = decode_infer(body, header_length, model_name="m", model_version="", context=_context())
    assert repr(_by_bytes(quick)) == repr(_by_bytes(request))
    response = _echo(request)
    headers, buffers = encode_response(response, request)
    quickly = encode(response, request)
    assert (quickly[0], b"".join(map(bytes, quickly[1]))) == (headers, b"".join(map(bytes, buffers)))
    names = {output.name for output in request.outputs if output.binary}
    all_in_binary = request.binary_by_default and not request.outputs
    in_json = [] if all_in_binary else [tensor for tensor in response.outputs if tensor.name not in names]
    slowly = encode_large_response(response, request, write_outputs(in_json))
    assert slowly[0] == headers
    assert b"".join(map(bytes, slowly[1])) == b"".join(map(bytes, buffers))
    head = b"".join(map(bytes, buffers))[: int(headers.get("Inference-Header-Content-Length", _WHOLE))]
    assert parse_json(head)["model_name"] == "m"


def _by_bytes(request: RestInferRequest) -> tuple[object, ...]:
    """A request with the bytes of its tensors, to be compared."""
    tensors = [(item.name, item.datatype, item.shape, bytes(item.data), item.parameters) for item in request.inputs]
    return tensors, request.outputs, request.id, request.parameters, request.regions, request.binary_by_default


def _echo(request: InferRequest) -> InferResponse:
    """What a model that repeats its input answers to a request that passes the checks."""
    for tensor in request.inputs:
        if tensor.name in request.regions:
            size_bytes = request.regions[tensor.name].byte_size
            tensor.data = bytes(min(size_bytes, 1024))
    datatype = request.inputs[0].datatype if request.inputs else "FP32"
    _CONTRACTS.get(datatype, _CONTRACTS["FP32"]).check(request)
    tensor = request.inputs[0]
    assert to_array(tensor).size == element_count(tensor.shape) <= MAX_ELEMENTS
    return InferResponse("m", "1", [replace(tensor, name="Y")], request.id, parameters=request.parameters)


_RAW_SPECS: Final = [
    ([TensorSpec("X", datatype, shape)], batch)
    for datatype, shape, batch in product(
        ("FP32", "UINT8", "BYTES", "FP64"), ((-1, 4), (1,), (), (-1, -1), (0, -1)), (0, 8)
    )
]


def _rest_raw(data: bytes) -> None:
    if not data:
        return
    specs, max_batch_size = _RAW_SPECS[data[0] % len(_RAW_SPECS)]
    body = memoryview(data)[1:]
    request = decode_raw(body, specs, max_batch_size, model_name="m", model_version="", context=_context())
    to_array(request.inputs[0])


# -- KServe v1 ------------------------------------------------------------------------------------------------------

_V1_SPECS: Final = [
    [TensorSpec("X", datatype, (-1, -1))] for datatype in ("FP32", "INT64", "BOOL", "BYTES")
] + [[TensorSpec("X", "FP32", (-1, 2)), TensorSpec("Y_bytes", "BYTES", (-1, 1))]]  # fmt: skip


def _v1_seeds() -> list[bytes]:
    bodies: list[Any] = [
        {"instances": [[1.5, 2], [3, 4]]},
        {"inputs": [[1, 2], [3, 4]], "id": "a", "parameters": {"note": 1}},
        {"instances": [[True, False]]},
        {"instances": [["a", {"b64": "YQ=="}]]},
        {"instances": [{"X": [1, 2], "Y_bytes": [{"b64": "/w=="}]}, {"X": [3, 4], "Y_bytes": ["b"]}]},
        {"inputs": {"X": [[1, 2]], "Y_bytes": [["b"]]}},
    ]
    kinds = (0, 1, 2, 3, 4, 4)
    return [bytes([kind]) + json.dumps(body).encode() for kind, body in zip(kinds, bodies, strict=True)]


def _mutate_v1(rng: Random, data: bytes) -> bytes:
    return data[:1] + mutate_json(rng, data[1:])


def _v1(data: bytes) -> None:
    if not data:
        return
    specs = _V1_SPECS[data[0] % len(_V1_SPECS)]
    request = decode_predict(memoryview(data)[1:], specs, model_name="m", model_version="", context=_context())
    Contract("m", Signature(tuple(specs), tuple(specs)), 0).check(request)
    parse_json(b"".join(encode_predictions(request.inputs, in_rows=request.in_rows)))


_GENERATE_SPECS: Final = [
    [TensorSpec("X", datatype, shape)]
    for datatype, shape in product(("FP32", "INT64", "BOOL", "BYTES"), ((-1, -1), (1, 1)))
] + [[TensorSpec("X", "FP32", (-1,)), TensorSpec("Y", "BYTES", (1,))]]


def _generate_seeds() -> list[bytes]:
    values = {"FP32": 1.5, "INT64": 7, "BOOL": True, "BYTES": "hello"}
    bodies = []
    for kind, (spec, *more) in enumerate(_GENERATE_SPECS):
        body: dict[str, Any] = {
            "X": values[spec.datatype],
            "id": "a",
            "parameters": {"temperature": 0.5},
            "stream": False,
        }
        if more:
            body |= {"X": [1, 2, 3], "Y": "text"}
        bodies.append(bytes([kind]) + json.dumps(body).encode())
    return bodies


def _generate(data: bytes) -> None:
    if not data:
        return
    specs = _GENERATE_SPECS[data[0] % len(_GENERATE_SPECS)]
    request = decode_generate(memoryview(data)[1:], specs, model_name="m", model_version="", context=_context())
    Contract("m", Signature(tuple(specs), tuple(specs)), 0).check(request)
    parse_json(encode_generate(InferResponse("m", "1", request.inputs, request.id), request.id))


# -- gRPC -----------------------------------------------------------------------------------------------------------

_FIELDS: Final = {"BOOL": "bool", "INT32": "int", "INT8": "int", "INT64": "int64", "UINT16": "uint", "UINT64": "uint64",
                  "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}  # fmt: skip


def _infer_messages() -> list[Message]:
    messages: list[Message] = []
    for datatype in DATATYPES:
        raw = pb.ModelInferRequest(model_name="m", id="a", raw_input_contents=[_bytes_of(datatype)])
        raw.inputs.add(name="X", datatype=datatype, shape=_SHAPE)
        raw.outputs.add(name="Y").parameters["classification"].int64_param = 2
        raw.parameters["timeout"].int64_param = 5
        messages.append(raw)
        if datatype in _FIELDS:
            typed = pb.ModelInferRequest(model_name="m")
            values = _values(datatype)
            flat = values[0].tolist() if isinstance(values, np.ndarray) else values[0]
            getattr(
                typed.inputs.add(name="X", datatype=datatype, shape=_SHAPE).contents, f"{_FIELDS[datatype]}_contents"
            ).extend(flat)
            messages.append(typed)
    shared = pb.ModelInferRequest(model_name="m")
    for tensor in (shared.inputs.add(name="X", datatype="FP32", shape=_SHAPE), shared.outputs.add(name="Y")):
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 16
    return [*messages, shared]


def _grpc_infer(data: bytes) -> None:
    request = grpc_codec.decode_infer(data, 100.0, 60.0)
    response = _echo(request)
    answer = pb.ModelInferResponse.FromString(grpc_codec.encode_response(response))
    assert answer.raw_output_contents[0] == bytes(request.inputs[0].data)
    grpc_codec.encode_stream_response(response)


def _load(data: bytes) -> None:
    call = grpc_messages.decode_repository_call(pb.RepositoryModelLoadRequest, data)
    read_overrides("m", call.parameters)


def _unload(data: bytes) -> None:
    grpc_messages.decode_repository_call(pb.RepositoryModelUnloadRequest, data)


def _trace(data: bytes) -> None:
    updates = grpc_messages.read_trace_updates(grpc_codec.parse_message(pb.TraceSettingRequest, data))
    grpc_messages.encode_trace_settings(TraceBook().update(updates, "m"))


def _log(data: bytes) -> None:
    updates = grpc_messages.read_log_updates(grpc_codec.parse_message(pb.LogSettingsRequest, data))
    grpc_messages.encode_log_settings(LogBook("info", lambda _: None).update(updates))


def _load_message() -> Message:
    message = pb.RepositoryModelLoadRequest(model_name="m")
    message.parameters["config"].string_param = "{}"
    message.parameters["file:1/model.onnx"].bytes_param = b"x"
    return message


def _unload_message() -> Message:
    message = pb.RepositoryModelUnloadRequest(model_name="m")
    message.parameters["unload_dependents"].bool_param = True
    return message


def _trace_message() -> Message:
    message = pb.TraceSettingRequest(model_name="m")
    message.settings["trace_rate"].value.append("7")
    return message


def _log_message() -> Message:
    message = pb.LogSettingsRequest()
    message.settings["log_verbose_level"].uint32_param = 1
    message.settings["log_info"].bool_param = True
    return message


_GRPC: Final[Sequence[tuple[str, list[Message], Callable[[bytes], None]]]] = (
    ("grpc-infer", _infer_messages(), _grpc_infer),
    ("grpc-load", [_load_message()], _load),
    ("grpc-unload", [_unload_message()], _unload),
    ("grpc-trace", [_trace_message()], _trace),
    ("grpc-log", [_log_message()], _log),
)


def _grpc_target(name: str, messages: list[Message], run: Callable[[bytes], None]) -> Target:
    cls = type(messages[0])

    def mutate(rng: Random, data: bytes) -> bytes:
        try:
            message = cls.FromString(data)
        except Exception:  # bytes that were changed before, and are no message any more
            return mutate_bytes(rng, data)
        return mutate_message(rng, message)

    return Target(name, [message.SerializeToString() for message in messages], run, mutate)

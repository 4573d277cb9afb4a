"""Steps 1 and 8 of the data path over gRPC: bytes of messages to plain values and back.

There is no I/O here. Whatever the bytes, decoding raises nothing but ``InvalidArgument``. Tensors given as
``raw_input_contents`` stay bytes; those of large messages are views on the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from roost.core.errors import InvalidArgument
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.requests import InferRequest, InferResponse, RequestContext, RequestedOutput
from roost.core.tensors import DATATYPES, Buffer, Tensor
from roost.proto import grpc_service_pb2 as pb
from roost.proto import model_config_pb2 as mc
from roost.server.grpc_parameters import put_parameter, read_request_parameters, read_tensor_parameters
from roost.server.grpc_wire import cut_out, encode_varint

MAX_RESPONSE_BYTES = 2**31 - 1

# Below it protobuf's own copies cost less than walking over the message in Python.
_CUT_OUT_BYTES = 131_072
_RAW_INPUT_FIELD = 7
_RAW_OUTPUT_TAG = b"\x32"  # field 6, length-delimited

_CONTENTS_FIELD = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Datatypes narrower than the field that carries them: numpy's dtype of the field.
_CARRIER = {"INT8": np.dtype("<i4"), "INT16": np.dtype("<i4"), "UINT8": np.dtype("<u4"), "UINT16": np.dtype("<u4")}

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class RepositoryCall:
    """A load or unload call."""

    repository_name: str
    model_name: str
    parameters: dict[str, bool | int | str | bytes]


def parse_message(cls: type[M], raw: bytes) -> M:
    """Parses a message.

    Raises:
        InvalidArgument: If the bytes are not one.
    """
    try:
        return cls.FromString(raw)
    except DecodeError:
        raise InvalidArgument(f"the bytes received are not a {cls.DESCRIPTOR.full_name} message") from None


def decode_infer(
    raw: bytes, received: float, request_timeout_s: float, *, caller: str = "", traceparent: str = ""
) -> InferRequest:
    """Decodes a ModelInferRequest.

    Args:
        raw: The message; the tensors of the result keep it alive.
        received: When its call arrived, ``time.monotonic``.
        request_timeout_s: The longest that the server and the call's own deadline allow, counted from ``received``.
        caller: Who sent it.
        traceparent: The call's trace context header.

    Raises:
        InvalidArgument: If it is not a message, or one that contradicts itself.
    """
    message, raws = _parse_infer(raw)
    parameters = read_request_parameters(message.parameters)
    context = RequestContext(
        received=received,
        deadline=received + min(request_timeout_s, parameters.timeout_s),
        caller=caller,
        priority=parameters.priority,
        traceparent=traceparent,
    )
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        context=context,
        inputs=_read_inputs(message, raws),
        outputs=[
            RequestedOutput(o.name, binary=True, parameters=read_tensor_parameters(o.parameters, f"output '{o.name}'"))
            for o in message.outputs
        ],
        id=message.id,
        parameters=parameters.custom,
    )


def encode_response(response: InferResponse) -> bytes:
    """Encodes a ModelInferResponse; tensors always go out as ``raw_output_contents`` and are copied once.

    Raises:
        InvalidArgument: If it is larger than a gRPC message can be.
    """
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for name, value in response.parameters.items():
        put_parameter(message.parameters[name], value)
    parts: list[Buffer] = [b""]
    size_bytes = 0
    for tensor in response.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        for name, value in tensor.parameters.items():
            put_parameter(output.parameters[name], value)
        length = memoryview(tensor.data).nbytes
        parts.append(_RAW_OUTPUT_TAG + encode_varint(length))
        parts.append(tensor.data)
        size_bytes += length
    parts[0] = message.SerializeToString()
    size_bytes += len(parts[0]) + 11 * len(response.outputs)
    if size_bytes > MAX_RESPONSE_BYTES:
        raise InvalidArgument(f"a response of {size_bytes} bytes is over gRPC's limit of {MAX_RESPONSE_BYTES}")
    return b"".join(parts)


def encode_server_metadata(metadata: ServerMetadata) -> bytes:
    """Encodes a ServerMetadataResponse."""
    return pb.ServerMetadataResponse(
        name=metadata.name, version=metadata.version, extensions=metadata.extensions
    ).SerializeToString()


def encode_model_metadata(metadata: ModelMetadata) -> bytes:
    """Encodes a ModelMetadataResponse."""
    message = pb.ModelMetadataResponse(name=metadata.name, versions=metadata.versions, platform=metadata.platform)
    for spec in metadata.inputs:
        message.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for spec in metadata.outputs:
        message.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return message.SerializeToString()


def encode_model_config(config: mc.ModelConfig) -> bytes:
    """Encodes a ModelConfigResponse."""
    return pb.ModelConfigResponse(config=config).SerializeToString()


def encode_index(entries: Iterable[IndexEntry]) -> bytes:
    """Encodes a RepositoryIndexResponse."""
    message = pb.RepositoryIndexResponse()
    for entry in entries:
        message.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
    return message.SerializeToString()


def decode_repository_call(
    cls: type[pb.RepositoryModelLoadRequest] | type[pb.RepositoryModelUnloadRequest], raw: bytes
) -> RepositoryCall:
    """Decodes a load or unload request.

    Raises:
        InvalidArgument: If it is not one, or a parameter has no value.
    """
    message: Any = parse_message(cls, raw)
    parameters = {}
    for name, value in message.parameters.items():
        chosen = value.WhichOneof("parameter_choice")
        if chosen is None:
            raise InvalidArgument(f"parameter '{name}' has no value")
        parameters[name] = getattr(value, chosen)
    return RepositoryCall(message.repository_name, message.model_name, parameters)


def _parse_infer(raw: bytes) -> tuple[pb.ModelInferRequest, Sequence[Buffer]]:
    """Parses a request and gives its raw contents, as views if the message is large."""
    if len(raw) >= _CUT_OUT_BYTES:
        separated = cut_out(raw, _RAW_INPUT_FIELD)
        if separated is not None:
            rest, raws = separated
            return parse_message(pb.ModelInferRequest, rest), raws
    message = parse_message(pb.ModelInferRequest, raw)
    return message, message.raw_input_contents


def _read_inputs(message: pb.ModelInferRequest, raws: Sequence[Buffer]) -> list[Tensor]:
    tensors = []
    for index, item in enumerate(message.inputs):
        parameters = read_tensor_parameters(item.parameters, f"input '{item.name}'")
        if raws:
            if item.HasField("contents"):
                raise InvalidArgument(
                    f"contents field must not be specified when using raw_input_contents for '{item.name}' "
                    f"for model '{message.model_name}'"
                )
            if index >= len(raws):
                raise _no_data(item.name, message.model_name)
            data = raws[index]
        else:
            if not item.HasField("contents"):
                raise _no_data(item.name, message.model_name)
            data = _pack_contents(item, message.model_name)
        tensors.append(Tensor(item.name, item.datatype, tuple(item.shape), data, parameters))
    return tensors


def _no_data(name: str, model_name: str) -> InvalidArgument:
    return InvalidArgument(f"unable to find data for input tensor '{name}' for model '{model_name}' in request.")


def _pack_contents(item: pb.ModelInferRequest.InferInputTensor, model_name: str) -> Buffer:
    """Lays typed contents out as bytes."""
    field = _CONTENTS_FIELD.get(item.datatype)
    if field is None:
        if item.datatype in DATATYPES:
            raise InvalidArgument(f"input '{item.name}' of type {item.datatype} can only be sent in raw_input_contents")
        raise InvalidArgument(f"input '{item.name}' has the unknown datatype '{item.datatype[:40]}'")
    for descriptor, _ in item.contents.ListFields():
        if descriptor.name != field:
            raise InvalidArgument(
                f"unexpected explicit tensor data for input tensor '{item.name}' for model '{model_name}' of type "
                f"'{item.datatype}': expected {field}, got {descriptor.name}"
            )
    values = getattr(item.contents, field)
    if field == "bytes_contents":
        return _pack_elements(values)
    dtype = DATATYPES[item.datatype].dtype
    assert dtype is not None
    array = np.fromiter(values, _CARRIER.get(item.datatype, dtype), len(values))
    if array.dtype != dtype:
        bounds = np.iinfo(dtype)
        outside = array[(array < bounds.min) | (array > bounds.max)]
        if outside.size:
            raise InvalidArgument(
                f"{outside[0]} in input '{item.name}' does not fit its datatype {item.datatype}: "
                f"expected {bounds.min} to {bounds.max}"
            )
        array = array.astype(dtype)
    return array.tobytes()


def _pack_elements(elements: Iterable[bytes]) -> bytearray:
    """Lays BYTES elements out one after the other; a list of millions of them would cost many times their size."""
    packed = bytearray()
    for element in elements:
        packed += len(element).to_bytes(4, "little")
        packed += element
    return packed

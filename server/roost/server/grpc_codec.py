"""Steps 1 and 8 of the data path over gRPC: bytes of messages to plain values and back.

There is no I/O here. Whatever the bytes, decoding raises nothing but ``InvalidArgument``. Tensors given as
``raw_input_contents`` stay bytes; those of large messages are views on the message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, InferResponse, RegionSlice, RequestContext, RequestedOutput
from roost.core.tensors import Buffer, Parameters, Tensor
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_contents import pack_contents
from roost.server.grpc_parameters import (
    put_parameter,
    read_input_parameters,
    read_request_parameters,
    read_requested_output,
)
from roost.server.grpc_wire import cut_out, encode_varint

MAX_RESPONSE_BYTES = 2**31 - 1

# Below it protobuf's own copies cost less than walking over the message in Python.
_CUT_OUT_BYTES = 131_072
_RAW_INPUT_FIELD = 7
_RAW_OUTPUT_TAG = b"\x32"  # field 6, length-delimited
_STREAM_RESPONSE_TAG = b"\x12"  # field 2, length-delimited
_STREAM_OVERHEAD_BYTES = 6
_FINAL_RESPONSE = "triton_final_response"
_NOTHING: Parameters = {}

M = TypeVar("M", bound=Message)


def parse_message(cls: type[M], raw: bytes) -> M:
    """Parses a message.

    Raises:
        InvalidArgument: If the bytes are not one.
    """
    try:
        return cls.FromString(raw)
    except DecodeError:
        raise InvalidArgument(f"the bytes received are not a {cls.DESCRIPTOR.full_name} message") from None


def parse_infer(raw: Buffer) -> tuple[pb.ModelInferRequest, Sequence[Buffer]]:
    """Parses a ModelInferRequest and gives its raw contents besides, as views if the message is large.

    Raises:
        InvalidArgument: If the bytes are not one.
    """
    if len(raw) >= _CUT_OUT_BYTES:
        separated = cut_out(raw, _RAW_INPUT_FIELD)
        if separated is not None:
            rest, raws = separated
            return parse_message(pb.ModelInferRequest, rest), raws
    message = parse_message(pb.ModelInferRequest, bytes(raw))
    return message, message.raw_input_contents


def read_infer(
    message: pb.ModelInferRequest,
    raws: Sequence[Buffer],
    received: float,
    request_timeout_s: float,
    *,
    caller: str = "",
    traceparent: str = "",
    headers: Mapping[str, str] | None = None,
) -> tuple[InferRequest, bool]:
    """Reads a parsed ModelInferRequest.

    Args:
        message: The message.
        raws: Its raw contents; the tensors of the result keep them alive.
        received: When its call arrived, ``time.monotonic``.
        request_timeout_s: The longest that the server and the call's own deadline allow, counted from ``received``.
        caller: Who sent it.
        traceparent: The call's trace context header.
        headers: The call's headers that the model gets as parameters; they win over the client's own.

    Returns:
        The request, and whether a stream that ends without an answer to it shall say so.

    Raises:
        InvalidArgument: If it contradicts itself.
    """
    parameters = read_request_parameters(message.parameters)
    context = RequestContext(
        received=received,
        deadline=received + min(request_timeout_s, parameters.timeout_s),
        caller=caller,
        priority=parameters.priority,
        traceparent=traceparent,
        timeout_s=parameters.timeout_s if parameters.timeout_s < math.inf else 0.0,
    )
    if headers:
        parameters.custom.update(headers)
    inputs, regions = _read_inputs(message, raws)
    request = InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        context=context,
        inputs=inputs,
        outputs=_read_outputs(message),
        id=message.id,
        parameters=parameters.custom,
        regions=regions,
    )
    return request, parameters.wants_empty_final


def decode_infer(
    raw: Buffer,
    received: float,
    request_timeout_s: float,
    *,
    caller: str = "",
    traceparent: str = "",
    headers: Mapping[str, str] | None = None,
) -> InferRequest:
    """Decodes a ModelInferRequest; see ``read_infer``.

    Raises:
        InvalidArgument: If it is not a message, or one that contradicts itself.
    """
    message, raws = parse_infer(raw)
    return read_infer(
        message, raws, received, request_timeout_s, caller=caller, traceparent=traceparent, headers=headers
    )[0]


def encode_response(response: InferResponse) -> bytes:
    """Encodes a ModelInferResponse; tensors always go out as ``raw_output_contents`` and are copied once.

    Raises:
        InvalidArgument: If it is larger than a gRPC message can be.
    """
    return b"".join(encode_parts(response)[0])


def encode_parts(response: InferResponse) -> tuple[list[Buffer], int]:
    """Encodes a ModelInferResponse: pieces of it, among them the tensors' own memory, and their size.

    Raises:
        InvalidArgument: If it is larger than a gRPC message can be.
    """
    return _encode_parts(response, _message_of(response))


def check_response_size(size_bytes: int) -> None:
    """Refuses what is larger than a gRPC message can be.

    Raises:
        InvalidArgument: If it is.
    """
    if size_bytes + _STREAM_OVERHEAD_BYTES > MAX_RESPONSE_BYTES:
        raise InvalidArgument(f"a response of {size_bytes} bytes is over gRPC's limit of {MAX_RESPONSE_BYTES}")


def encode_stream_response(response: InferResponse) -> bytes:
    """Encodes a ModelStreamInferResponse with an answer, which says whether it is the last one to its request.

    Raises:
        InvalidArgument: If it is larger than a gRPC message can be.
    """
    message = _message_of(response)
    message.parameters[_FINAL_RESPONSE].bool_param = response.final
    parts, size_bytes = _encode_parts(response, message)
    return b"".join((_STREAM_RESPONSE_TAG, encode_varint(size_bytes), *parts))


def encode_stream_error(text: str, request_id: str, failed_model: str = "") -> bytes:
    """Encodes a ModelStreamInferResponse with an error.

    Args:
        text: What went wrong.
        request_id: The id of the request.
        failed_model: The model, if it was the one that failed; clients then also see that nothing else follows.
    """
    message = pb.ModelStreamInferResponse(error_message=text.encode(errors="replace").decode())
    message.infer_response.id = request_id
    if failed_model:
        message.infer_response.model_name = failed_model
        message.infer_response.parameters[_FINAL_RESPONSE].bool_param = True
    return message.SerializeToString()


def _message_of(response: InferResponse) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for name, value in response.parameters.items():
        put_parameter(message.parameters[name], value)
    return message


def _encode_parts(response: InferResponse, message: pb.ModelInferResponse) -> tuple[list[Buffer], int]:
    """Adds the outputs to a message; gives the pieces of the whole and their size."""
    parts: list[Buffer] = [b""]
    size_bytes = 0
    for tensor in response.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        for name, value in tensor.parameters.items():
            put_parameter(output.parameters[name], value)
        length = memoryview(tensor.data).nbytes
        header = _RAW_OUTPUT_TAG + encode_varint(length)
        parts.append(header)
        parts.append(tensor.data)
        size_bytes += len(header) + length
    parts[0] = message.SerializeToString()
    size_bytes += len(parts[0])
    check_response_size(size_bytes)
    return parts, size_bytes


def _read_inputs(
    message: pb.ModelInferRequest, raws: Sequence[Buffer]
) -> tuple[list[Tensor], Mapping[str, RegionSlice]]:
    tensors: list[Tensor] = []
    regions: dict[str, RegionSlice] = {}
    for item in message.inputs:
        name = item.name
        parameters, region = read_input_parameters(item.parameters, name) if item.parameters else (_NOTHING, None)
        data: Buffer
        if region is not None:
            if item.HasField("contents"):
                raise InvalidArgument(
                    f"unexpected 'content' provided when using shared memory for input tensor '{name}' "
                    f"for model '{message.model_name}'"
                )
            if name in regions:
                raise InvalidArgument(f"input '{name}' already exists in the request for model '{message.model_name}'")
            regions[name] = region
            data = b""
        elif raws:
            # MLServer's clients send contents that are there and empty.
            if item.HasField("contents") and item.contents.ListFields():
                raise InvalidArgument(
                    f"contents field must not be specified when using raw_input_contents for '{name}' "
                    f"for model '{message.model_name}'"
                )
            index = len(tensors) - len(regions)  # inputs in shared memory have no raw contents
            if index >= len(raws):
                raise _no_data(name, message.model_name)
            data = raws[index]
        else:
            if not item.HasField("contents"):
                raise _no_data(name, message.model_name)
            data = pack_contents(item, message.model_name)
        tensors.append(Tensor(name, item.datatype, tuple(item.shape), data, parameters))
    return tensors, regions


def _read_outputs(message: pb.ModelInferRequest) -> list[RequestedOutput]:
    outputs = [_read_output(output) for output in message.outputs]
    names: set[str] = set()
    for output in outputs:
        if output.name in names:
            raise InvalidArgument(f"output '{output.name}' already exists in request")
        names.add(output.name)
    return outputs


def _read_output(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> RequestedOutput:
    if output.parameters:
        return read_requested_output(output.name, output.parameters)
    return RequestedOutput(output.name, binary=True)


def _no_data(name: str, model_name: str) -> InvalidArgument:
    return InvalidArgument(f"unable to find data for input tensor '{name}' for model '{model_name}' in request.")

"""Step 8 of the data path over REST: responses to buffers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from roost.core.requests import InferResponse
from roost.core.tensors import DATATYPES, Buffer, Tensor
from roost.server.rest.codec import HEADER_LENGTH, RestInferRequest
from roost.server.rest.codec_json_out import json_elements, json_parameters, json_pieces

Encoded = tuple[dict[str, str], list[Buffer]]

# Writing so many elements takes about two milliseconds; no element has less than a byte.
_LARGE_ELEMENTS = 64 * 1024
# An empty string, which is not much more work than a number, and the least that the datatype takes.
_STRING_BYTES = 4


def encode_response(response: InferResponse, request: RestInferRequest) -> Encoded:
    """Writes a response.

    Returns:
        Headers, and buffers to write one after the other; binary outputs are the tensors' own memory.

    Raises:
        InvalidArgument: If an output can't be written as JSON.
    """
    buffers = write_response(response, request)
    return headers_of(buffers), buffers


def write_response(response: InferResponse, request: RestInferRequest) -> list[Buffer]:
    """The same without the headers; the first buffer is all of the JSON."""
    document = _head(response, request)
    in_binary = binary_outputs(response, request)
    buffers: list[Buffer] = [b""]
    outputs: list[dict[str, Any]] = []
    for tensor in response.outputs:
        if response.in_regions and tensor.name in response.in_regions:
            outputs.append(_describe_only(tensor))
            continue
        is_binary = tensor.name in in_binary
        output = _describe(tensor, is_binary)
        if is_binary:
            buffers.append(memoryview(tensor.data).cast("B"))
        else:
            output["data"] = json_elements(tensor)
        outputs.append(output)
    document["outputs"] = outputs
    buffers[0] = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return buffers


def large_outputs(response: InferResponse, request: RestInferRequest) -> list[Tensor]:
    """The outputs to be written as JSON if that is much work for the event loop's thread, else none."""
    if not is_large(response):
        return []
    elsewhere = binary_outputs(response, request) | response.in_regions
    tensors = [tensor for tensor in response.outputs if tensor.name not in elsewhere]
    return tensors if sum(map(_weight, tensors)) > _LARGE_ELEMENTS else []


def is_large(response: InferResponse) -> bool:
    """Whether writing all of it as JSON may be much work for the event loop's thread."""
    return sum([memoryview(tensor.data).nbytes for tensor in response.outputs]) > _LARGE_ELEMENTS


def write_outputs(tensors: Sequence[Tensor]) -> list[list[bytes]]:
    """Writes the ``data`` of large outputs, each in pieces, for ``encode_large_response``. Holds on to no tensor.

    Raises:
        InvalidArgument: If an output can't be written as JSON.
    """
    return [json_pieces(tensor) for tensor in tensors]


def encode_large_response(
    response: InferResponse, request: RestInferRequest, written: Sequence[Sequence[bytes]]
) -> Encoded:
    """Makes what ``encode_response`` would, byte for byte, of outputs that are written already.

    Args:
        response: The response.
        request: Its request.
        written: The outputs that are in JSON, in order, as ``write_outputs`` gave them.
    """
    in_binary = binary_outputs(response, request)
    buffers: list[Buffer] = [orjson.dumps(_head(response, request))[:-1] + b',"outputs":[']
    binary: list[Buffer] = []
    data = iter(written)
    for index, tensor in enumerate(response.outputs):
        is_binary = tensor.name in in_binary
        if tensor.name in response.in_regions:
            buffers.append(b"," * bool(index) + orjson.dumps(_describe_only(tensor)))
            continue
        text = b"," * bool(index) + orjson.dumps(_describe(tensor, is_binary))
        if is_binary:
            buffers.append(text)
            binary.append(memoryview(tensor.data).cast("B"))
        else:
            # "data" is the last key.
            buffers += [text[:-1] + b',"data":', *next(data), b"}"]
    buffers.append(b"]}")
    return _headers(sum(map(len, buffers)), bool(binary)), buffers + binary


def _weight(tensor: Tensor) -> int:
    """How many numbers it takes as long to write as."""
    size_bytes = memoryview(tensor.data).nbytes
    return size_bytes // (DATATYPES[tensor.datatype].itemsize or _STRING_BYTES)


def _head(response: InferResponse, request: RestInferRequest) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if request.id:
        document["id"] = request.id
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    if response.parameters:
        document["parameters"] = json_parameters(response.parameters)
    return document


def binary_outputs(response: InferResponse, request: RestInferRequest) -> set[str]:
    """The names of the outputs that the client wants as bytes behind the JSON."""
    if request.binary_by_default and not request.outputs:
        return {tensor.name for tensor in response.outputs}
    return {output.name for output in request.outputs if output.binary}


def _describe_only(tensor: Tensor) -> dict[str, Any]:
    """An output that was written to shared memory."""
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def _describe(tensor: Tensor, is_binary: bool) -> dict[str, Any]:
    output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    parameters = json_parameters(tensor.parameters) if tensor.parameters else {}
    if is_binary:
        parameters["binary_data_size"] = memoryview(tensor.data).nbytes
    if parameters:
        output["parameters"] = parameters
    return output


def headers_of(buffers: Sequence[Buffer]) -> dict[str, str]:
    """The headers of a successful answer whose JSON is in the first buffer."""
    return _headers(len(buffers[0]), len(buffers) > 1)


def _headers(json_bytes: int, has_binary: bool) -> dict[str, str]:
    if has_binary:
        return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(json_bytes)}
    return {"Content-Type": "application/json"}

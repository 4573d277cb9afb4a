"""Step 8 of the data path over REST for the answers that most models give. Pure.

It writes what it is sure to write as ``encode_response`` does, byte for byte, and leaves everything else to that. What
is the same in all answers of a model is written once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
from roost.core.errors import InvalidArgument
from roost.core.requests import InferResponse
from roost.core.tensors import DATATYPES, Buffer, element_count
from roost.server.rest.codec import RestInferRequest
from roost.server.rest.codec_json_out import EXPONENT_FROM, widened
from roost.server.rest.codec_quick import STRUCT_CODES
from roost.server.rest.codec_response import Encoded, binary_outputs, encode_response, headers_of

# Up to so many elements a tuple is written faster than an array.
_FEW_ELEMENTS = 64
# In more bytes of elements what is saved here does not count.
_MOST_BYTES = 8 * 1024
_FRAGMENTS = 1024
_FLOATS = frozenset({"FP16", "FP32", "FP64"})


class _Output(NamedTuple):
    """What the answers of a model have in common in one output.

    Attributes:
        head: Its JSON up to its elements.
        size_bytes: Of its elements.
        unpack: Reads them, if they are few.
        dtype: What they are, if they are many.
        is_float: Whether they may be what JSON or its fast writer has no number for.
    """

    head: bytes
    size_bytes: int
    unpack: Callable[[Buffer], tuple[Any, ...]] | None
    dtype: np.dtype[Any]
    is_float: bool


def encode(response: InferResponse, request: RestInferRequest) -> Encoded:
    """Does what ``encode_response`` does, sooner."""
    buffers = write_plain(response, request)
    return encode_response(response, request) if buffers is None else (headers_of(buffers), buffers)


def write_plain(response: InferResponse, request: RestInferRequest) -> list[Buffer] | None:
    """Writes a response if it is plain.

    Returns:
        The buffers that ``encode_response`` would give; None if that is to find out.
    """
    if response.parameters or response.in_regions or not response.outputs:
        return None
    in_binary = binary_outputs(response, request) if request.outputs or request.binary_by_default else ()
    pieces = [_head(response.model_name, response.model_version)]
    if request.id:
        pieces = [b'{"id":', orjson.dumps(request.id), b",", pieces[0][1:]]
    buffers: list[Buffer] = [b""]
    room = _MOST_BYTES
    for tensor in response.outputs:
        if tensor.parameters:
            return None
        if tensor.name in in_binary:
            data = memoryview(tensor.data).cast("B")
            buffers.append(data)
            pieces.append(_binary_output(tensor.name, tensor.datatype, tensor.shape, len(data)))
            continue
        output = _json_output(tensor.name, tensor.datatype, tensor.shape)
        if output is None:
            return None
        room -= output.size_bytes
        text = _elements(output, tensor.data) if room >= 0 else None
        if text is None:
            return None
        pieces += (output.head, text, b"},")
    pieces[-1] = pieces[-1][:-1] + b"]}"
    buffers[0] = b"".join(pieces)
    return buffers


@lru_cache(_FRAGMENTS)
def _head(model_name: str, model_version: str) -> bytes:
    return orjson.dumps({"model_name": model_name, "model_version": model_version})[:-1] + b',"outputs":['


@lru_cache(_FRAGMENTS)
def _binary_output(name: str, datatype: str, shape: tuple[int, ...], size_bytes: int) -> bytes:
    parameters = {"binary_data_size": size_bytes}
    return orjson.dumps({"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}) + b","


@lru_cache(_FRAGMENTS)
def _json_output(name: str, datatype: str, shape: tuple[int, ...]) -> _Output | None:
    code, dtype = STRUCT_CODES.get(datatype), DATATYPES[datatype].dtype
    try:
        count = element_count(shape)
    except InvalidArgument:
        return None
    if code is None or dtype is None or count * dtype.itemsize > _MOST_BYTES:
        return None
    head = orjson.dumps({"name": name, "datatype": datatype, "shape": shape})[:-1] + b',"data":'
    unpack = struct.Struct(f"<{count}{code}").unpack if count <= _FEW_ELEMENTS else None
    return _Output(head, count * dtype.itemsize, unpack, dtype, datatype in _FLOATS)


def _elements(output: _Output, data: Buffer) -> bytes | None:
    """The elements as JSON; None if the fast writer would not write them as the protocol has them."""
    elements: Any
    if output.unpack is not None:
        try:
            elements = output.unpack(data)
        except struct.error:
            return None
        text = orjson.dumps(elements)
    else:
        if memoryview(data).nbytes != output.size_bytes:
            return None
        elements = np.frombuffer(data, output.dtype)
        if output.is_float:
            elements = widened(elements)
        elif not elements.flags.aligned:
            return None
        text = orjson.dumps(elements, option=orjson.OPT_SERIALIZE_NUMPY)
    # The fast writer writes null for what is not finite, and large numbers with an exponent.
    if output.is_float and (b"n" in text or (b"e" in text and np.abs(elements).max() >= EXPONENT_FROM)):
        return None
    return text

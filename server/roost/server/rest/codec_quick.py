"""Step 1 of the data path over REST for the requests that most clients send. Pure.

It takes what it is sure to read as ``decode_infer`` does and leaves everything else to that: whatever is unusual, and
whatever is wrong, so that there is one place for what errors say.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson
from roost.core.errors import InvalidArgument
from roost.core.names import DEFAULT_NAMESPACE
from roost.core.requests import RegionSlice, RequestContext
from roost.core.tensors import DATATYPES, MAX_ELEMENTS, MAX_RANK, Buffer, DataType, Parameters, Tensor
from roost.server.rest.codec import RestInferRequest, decode_infer
from roost.server.rest.codec_json import SLICE_ELEMENTS, SourceText, join_arrays, pack_elements, slices
from roost.server.rest.codec_outputs import REGION, REGION_KEYS, decode_outputs, region_slice
from roost.server.rest.codec_parameters import request_parameters, set_timeout

STRUCT_CODES = dict(
    zip(
        ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64"),
        "bhiqBHIQefd",
        strict=True,
    )
)
_KEYS = frozenset({"id", "parameters", "inputs", "outputs"})
_NO_PARAMETERS: Parameters = {}
# What plain code meets when a document is not plain, or is wrong.
_NOT_PLAIN = (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError, struct.error, InvalidArgument)


def decode(
    body: memoryview, header_length: int | None, *, model_name: str, model_version: str, context: RequestContext
) -> RestInferRequest:
    """Does what ``decode_infer`` does, sooner."""
    json_bytes = len(body) if header_length is None else header_length
    if json_bytes <= len(body):
        text = bytes(body[:json_bytes])
        request = decode_plain(text, body[json_bytes:], model_name, model_version, context)
        if request is not None:
            return request
    return decode_infer(body, header_length, model_name=model_name, model_version=model_version, context=context)


def decode_plain(
    text: bytes, binary: memoryview, model_name: str, model_version: str, context: RequestContext
) -> RestInferRequest | None:
    """Reads a request if it is plain and right.

    Args:
        text: Its JSON.
        binary: What follows the JSON; tensors are views on it.
        model_name: From the path.
        model_version: From the path, empty if it is not there.
        context: The request's context, see ``decode_infer``.

    Returns:
        What ``decode_infer`` would; None if that is to find out.
    """
    try:
        document = orjson.loads(text)
        items = document["inputs"]
        id_, outputs, parameters, in_binary = "", [], _NO_PARAMETERS, False
        u_count = 1  # of "inputs"
        if len(document) > 1:
            id_ = document.get("id", "")
            if "parameters" in document:
                given = document["parameters"]
                if len(given) == 1 and type(given.get("timeout")) is int and given["timeout"] >= 0:
                    set_timeout(given["timeout"], context)
                    u_count = 2
                else:
                    parameters, in_binary = request_parameters(given, context, SourceText(text))
            if "outputs" in document:
                outputs = decode_outputs(document["outputs"], SourceText(text))
            if type(id_) is not str or not document.keys() <= _KEYS:
                return None
        # Nearly always the first look is enough: past the last "u" that is known to be there.
        at = text.find(b"u")
        if u_count == 2:
            at = text.find(b"u", at + 1)
        has_none = (text.find(b"u", at + 1) < 0 and text.find(b"l") < 0) or _has_no_booleans(text, document)
        regions: dict[str, RegionSlice] = {}
        inputs = _inputs(items, binary, has_none, regions)
    except _NOT_PLAIN:
        return None
    if inputs is None:
        return None
    return RestInferRequest(
        model_name,
        model_version,
        context,
        inputs,
        outputs,
        id_,
        parameters,
        DEFAULT_NAMESPACE,
        regions,
        in_binary,
    )


def _has_no_booleans(text: bytes, document: dict[str, Any]) -> bool:
    """Whether it is sure that no ``data`` has a boolean; they are no numbers, but would be taken for some.

    Looking for one byte is a hundred times as fast as looking at all types: ``true`` has a "u", ``false`` an "l", and
    if the text has no more of them than what is known to be in it, there is no boolean besides. An escape in a string
    brings a "u" of its own, so it can't hide one.

    Args:
        text: The JSON.
        document: What was read from it.
    """
    known = "".join([item["name"] for item in document["inputs"]])
    for key, value in document.items():
        known += key
        if key == "outputs":
            known += "".join(map(_strings, value))
        elif key != "inputs":
            known += _strings(value)
    return not _has_more(text, b"u", known.count("u")) and not _has_more(text, b"l", known.count("l"))


def _has_more(text: bytes, byte: bytes, times: int) -> bool:
    position = -1
    for _ in range(times + 1):
        position = text.find(byte, position + 1)
        if position < 0:
            return False
    return True


def _strings(value: object) -> str:
    """The strings and booleans in a value that is none or an object, as they are in its text."""
    if type(value) is str:
        return value
    if type(value) is dict:
        return "".join(value) + "".join(map(_strings, value.values()))
    return "true" if value is True else "false" if value is False else ""


def _inputs(
    items: list[Any], binary: memoryview, has_no_booleans: bool, regions: dict[str, RegionSlice]
) -> list[Tensor] | None:
    """The inputs; where those in shared memory are goes into ``regions``."""
    tensors: list[Tensor] = []
    names: set[str] = set()
    position = 0
    for item in items:
        name, dims = item["name"], item["shape"]
        if len(item) != 4 or type(name) is not str or not name or type(dims) is not list:
            return None
        for dim in dims:
            if type(dim) is not int:
                return None
        shape = tuple(dims)
        datatype, count, pack = _layout(item["datatype"], shape)
        data: Any
        if "data" in item:
            data = item["data"]
            if has_no_booleans and pack is not None and len(data) == count and type(data[0]) is not list:
                data = pack(*data)
            elif has_no_booleans and datatype.name in STRUCT_CODES:
                data = _pack_numbers(STRUCT_CODES[datatype.name], count, data)
            else:
                data = pack_elements(name, datatype, shape, count, data)
        else:
            parameters = item["parameters"]
            if count > MAX_ELEMENTS:
                return None
            if REGION in parameters:
                if not parameters.keys() <= REGION_KEYS:
                    return None
                regions[name] = region_slice(parameters, name)
                data = b""
            else:
                size = parameters["binary_data_size"]
                if len(parameters) != 1 or type(size) is not int or size < 0:
                    return None
                data = binary[position : position + size]
                position += size
        names.add(name)
        tensors.append(Tensor(name, datatype.name, shape, data, _NO_PARAMETERS))
    if position != len(binary) or len(names) != len(tensors) or type(items) is not list:
        return None
    return tensors


@lru_cache(1024)
def _layout(type_name: str, shape: tuple[int, ...]) -> tuple[DataType, int, Callable[..., bytes] | None]:
    """The datatype, how many elements a shape has, and what packs them, if they are few numbers.

    Raises:
        KeyError: If there is no such datatype.
        ValueError: If the shape is none, or one without elements.
    """
    datatype = DATATYPES[type_name]
    if len(shape) > MAX_RANK or any(dim < 1 for dim in shape):
        raise ValueError
    count = math.prod(shape)
    code = STRUCT_CODES.get(type_name)
    return datatype, count, struct.Struct(f"<{count}{code}").pack if code and count <= SLICE_ELEMENTS else None


def _pack_numbers(code: str, count: int, data: Any) -> Buffer:
    """Does what ``pack_elements`` does for numbers, if there is no boolean.

    Args:
        code: What ``struct`` calls their datatype.
        count: How many there have to be.
        data: Them, in one array or in nested ones.
    """
    for _ in range(MAX_RANK - 1):
        if type(data[0]) is not list:
            break
        data = data[0] if len(data) == 1 else _join(data)
    if len(data) != count:
        raise ValueError
    return b"".join([struct.pack(f"<{len(piece)}{code}", *piece) for piece in slices(data)])


def _join(arrays: list[Any]) -> list[Any]:
    length = len(arrays[0])
    for piece in slices(arrays):
        if set(map(len, piece)) != {length}:
            raise ValueError
    return join_arrays(arrays, length)

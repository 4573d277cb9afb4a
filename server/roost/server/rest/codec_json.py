"""JSON in: documents, and element lists to bytes. No I/O.

Long lists are gone through in slices, since one call into C that takes seconds would stop all other threads as long:
the interpreter lets them run between calls only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from roost.core.errors import InvalidArgument
from roost.core.tensors import DATATYPES, MAX_RANK, Buffer, DataType, pack_bytes
from roost.server.rest.errors import MalformedRequest

MAX_DEPTH = 100
# JSON that takes longer to read than the event loop's thread should be busy with one request (about 4 ms).
LARGE_JSON_BYTES = 256 * 1024
# About a millisecond of work, and so much that slicing costs nothing.
SLICE_ELEMENTS = 32 * 1024
_INT64_MIN = -(2**63)
_UINT64_MAX = 2**64 - 1
_WIDE = 2.0**63
_FLOAT_KINDS = {int, float}
# Up to so many elements struct is faster than numpy; it rounds and refuses as that does.
_FEW_ELEMENTS = 64
_STRUCT_CODES: Mapping[str, tuple[str, set[type]]] = {
    "BOOL": ("?", {bool}),
    **{
        name: (code, {int})
        for name, code in zip(
            ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"), "bhiqBHIQ", strict=True
        )
    },
    **{name: (code, _FLOAT_KINDS) for name, code in zip(("FP16", "FP32", "FP64"), "efd", strict=True)},
}
_KIND_NAMES: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction or exponent",
    type(None): "null",
}
_BFLOAT16_INFINITY = 0x7F80
_INTEGER_BOUNDS = {
    item.name: (int(np.iinfo(item.dtype).min), int(np.iinfo(item.dtype).max))
    for item in DATATYPES.values()
    if item.dtype is not None and item.dtype.kind in "iu"
}


def kind(value: object) -> str:
    """What a JSON value is, for error messages."""
    return _KIND_NAMES.get(type(value), "something else")


def parse_json(data: Buffer) -> Any:
    """Parses a JSON text; NaN, Infinity and -Infinity are numbers, as in the protocol.

    Integers beyond 64 bits become floats, see ``SourceText``.

    Raises:
        MalformedRequest: If it is not one, or is nested beyond reason.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    raw = bytes(data)
    if b"NaN" not in raw and b"Infinity" not in raw:
        raise MalformedRequest(f"failed to parse the request JSON buffer: {reason}")
    try:
        return _parse_slowly(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedRequest(f"failed to parse the request JSON buffer: {error}") from None


def parse_object(data: Buffer) -> dict[str, Any]:
    """Parses the JSON object of a call other than infer; an empty body is an empty one.

    Raises:
        MalformedRequest: If it is something else, or is nested beyond reason.
    """
    if not data:
        return {}
    document = parse_json(data)
    check_depth(document, 1)
    if type(document) is not dict:
        raise MalformedRequest(f"unable to parse the request JSON: expected an object, got {kind(document)}")
    return document


class SourceText:
    """The text that a document was parsed from, for what the document does not tell.

    Args:
        data: A text that ``parse_json`` took.
    """

    __slots__ = ("_data",)

    def __init__(self, data: Buffer) -> None:
        self._data: Buffer | None = data

    def refuse_wide_integers(self) -> None:
        """Looks for integers beyond 64 bits, of which ``parse_json`` made floats; once, however often it is called.

        For the rare text with a float where an integer would have been fine, and so large that it may have been one.

        Raises:
            MalformedRequest: If there is one.
        """
        data, self._data = self._data, None  # clients choose how many such floats there are
        if data is None:
            return
        try:
            json.loads(bytes(data), parse_int=_parse_integer)
        except (ValueError, RecursionError) as error:
            raise MalformedRequest(f"failed to parse the request JSON buffer: {error}") from None


def _parse_slowly(raw: bytes) -> Any:
    """Parses with the standard library, which knows NaN; refuses what it lets through and the fast parser does not.

    That is lone surrogates, which only escapes can bring about, and integers beyond 64 bits.
    """
    if len(raw) <= LARGE_JSON_BYTES:
        document = json.loads(raw.decode())
        orjson.dumps(document)
        return document
    # Functions in Python, because other threads can run whenever one is called.
    document = json.loads(raw.decode(), parse_int=_parse_integer, parse_float=_parse_float)
    if b"\\u" in raw:
        orjson.dumps(document)
    return document


def _parse_integer(text: str) -> int:
    value = int(text)
    if not _INT64_MIN <= value <= _UINT64_MAX:
        raise ValueError("Integer exceeds 64-bit range")
    return value


def _parse_float(text: str) -> float:
    return float(text)


def check_depth(value: object, depth: int) -> None:
    """Refuses nesting over ``MAX_DEPTH`` in values that nothing else looks at.

    Raises:
        MalformedRequest: If ``value``, itself at ``depth``, nests too deep.
    """
    level: list[Any] = [value]
    while level:
        if depth > MAX_DEPTH:
            raise MalformedRequest(f"the request JSON is nested deeper than {MAX_DEPTH} levels")
        containers = [item for item in level if type(item) is list or type(item) is dict]
        level = []
        for item in containers:
            for piece in slices(list(item.values() if type(item) is dict else item)):
                level += piece
        depth += 1


def slices(elements: list[Any]) -> Iterator[list[Any]]:
    """A list in slices that C code goes through in about a millisecond; a short one as it is."""
    if len(elements) <= SLICE_ELEMENTS:
        yield elements
        return
    for start in range(0, len(elements), SLICE_ELEMENTS):
        yield elements[start : start + SLICE_ELEMENTS]


def pack_elements(name: str, datatype: DataType, shape: Sequence[int], count: int, data: object) -> Buffer:
    """Turns the ``data`` of a JSON input into bytes.

    Args:
        name: The input, for messages.
        datatype: Its datatype.
        shape: Its shape, for messages.
        count: The shape's number of elements.
        data: A flat array, or one nested evenly.

    Raises:
        InvalidArgument: If number or kind of the elements are wrong, or one does not fit the datatype.
    """
    if type(data) is not list:
        raise MalformedRequest(f"unable to parse 'data' of input '{name}': expected an array, got {kind(data)}")
    elements, kinds = flatten(name, data)
    if len(elements) != count:
        raise MalformedRequest(
            f"unable to parse 'data' of input '{name}': Shape does not match true shape of 'data' field: "
            f"expected {count} elements for shape {list(shape)}, got {len(elements)}"
        )
    if not elements:
        return b""
    if datatype.dtype is None:
        return _pack_strings(name, elements, kinds)
    if len(elements) <= _FEW_ELEMENTS and datatype.name in _STRUCT_CODES:
        packed = _pack_few(*_STRUCT_CODES[datatype.name], elements, kinds)
        if packed is not None:
            return packed
    if datatype.name == "BOOL":
        _check_kinds(name, datatype, elements, kinds, {bool}, "booleans")
        array = _to_array(elements, np.dtype(np.bool_))
    elif datatype.name == "BF16" or datatype.dtype.kind == "f":
        _check_kinds(name, datatype, elements, kinds, _FLOAT_KINDS, "numbers")
        array = _floats(name, datatype, elements)
    else:
        _check_kinds(name, datatype, elements, kinds, {int}, "integers")
        array = _integers(name, datatype, datatype.dtype, elements)
    return array.view(np.uint8).data


def _pack_few(code: str, allowed: set[type], elements: list[Any], kinds: set[type]) -> bytes | None:
    """The bytes of numbers or booleans; None if one of them is of the wrong kind or does not fit."""
    if not kinds <= allowed:
        return None
    try:
        return struct.pack(f"<{len(elements)}{code}", *elements)
    except (struct.error, OverflowError):
        return None


def flatten(name: str, data: list[Any]) -> tuple[list[Any], set[type]]:
    """The elements of an evenly nested array, and their types."""
    kinds = _kinds(data)
    depth = 1
    while list in kinds:
        depth += 1
        if depth > MAX_RANK:
            raise MalformedRequest(f"unable to parse 'data' of input '{name}': nested deeper than {MAX_RANK} levels")
        if len(kinds) > 1:
            raise MalformedRequest(f"unable to parse 'data' of input '{name}': arrays and elements on the same level")
        lengths: set[int] = set()
        for piece in slices(data):
            lengths.update(map(len, piece))
        if len(lengths) > 1:
            raise MalformedRequest(f"unable to parse 'data' of input '{name}': arrays of unequal length")
        data = join_arrays(data, lengths.pop())
        kinds = _kinds(data)
    return data, kinds


def _kinds(elements: list[Any]) -> set[type]:
    if len(elements) <= SLICE_ELEMENTS:
        return set(map(type, elements))
    kinds: set[type] = set()
    for piece in slices(elements):
        kinds.update(map(type, piece))
    return kinds


def join_arrays(arrays: list[list[Any]], length: int) -> list[Any]:
    """The elements of arrays of one length."""
    if len(arrays) == 1:
        return arrays[0]
    joined: list[Any] = []
    if length > SLICE_ELEMENTS:
        for array in arrays:
            for piece in slices(array):
                joined += piece
        return joined
    step = SLICE_ELEMENTS // max(1, length)
    for start in range(0, len(arrays), step):
        joined.extend(chain.from_iterable(arrays[start : start + step]))
    return joined


def _check_kinds(
    name: str, datatype: DataType, elements: list[Any], kinds: set[type], allowed: set[type], expected: str
) -> None:
    if kinds <= allowed:
        return
    index = next(i for i, element in enumerate(elements) if type(element) not in allowed)
    element = elements[index]
    got = kind(element)
    if int in allowed and type(element) is float and abs(element) >= _WIDE:
        got = f"{element}, {got} or an integer of more than 64 bits"
    raise MalformedRequest(
        f"unable to parse 'data' of input '{name}': datatype {datatype.name} expects {expected}, "
        f"element {index} is {got}"
    )


def _out_of_range(name: str, datatype: DataType, value: object) -> InvalidArgument:
    return InvalidArgument(f"unable to parse 'data' of input '{name}': {value} is out of range of {datatype.name}")


def _pack_strings(name: str, elements: list[Any], kinds: set[type]) -> bytes:
    _check_kinds(name, DATATYPES["BYTES"], elements, kinds, {str}, "strings")
    return b"".join([pack_bytes(map(str.encode, piece)) for piece in slices(elements)])


def _to_array(elements: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if len(elements) <= SLICE_ELEMENTS:
        return np.array(elements, dtype=dtype)
    array = np.empty(len(elements), dtype=dtype)
    for start in range(0, len(elements), SLICE_ELEMENTS):
        piece = elements[start : start + SLICE_ELEMENTS]
        array[start : start + len(piece)] = np.array(piece, dtype=dtype)
    return array


def _integers(name: str, datatype: DataType, dtype: np.dtype[Any], elements: list[int]) -> npt.NDArray[Any]:
    # Checked here because numpy versions differ in what they do with values that do not fit.
    lowest, highest = _INTEGER_BOUNDS[datatype.name]
    least, most = min(map(min, slices(elements))), max(map(max, slices(elements)))
    for value in (least, most):
        if not lowest <= value <= highest:
            raise _out_of_range(name, datatype, value)
    return _to_array(elements, dtype)


def _floats(name: str, datatype: DataType, elements: list[float]) -> npt.NDArray[Any]:
    """Rounds to the nearest value of the datatype; a finite number that would become infinite is refused."""
    wide = _to_array(elements, np.dtype(np.float64))
    target = np.dtype(np.float32) if datatype.name == "BF16" else datatype.dtype
    try:
        with np.errstate(over="raise", invalid="ignore"):
            narrow = wide.astype(target)
        return _to_bfloat16(narrow) if datatype.name == "BF16" else narrow
    except FloatingPointError:
        finite = wide[np.isfinite(wide)]
        raise _out_of_range(name, datatype, finite[np.abs(finite).argmax()]) from None


def _to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Rounds to nearest even: BF16 is the upper half of FP32."""
    bits = values.view(np.uint32)
    upper = bits >> np.uint32(16)
    rounded = (bits.astype(np.uint64) + np.uint64(0x7FFF) + (upper & np.uint32(1))) >> np.uint64(16)
    # A quiet bit, so that a NaN whose payload was in the lower half stays one.
    result = np.where(np.isnan(values), upper | np.uint32(0x40), rounded).astype(np.uint16)
    if ((result & 0x7FFF) == _BFLOAT16_INFINITY)[np.isfinite(values)].any():
        raise FloatingPointError
    return result

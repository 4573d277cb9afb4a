"""JSON and tensors: documents in, element lists to bytes, bytes to JSON. No I/O.

Long lists are gone through in slices, since one call into C that takes seconds would stop all other threads as long:
the interpreter lets them run between calls only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from roost.core.errors import InvalidArgument
from roost.core.tensors import DATATYPES, MAX_RANK, Buffer, DataType, Tensor, pack_bytes, to_array, unpack_bytes

MAX_DEPTH = 100
# JSON that takes longer to read than the event loop's thread should be busy with one request (about 4 ms).
LARGE_JSON_BYTES = 256 * 1024
# About a millisecond of work, and so much that slicing costs nothing.
SLICE_ELEMENTS = 32 * 1024
_INT64_MIN = -(2**63)
_UINT64_MAX = 2**64 - 1
_FLOAT_KINDS = {int, float}
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

    Raises:
        InvalidArgument: If it is not one, or is nested beyond reason.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    raw = bytes(data)
    if b"NaN" not in raw and b"Infinity" not in raw:
        raise InvalidArgument(f"failed to parse the request JSON buffer: {reason}")
    try:
        return _parse_slowly(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"failed to parse the request JSON buffer: {error}") from None


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
        InvalidArgument: If ``value``, itself at ``depth``, nests too deep.
    """
    level: list[Any] = [value]
    while level:
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"the request JSON is nested deeper than {MAX_DEPTH} levels")
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
        raise InvalidArgument(f"unable to parse 'data' of input '{name}': expected an array, got {kind(data)}")
    elements, kinds = _flatten(name, data)
    if len(elements) != count:
        raise InvalidArgument(
            f"unable to parse 'data' of input '{name}': Shape does not match true shape of 'data' field: "
            f"expected {count} elements for shape {list(shape)}, got {len(elements)}"
        )
    if not elements:
        return b""
    if datatype.dtype is None:
        return _pack_strings(name, elements, kinds)
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


def _flatten(name: str, data: list[Any]) -> tuple[list[Any], set[type]]:
    """The elements of an evenly nested array, and their types."""
    kinds = _kinds(data)
    depth = 1
    while list in kinds:
        depth += 1
        if depth > MAX_RANK:
            raise InvalidArgument(f"unable to parse 'data' of input '{name}': nested deeper than {MAX_RANK} levels")
        if len(kinds) > 1:
            raise InvalidArgument(f"unable to parse 'data' of input '{name}': arrays and elements on the same level")
        lengths: set[int] = set()
        for piece in slices(data):
            lengths.update(map(len, piece))
        if len(lengths) > 1:
            raise InvalidArgument(f"unable to parse 'data' of input '{name}': arrays of unequal length")
        data = _join(data, lengths.pop())
        kinds = _kinds(data)
    return data, kinds


def _kinds(elements: list[Any]) -> set[type]:
    kinds: set[type] = set()
    for piece in slices(elements):
        kinds.update(map(type, piece))
    return kinds


def _join(arrays: list[list[Any]], length: int) -> list[Any]:
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
    raise InvalidArgument(
        f"unable to parse 'data' of input '{name}': datatype {datatype.name} expects {expected}, "
        f"element {index} is {kind(elements[index])}"
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


def json_elements(tensor: Tensor) -> Any:
    """The flat ``data`` of a JSON output, as something that ``orjson`` writes.

    Raises:
        InvalidArgument: If it holds bytes that are not UTF-8, which JSON can't carry.
    """
    if tensor.datatype == "BYTES":
        return _json_strings(tensor)
    array = _json_numbers(tensor)
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array
    return orjson.Fragment(json.dumps(array.tolist()))


def json_pieces(tensor: Tensor) -> list[bytes]:
    """What ``json_elements`` becomes as text, in pieces; other threads can run between one and the next.

    Raises:
        InvalidArgument: If it holds bytes that are not UTF-8, which JSON can't carry.
    """
    separator = b","
    write = _write_piece
    elements: Any
    if tensor.datatype == "BYTES":
        elements = _json_strings(tensor)
    else:
        elements = _json_numbers(tensor)
        if elements.dtype.kind == "f" and not np.isfinite(elements).all():
            separator, write = b", ", _write_slowly
    pieces = [b"["]
    for start in range(0, len(elements), SLICE_ELEMENTS):
        # Without the brackets; views, so that nothing is copied twice.
        text = memoryview(write(elements[start : start + SLICE_ELEMENTS]))[1:-1]
        pieces.append(b"".join((separator if start else b"", text)))
    pieces.append(b"]")
    return pieces


def _write_piece(elements: Any) -> bytes:
    return orjson.dumps(elements, option=orjson.OPT_SERIALIZE_NUMPY)


def _write_slowly(elements: npt.NDArray[Any]) -> bytes:
    return json.dumps(elements.tolist()).encode()


def _json_numbers(tensor: Tensor) -> npt.NDArray[Any]:
    """The elements as an array of a type that JSON writers know; floats as doubles."""
    array = to_array(tensor).reshape(-1)
    if tensor.datatype == "BF16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if array.dtype.kind != "f":
        return array if array.flags.aligned else array.copy()
    # Widened, because clients expect the digits of the double that a float32 becomes.
    return array.astype(np.float64)


def _json_strings(tensor: Tensor) -> list[str]:
    try:
        return [element.decode() for element in unpack_bytes(tensor.data)]
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"output '{tensor.name}' holds bytes that are not UTF-8, which JSON can't carry: "
            'ask for it in binary with "parameters": {"binary_data": true}'
        ) from None

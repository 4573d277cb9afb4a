"""JSON out: bytes of tensors to the elements of a JSON text. No I/O.

Long tensors are written in slices, see ``codec_json``.
"""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from roost.core.errors import InvalidArgument
from roost.core.tensors import Parameters, Tensor, to_array, unpack_bytes
from roost.server.rest.codec_json import SLICE_ELEMENTS

# From here on Python and the fast writer write exponents, from there on Triton does.
EXPONENT_FROM, _EXPONENT_FROM_EVERYWHERE = 1e16, 1e21
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def json_elements(tensor: Tensor) -> Any:
    """The flat ``data`` of a JSON output, as something that ``orjson`` writes.

    Raises:
        InvalidArgument: If it holds bytes that are not UTF-8, which JSON can't carry.
    """
    if tensor.datatype == "BYTES":
        return _json_strings(tensor)
    array = json_numbers(tensor)
    return array if _is_plain(array) else orjson.Fragment(_write_slowly(array))


def json_pieces(tensor: Tensor) -> list[bytes]:
    """What ``json_elements`` becomes as text, in pieces; other threads can run between one and the next.

    Raises:
        InvalidArgument: If it holds bytes that are not UTF-8, which JSON can't carry.
    """
    write = _write_piece
    elements: Any
    if tensor.datatype == "BYTES":
        elements = _json_strings(tensor)
    else:
        elements = json_numbers(tensor)
        if not _is_plain(elements):
            write = _write_slowly
    pieces = [b"["]
    for start in range(0, len(elements), SLICE_ELEMENTS):
        # Without the brackets; views, so that nothing is copied twice.
        text = memoryview(write(elements[start : start + SLICE_ELEMENTS]))[1:-1]
        pieces.append(b"".join((b"," if start else b"", text)))
    pieces.append(b"]")
    return pieces


def _write_piece(elements: Any) -> bytes:
    return orjson.dumps(elements, option=orjson.OPT_SERIALIZE_NUMPY)


def _is_plain(array: npt.NDArray[Any]) -> bool:
    """Whether the fast writer writes the elements as the protocol has them: it knows no NaN, and 1e16 is no 1e+16."""
    # One reduction for all of it, since NaN is the maximum wherever it is.
    return array.dtype.kind != "f" or not array.size or bool(np.maximum.reduce(np.abs(array)) < EXPONENT_FROM)


def _write_slowly(elements: npt.NDArray[Any]) -> bytes:
    return f"[{','.join(map(_write_float, elements.tolist()))}]".encode()


def _write_float(value: float) -> str:
    if EXPONENT_FROM <= abs(value) < _EXPONENT_FROM_EVERYWHERE:
        # The shortest digits that mean the value, and zeros; not all the digits that it has.
        return f"{Decimal(repr(value)):f}.0"
    text = repr(value)
    return _NOT_FINITE.get(text, text)


def json_parameters(parameters: Parameters) -> dict[str, Any]:
    """The parameters that a model set, as something that ``orjson`` writes."""
    return {
        key: orjson.Fragment(_write_float(value)) if type(value) is float and not isfinite(value) else value
        for key, value in parameters.items()
    }


def json_numbers(tensor: Tensor) -> npt.NDArray[Any]:
    """The elements as an array of a type that JSON writers know; floats as doubles."""
    array = to_array(tensor).reshape(-1)
    if tensor.datatype == "BF16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if array.dtype.kind != "f":
        return array if array.flags.aligned else array.copy()
    return widened(array)


def widened(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Floats as doubles, because clients expect the digits of the double that a float32 becomes."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return array.astype(np.float64)


def _json_strings(tensor: Tensor) -> list[str]:
    try:
        return [element.decode() for element in unpack_bytes(tensor.data)]
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"output '{tensor.name}' holds bytes that are not UTF-8, which JSON can't carry: "
            'ask for it in binary with "parameters": {"binary_data": true}'
        ) from None

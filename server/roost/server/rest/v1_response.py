"""KServe's v1 protocol: responses to the JSON of predict calls. Pure.

Tensors are nested here, unlike in v2. They are written in pieces of about a millisecond's work, so that other threads
can run in between when a thread writes a large answer.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from roost.core.errors import InvalidArgument
from roost.core.tensors import Tensor, unpack_bytes
from roost.server.rest.codec_json import SLICE_ELEMENTS
from roost.server.rest.codec_json_out import json_numbers
from roost.server.rest.v1_codec import BASE64_KEY

_BASE64_SUFFIX = "_bytes"
_MAX_EMPTY_ARRAYS = 1 << 16


def encode_predictions(outputs: Sequence[Tensor], *, in_rows: bool) -> list[bytes]:
    """Writes the answer to a predict call. Holds on to no tensor.

    One output is written without its name. Of several, columns are an object and rows a list of objects.

    Args:
        outputs: What the model gave.
        in_rows: Whether the request came as rows.

    Returns:
        Pieces of JSON to write one after the other.

    Raises:
        InvalidArgument: If an output can't be written so.
    """
    arrays = {output.name: _array(output) for output in outputs}
    only = next(iter(arrays.values())) if len(arrays) == 1 else None
    if in_rows:
        pieces = _write(only) if only is not None else _write_rows(arrays)
        return [b'{"predictions":', *pieces, b"}"]
    pieces = _write(only) if only is not None else _write_object(arrays)
    return [b'{"outputs":', *pieces, b"}"]


def _array(output: Tensor) -> npt.NDArray[Any]:
    """The elements in their shape: numbers, or objects that ``orjson`` writes."""
    if math.prod(output.shape) == 0 and math.prod(dim or 1 for dim in output.shape) > _MAX_EMPTY_ARRAYS:
        raise InvalidArgument(f"output '{output.name}' of shape {list(output.shape)} is too many empty arrays for JSON")
    if output.datatype != "BYTES":
        return json_numbers(output).reshape(output.shape)
    elements = unpack_bytes(output.data)
    array = np.empty(len(elements), dtype=object)
    write = _base64 if output.name.endswith(_BASE64_SUFFIX) else _texts
    for start in range(0, len(elements), SLICE_ELEMENTS):
        piece = elements[start : start + SLICE_ELEMENTS]
        array[start : start + len(piece)] = write(output.name, piece)
    return array.reshape(output.shape)


def _base64(name: str, elements: Sequence[bytes]) -> list[Any]:
    return [{BASE64_KEY: base64.b64encode(element).decode()} for element in elements]


def _texts(name: str, elements: Sequence[bytes]) -> list[Any]:
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"output '{name}' holds bytes that are not UTF-8, which JSON can't carry: ask for it in binary with the v2 "
            f"protocol, or let its name end in '{_BASE64_SUFFIX}' to get base64"
        ) from None


def _write(array: npt.NDArray[Any]) -> Iterator[bytes]:
    """Writes nested arrays."""
    if array.size <= SLICE_ELEMENTS:
        yield _dumps(array)
        return
    yield b"["
    size = array.size // len(array)
    step = max(1, SLICE_ELEMENTS // size)
    for start in range(0, len(array), step):
        if start:
            yield b","
        if size > SLICE_ELEMENTS:
            yield from _write(array[start])
        else:
            yield _dumps(array[start : start + step])[1:-1]
    yield b"]"


def _write_object(arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[bytes]:
    before = b"{"
    for name, array in arrays.items():
        yield before + orjson.dumps(name) + b":"
        yield from _write(array)
        before = b","
    yield b"}" if arrays else b"{}"


def _write_rows(arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[bytes]:
    rows = _row_count(arrays)
    size = sum(array.size for array in arrays.values()) // max(1, rows)
    step = max(1, SLICE_ELEMENTS // max(1, size))
    yield b"["
    for start in range(0, rows, step):
        if start:
            yield b","
        if size > SLICE_ELEMENTS:
            yield from _write_object({name: array[start, ...] for name, array in arrays.items()})
            continue
        columns = [array[start : start + step] for array in arrays.values()]
        values = zip(*[column.tolist() for column in columns], strict=True)
        objects = [dict(zip(arrays, row, strict=True)) for row in values]
        finite = all(map(_is_finite, columns))
        yield (orjson.dumps(objects) if finite else json.dumps(objects).encode())[1:-1]
    yield b"]"


def _row_count(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """How many rows all outputs split into."""
    rows = 0
    for index, (name, array) in enumerate(arrays.items()):
        if not array.ndim or (index and len(array) != rows):
            raise InvalidArgument(
                f"the outputs can't be answered in rows, since output '{name}' has the shape {list(array.shape)}: "
                'send the tensors as "inputs" instead of "instances"'
            )
        rows = len(array)
    return rows


def _dumps(array: npt.NDArray[Any]) -> bytes:
    if not _is_finite(array):
        return json.dumps(array.tolist()).encode()
    if array.ndim and array.dtype.kind != "O":
        return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.dumps(array.tolist())


def _is_finite(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())

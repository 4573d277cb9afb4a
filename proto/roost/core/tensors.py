"""Tensors as bytes: the datatypes of the protocol and the layout of their elements.

From the wire to the runtime a tensor is bytes in the form of the binary tensor extension of the Open
Inference Protocol: little-endian, C order, BOOL as one byte, BYTES elements each behind a four-byte
little-endian length. Only runtimes turn it into arrays.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from roost.core.errors import InvalidArgument

Buffer: TypeAlias = bytes | bytearray | memoryview
ParameterValue: TypeAlias = bool | int | float | str
Parameters: TypeAlias = Mapping[str, ParameterValue]
NO_PARAMETERS: Parameters = MappingProxyType({})
"""To be shared by all that have none."""

_LENGTH = struct.Struct("<I")
_COPIED_BYTES = 4096
MAX_RANK = 32
MAX_ELEMENTS = 2**48
SLICE_ELEMENTS = 2048
"""About a millisecond of taking BYTES elements apart."""


@dataclass(frozen=True, slots=True)
class DataType:
    """A datatype of the protocol.

    Attributes:
        name: As the protocol writes it, such as ``FP32``.
        code: Its number on the worker link.
        itemsize: Bytes per element; 0 for BYTES, whose elements vary.
        dtype: The numpy dtype that has its layout; None for BYTES. BF16 is seen as uint16.
        config_name: As ``config.pbtxt`` writes it, such as ``TYPE_FP32``.
    """

    name: str
    code: int
    itemsize: int
    dtype: np.dtype[Any] | None
    config_name: str


def _datatypes() -> dict[str, DataType]:
    rows = [
        ("BOOL", "?", "TYPE_BOOL"),
        ("UINT8", "<u1", "TYPE_UINT8"),
        ("UINT16", "<u2", "TYPE_UINT16"),
        ("UINT32", "<u4", "TYPE_UINT32"),
        ("UINT64", "<u8", "TYPE_UINT64"),
        ("INT8", "<i1", "TYPE_INT8"),
        ("INT16", "<i2", "TYPE_INT16"),
        ("INT32", "<i4", "TYPE_INT32"),
        ("INT64", "<i8", "TYPE_INT64"),
        ("FP16", "<f2", "TYPE_FP16"),
        ("FP32", "<f4", "TYPE_FP32"),
        ("FP64", "<f8", "TYPE_FP64"),
        ("BYTES", None, "TYPE_STRING"),
        ("BF16", "<u2", "TYPE_BF16"),
    ]
    table = {}
    for code, (name, layout, config_name) in enumerate(rows, start=1):
        dtype = np.dtype(layout) if layout else None
        table[name] = DataType(name, code, dtype.itemsize if dtype else 0, dtype, config_name)
    return table


DATATYPES: Mapping[str, DataType] = _datatypes()
DATATYPE_OF_CODE: Mapping[int, DataType] = {item.code: item for item in DATATYPES.values()}
DATATYPE_OF_CONFIG: Mapping[str, DataType] = {item.config_name: item for item in DATATYPES.values()}


@dataclass(slots=True)
class Tensor:
    """A named tensor whose elements are bytes.

    Attributes:
        name: Input or output name.
        datatype: A key of ``DATATYPES`` (a decoder may leave an unknown one for validation to refuse).
        shape: Dimensions, none negative once validated.
        data: The elements; a view keeps the buffer it looks at alive, and nobody writes to that buffer.
        parameters: Tensor parameters that the transport did not consume.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of one of its tensors.

    Attributes:
        name: Its name.
        datatype: A key of ``DATATYPES``.
        shape: Dimensions; -1 is any.
        optional: Whether a request may leave it out; of an output, whether it only comes to those who ask for it.
        lenient: Whether it takes numbers of any datatype, and any name if it is the only input.
        inner: The shape that the model itself has, where clients see another.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    inner: tuple[int, ...] | None = None
    lenient: bool = False

    @property
    def own_shape(self) -> tuple[int, ...]:
        """The shape that the model itself has."""
        return self.shape if self.inner is None else self.inner


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors that a model takes and gives, as its runtime reports them (batch dimension included)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """A form that ``json`` can write."""

        def rows(specs: Iterable[TensorSpec]) -> list[list[Any]]:
            return [[s.name, s.datatype, list(s.shape), s.optional, *([True] if s.lenient else [])] for s in specs]

        return {"inputs": rows(self.inputs), "outputs": rows(self.outputs)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Signature:
        """Reads what ``to_json`` made."""

        def specs(rows: Iterable[Sequence[Any]]) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(str(r[0]), str(r[1]), tuple(int(d) for d in r[2]), bool(r[3]), lenient=r[4:] == [True])
                for r in rows
            )

        return cls(specs(value["inputs"]), specs(value["outputs"]))


def element_count(shape: Sequence[int]) -> int:
    """The number of elements of a shape, checked before anything is allocated for it.

    Raises:
        InvalidArgument: If a dimension is negative, or rank or product are beyond reason.
    """
    if len(shape) > MAX_RANK:
        raise InvalidArgument(f"a shape of {len(shape)} dimensions is over the limit of {MAX_RANK}")
    if shape and min(shape) < 0:
        raise InvalidArgument(f"shape {list(shape)} has a negative dimension")
    count = math.prod(shape)
    if count > MAX_ELEMENTS or (not count and math.prod(dim or 1 for dim in shape) > MAX_ELEMENTS):
        raise InvalidArgument(f"shape {list(shape)} has too many elements")  # no array can have it, empty or not
    return count


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Lays BYTES elements out as the binary tensor extension does."""
    parts: list[bytes] = []
    for element in elements:
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def unpack_bytes(data: Buffer, limit: int | None = None) -> list[bytes]:
    """Takes BYTES elements apart.

    Args:
        data: Elements, each behind its length.
        limit: Stop with an error after so many elements.

    Raises:
        InvalidArgument: If a length or an element is cut short, or there are more than ``limit`` elements.
    """
    elements: list[bytes] = []
    for piece in unpack_slices(data, limit):
        elements += piece
    return elements


def unpack_slices(data: Buffer, limit: int | None = None) -> Iterator[list[bytes]]:
    """The same by ``SLICE_ELEMENTS``, for who has other work to do meanwhile."""
    view = memoryview(data)
    size = len(view)
    elements: list[bytes] = []
    room = math.inf if limit is None else limit
    position = 0
    while position < size:
        if size - position < _LENGTH.size:
            raise InvalidArgument("incomplete string length indicator at the end of a BYTES tensor")
        (length,) = _LENGTH.unpack_from(view, position)
        position += _LENGTH.size
        if size - position < length:
            raise InvalidArgument(f"a BYTES element announces {length} bytes, but only {size - position} are left")
        if len(elements) >= room and limit is not None:
            raise InvalidArgument(f"unexpected number of string elements {limit + 1}, expecting {limit}")
        elements.append(bytes(view[position : position + length]))
        position += length
        if len(elements) == SLICE_ELEMENTS:
            yield elements
            room -= SLICE_ELEMENTS
            elements = []
    yield elements


def to_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Views a tensor as an array of its shape, without a copy unless it is BYTES (then of ``bytes`` objects).

    Raises:
        InvalidArgument: If the bytes do not fill the shape.
    """
    dtype, expected = _layout(tensor.datatype, tensor.shape)
    data = tensor.data
    if dtype is None:
        elements = unpack_bytes(data, expected)
        if len(elements) != expected:
            raise InvalidArgument(f"expected {expected} string elements for '{tensor.name}', got {len(elements)}")
        array = np.empty(expected, dtype=object)
        array[:] = elements
        return array.reshape(tensor.shape)
    actual = data.nbytes if isinstance(data, memoryview) else len(data)
    if actual != expected:
        raise InvalidArgument(f"byte size mismatch for '{tensor.name}'. Expected {expected}, got {actual}")
    return np.ndarray(tensor.shape, dtype, data)


@functools.lru_cache(4096)
def _layout(datatype: str, shape: tuple[int, ...]) -> tuple[np.dtype[Any] | None, int]:
    """The dtype of a tensor and its size in bytes; None and its number of elements, if it is BYTES."""
    known = DATATYPES[datatype]
    count = element_count(shape)
    return known.dtype, count * known.itemsize if known.dtype is not None else count


def from_array(name: str, datatype: str, array: npt.NDArray[Any]) -> Tensor:
    """Makes a tensor of an array; the data is a view on the array where its layout allows it.

    ``array`` holds the datatype's numpy dtype, or for BYTES objects that are ``bytes`` or ``str``. Little data is
    copied, which costs less than a view.
    """
    dtype = DATATYPES[datatype].dtype
    if dtype is None:
        flat = array.reshape(-1).tolist()
        data: Buffer = pack_bytes(e if isinstance(e, bytes) else str(e).encode() for e in flat)
    else:
        if array.dtype is not dtype:
            array = array.astype(dtype)
        data = array.tobytes() if array.nbytes <= _COPIED_BYTES else np.ascontiguousarray(array).data.cast("B")
    return Tensor(name, datatype, array.shape, data, NO_PARAMETERS)

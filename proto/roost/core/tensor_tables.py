"""The tensors in a frame: a table that says what they are, and behind it the places and elements it speaks of.

A table is the same for every batch of a shape, whatever the elements are: what is read of one and what is written for
one is remembered by its bytes and by its rows. What differs between batches stands behind it: an offset for each
tensor that lies in the arena, then the inline elements, each tensor's at a multiple of 64 bytes from the start of the
frame, so that whoever has the frame at such an address can use them in place::

    table:    wanted outputs: count u16, names · tensors: count u16, rows · places: count u16, rows
    row:      name · datatype u8 · rank u8 · in the arena? u8 · dimensions i64 · length in bytes u64
    name:     length in bytes u16 · UTF-8
    offsets:  u64 for each row in the arena, places included
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from roost.core.tensors import DATATYPE_OF_CODE, DATATYPES, MAX_RANK, Buffer, Tensor

ALIGNMENT = 64

_CACHED_TABLES = 1024
_CACHED_TABLE_BYTES = 4096  # longer ones are read each time: there may be a thousand of them
_CACHED_ROWS = 4096
_JOINED_BYTES = 64 << 10
_PIECE_BYTES = 4 << 10

_U16 = struct.Struct("<H")
_ROW = struct.Struct("<BBB")
_LENGTH = struct.Struct("<Q")
_NONE = _U16.pack(0)
_PADDING = [bytes(size) for size in range(ALIGNMENT)]


class FrameError(Exception):
    """The bytes are not a frame of this version; the link that carried them can't go on."""


@dataclass(frozen=True, slots=True)
class Region:
    """Where in the worker's arena a tensor's elements are, in bytes."""

    offset: int
    length: int


@dataclass(slots=True)
class WireTensor:
    """A tensor in a frame.

    Attributes:
        name: Input or output name.
        datatype: A key of ``DATATYPES``.
        shape: Dimensions.
        data: The elements; where they are in the arena; or, only to be sent, the elements in several buffers that lie
            one after the other, such as the rows of several requests.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer | Region | Sequence[Buffer]


class TensorTable(NamedTuple):
    """A table that was read.

    Attributes:
        wanted: Names of the outputs asked for.
        rows: The tensors and behind them the places: name, datatype, shape, and where the elements begin and end, from
            where the first ones begin; or -1 and their length, if they are in the arena.
        tensors: How many of the rows are tensors.
        regions: How many of the rows are in the arena.
        inline_bytes: Where the last inline elements end, from where the first ones begin.
    """

    wanted: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[int, ...], int, int], ...]
    tensors: int
    regions: int
    inline_bytes: int

    def take(self, view: memoryview, at: int, before: int) -> list[WireTensor]:
        """Makes the tensors, places included, whose offsets and elements begin at ``at``; inline ones are views.

        Args:
            view: The payload.
            at: Where the table ends in it.
            before: How many bytes of the frame come before the payload.

        Raises:
            FrameError: If the payload is cut short.
        """
        if self.regions:
            return self._take_mixed(view, at, before)
        first = at + -(before + at) % ALIGNMENT
        if self.inline_bytes and first + self.inline_bytes > len(view):
            raise FrameError("payload is cut short")
        return [
            WireTensor(name, datatype, shape, view[first + start : first + end])
            for name, datatype, shape, start, end in self.rows
        ]

    def _take_mixed(self, view: memoryview, at: int, before: int) -> list[WireTensor]:
        first = at + 8 * self.regions
        if first > len(view):
            raise FrameError("payload is cut short")
        offsets = iter(struct.unpack_from(f"<{self.regions}Q", view, at))
        first += -(before + first) % ALIGNMENT
        if self.inline_bytes and first + self.inline_bytes > len(view):
            raise FrameError("payload is cut short")
        return [
            WireTensor(
                name, datatype, shape, view[first + start : first + end] if start >= 0 else Region(next(offsets), end)
            )
            for name, datatype, shape, start, end in self.rows
        ]


def read_table(data: memoryview) -> TensorTable:
    """Reads a table.

    Raises:
        FrameError: If it is cut short or inconsistent.
    """
    if len(data) <= _CACHED_TABLE_BYTES:
        return _read_known(bytes(data))
    return _read(bytes(data))


def write_table(
    wanted: Sequence[str], tensors: Sequence[WireTensor | Tensor], places: Sequence[WireTensor] = ()
) -> tuple[bytes, bytes, list[Buffer], int]:
    """Takes tensors apart for a frame; elements are not copied.

    Returns:
        The table; the offsets of what is in the arena; inline elements with the padding between tensors, none of these
        buffers empty; and how many bytes those are.
    """
    table = [_names(tuple(wanted)) if wanted else _NONE, _U16.pack(len(tensors))]
    offsets: list[int] = []
    inline: list[Buffer] = []
    end = 0
    for tensor in tensors:
        data = tensor.data
        if isinstance(data, Region):
            offsets.append(data.offset)
            table.append(_row(tensor.name, tensor.datatype, tensor.shape, True, data.length))
            continue
        padding_at = len(inline)
        if type(data) is bytes and data:
            length = len(data)
            inline.append(data)
        else:
            length = _put(inline, data)
        if length:
            if end % ALIGNMENT:
                inline.insert(padding_at, padding(end))
                end += -end % ALIGNMENT
            end += length
        table.append(_row(tensor.name, tensor.datatype, tensor.shape, False, length))
    if not places:
        table.append(_NONE)
    else:
        table.append(_U16.pack(len(places)))
        for place in places:
            region = place.data
            assert isinstance(region, Region)
            offsets.append(region.offset)
            table.append(_row(place.name, place.datatype, place.shape, True, region.length))
    packed = struct.pack(f"<{len(offsets)}Q", *offsets) if offsets else b""
    return b"".join(table), packed, inline, end


def padding(length: int) -> bytes:
    """What is missing behind so many bytes to the next multiple of the alignment."""
    return _PADDING[-length % ALIGNMENT]


def _put(inline: list[Buffer], data: Buffer | Sequence[Buffer]) -> int:
    """Appends the buffers of one tensor that are not empty, as bytes, and gives their length."""
    if isinstance(data, memoryview):
        length = data.nbytes
        if length and (data.ndim != 1 or data.format != "B"):
            data = data.cast("B")
    elif isinstance(data, bytes | bytearray):
        length = len(data)
    elif sum(map(len, data)) <= min(_JOINED_BYTES, _PIECE_BYTES * len(data)):
        data = b"".join(data)  # small pieces cost more to hand on than to copy
        length = len(data)
    else:
        return sum([_put(inline, part) for part in data])
    if length:
        inline.append(data)
    return length


@functools.lru_cache(_CACHED_ROWS)
def _row(name: str, datatype: str, shape: tuple[int, ...], is_region: bool, length: int) -> bytes:
    return b"".join(
        (
            _text(name),
            _ROW.pack(DATATYPES[datatype].code, len(shape), is_region),
            struct.pack(f"<{len(shape)}q", *shape),
            _LENGTH.pack(length),
        )
    )


@functools.lru_cache(_CACHED_ROWS)
def _names(names: tuple[str, ...]) -> bytes:
    return _U16.pack(len(names)) + b"".join([_text(name) for name in names])


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _U16.pack(len(encoded)) + encoded


def _read(data: bytes) -> TensorTable:
    reader = _Reader(data)
    wanted = tuple([reader.text() for _ in range(reader.take(_U16)[0])])
    tensors = [reader.row() for _ in range(reader.take(_U16)[0])]
    places = [reader.row() for _ in range(reader.take(_U16)[0])]
    if not all(is_region for *_, is_region, _ in places):
        raise FrameError("a place that is not in the arena")
    rows = []
    regions = end = 0
    for name, datatype, shape, is_region, length in (*tensors, *places):
        if is_region:
            regions += 1
            rows.append((name, datatype, shape, -1, length))
            continue
        start = end + -end % ALIGNMENT if length else 0
        end = max(end, start + length)
        rows.append((name, datatype, shape, start, start + length))
    return TensorTable(wanted, tuple(rows), len(tensors), regions, end)


_read_known = functools.lru_cache(_CACHED_TABLES)(_read)


class _Reader:
    """Walks over a table and never past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        end = self._at + layout.size
        if end > len(self._data):
            raise FrameError("payload is cut short")
        values = layout.unpack_from(self._data, self._at)
        self._at = end
        return values

    def text(self) -> str:
        (length,) = self.take(_U16)
        end = self._at + length
        if end > len(self._data):
            raise FrameError("payload is cut short")
        try:
            text = str(self._data[self._at : end], "utf-8")
        except UnicodeDecodeError:
            raise FrameError("a name is not UTF-8") from None
        self._at = end
        return text

    def row(self) -> tuple[str, str, tuple[int, ...], bool, int]:
        name = self.text()
        code, rank, is_region = self.take(_ROW)
        if code not in DATATYPE_OF_CODE:
            raise FrameError(f"unknown datatype code {code}")
        if rank > MAX_RANK:
            raise FrameError(f"a tensor of {rank} dimensions")
        shape = self.take(struct.Struct(f"<{rank}q"))
        return name, DATATYPE_OF_CODE[code].name, shape, bool(is_region), self.take(_LENGTH)[0]

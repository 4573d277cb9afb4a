"""Step 7 of the data path, on the way back: the outputs of a batch become its requests' answers, without copies."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from typing import Protocol, cast

from roost.core.frames import WireTensor
from roost.core.tensors import DATATYPES, NO_PARAMETERS, Buffer, Tensor
from roost.router.validation import Reshapes

_LENGTH = struct.Struct("<I")


class HasRows(Protocol):
    """A part of a batch."""

    @property
    def rows(self) -> int:
        """How many rows of it."""


def whole(outputs: Sequence[WireTensor], reshapes: Reshapes | None) -> list[Tensor]:
    """The outputs of a run of one request.

    Raises:
        Internal: If the model has answered what its configuration does not say.
    """
    if reshapes is None:
        return [Tensor(t.name, t.datatype, t.shape, cast(Buffer, t.data), NO_PARAMETERS) for t in outputs]
    shape_of = reshapes.output_shape
    return [Tensor(t.name, t.datatype, shape_of(t.name, t.shape), cast(Buffer, t.data)) for t in outputs]


def parts(
    outputs: Sequence[WireTensor], requests: Sequence[HasRows], rows: int, reshapes: Reshapes | None
) -> list[list[Tensor]] | None:
    """The outputs of a batch for each of its requests, as views; None if they do not have the rows of the batch.

    Args:
        outputs: What the model has answered.
        requests: Who was in the batch, in order.
        rows: How many rows they were together.
        reshapes: Which outputs clients see in another shape.

    Raises:
        Internal: If the model has answered what its configuration does not say.
    """
    columns: list[list[Tensor]] = []
    for output in outputs:
        shape = output.shape
        if not shape or shape[0] != rows:
            return None
        data = memoryview(cast(Buffer, output.data))
        if data.format != "B":
            data = data.cast("B")
        ends = _row_ends(data, shape, DATATYPES[output.datatype].itemsize)
        if ends is None:
            return None
        if reshapes is not None:
            shape = reshapes.output_shape(output.name, shape)
        columns.append(_column(output, shape[1:], data, ends, requests))
    return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in requests]


def _column(
    output: WireTensor, tail: tuple[int, ...], data: memoryview, ends: Sequence[int], requests: Sequence[HasRows]
) -> list[Tensor]:
    """One output for each request."""
    name, datatype = output.name, output.datatype
    if len(requests) == len(ends) - 1:
        shape = (1, *tail)
        pieces = itertools.pairwise(ends)
        return [Tensor(name, datatype, shape, data[start:end], NO_PARAMETERS) for start, end in pieces]
    column, row = [], 0
    for pending in requests:
        behind = row + pending.rows
        column.append(Tensor(name, datatype, (pending.rows, *tail), data[ends[row] : ends[behind]], NO_PARAMETERS))
        row = behind
    return column


def _row_ends(data: memoryview, shape: tuple[int, ...], itemsize: int) -> Sequence[int] | None:
    """Where the rows of a tensor end, after a 0; None if its elements do not fill the shape."""
    rows = shape[0]
    if itemsize:
        row_bytes, rest = divmod(len(data), rows)
        if rest:
            return None
        return range(0, len(data) + 1, row_bytes) if row_bytes else [0] * (rows + 1)
    per_row = math.prod(shape[1:])
    ends, position, size = [0], 0, len(data)
    for _ in range(rows):
        for _ in range(per_row):
            if size - position < _LENGTH.size:
                return None
            position += _LENGTH.size + _LENGTH.unpack_from(data, position)[0]
        ends.append(position)
    return ends if position == size else None


def wanted(outputs: list[Tensor], names: Sequence[str]) -> list[Tensor]:
    """The outputs that one request of a batch has asked for; all if it has named none."""
    if not names:
        return outputs
    return [output for name in names for output in outputs if output.name == name]

"""The classification extension: a tensor of scores becomes the indices, values and labels of its highest ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest
from roost.core.tensors import Signature, Tensor, element_count, pack_bytes, to_array

MAX_ELEMENTS = 1_000_000

# Up to here it takes less than 5 ms (x86-64, Python 3.11): sorting 32,768 floats 3 ms, writing 2,000 texts 1.5 ms.
_QUICK_ELEMENTS = 1 << 15
_QUICK_CLASSES = 2_000
_LONG_ROW = 256
_Array: TypeAlias = npt.NDArray[Any]
_Indices: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Classes:
    """What outputs of a request are classified by.

    Attributes:
        counts: How many classes are wanted, by output.
        labels: What the classes are called, by output; outputs and classes may be missing.
        batched: Whether the first dimension is a batch, each row of which is classified by itself.
    """

    counts: Mapping[str, int]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    batched: bool = False

    def classify(self, tensor: Tensor) -> Tensor:
        """Makes BYTES ``value:index[:label]`` of an output, [batch, min(k, elements)] or [min(k, elements)].

        The highest value comes first, the lower index first among equal ones, and what is not a number last. Outputs
        that are not to be classified come back as they are.

        Raises:
            InvalidArgument: If the output is BYTES or has more than a million elements.
        """
        count = self.counts.get(tensor.name)
        if count is None:
            return tensor
        _check_datatype(tensor.name, tensor.datatype)
        elements = element_count(tensor.shape)
        if elements > MAX_ELEMENTS:
            raise InvalidArgument(
                f"output '{tensor.name}' has {elements} elements, classification takes at most {MAX_ELEMENTS}"
            )
        batch = tensor.shape[:1] if self.batched else ()
        rows = _numbers(tensor).reshape(*batch or (1,), math.prod(tensor.shape[len(batch) :]))
        top = _top(rows, min(count, rows.shape[1]))
        values = np.take_along_axis(rows, top, 1)
        shape = (*batch, top.shape[1])
        return Tensor(tensor.name, "BYTES", shape, pack_bytes(_texts(values, top, self.labels.get(tensor.name, ()))))

    def classify_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same for all outputs of a response."""
        return [self.classify(tensor) for tensor in tensors]

    def is_quick(self, tensors: Sequence[Tensor]) -> bool:
        """Whether classifying the outputs of a response takes so little time that an event loop may do it."""
        elements = classes = 0
        for tensor in tensors:
            if tensor.name in self.counts:
                rows = tensor.shape[0] if self.batched and tensor.shape else 1
                size = math.prod(tensor.shape)
                elements += size
                classes += min(size, rows * self.counts[tensor.name])
        return elements <= _QUICK_ELEMENTS and classes <= _QUICK_CLASSES


def wanted_counts(request: InferRequest, signature: Signature) -> dict[str, int]:
    """How many classes a request wants of which outputs.

    Raises:
        InvalidArgument: If one of them has no numbers.
    """
    datatypes = {spec.name: spec.datatype for spec in signature.outputs}
    counts = {output.name: output.classification for output in request.outputs if output.classification > 0}
    for name in counts:
        _check_datatype(name, datatypes[name])
    return counts


def _check_datatype(name: str, datatype: str) -> None:
    if datatype == "BYTES":
        raise InvalidArgument(f"output '{name}' is BYTES, which can't be classified: that takes numbers")


def _numbers(tensor: Tensor) -> _Array:
    """The elements as a datatype that numpy can order; 16-bit floats as FP32, which holds them exactly."""
    array = to_array(tensor)
    match tensor.datatype:
        case "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        case "FP16":
            return array.astype(np.float32)
        case "BOOL":
            return array.view(np.uint8)
        case _:
            return array


def _top(rows: _Array, count: int) -> _Indices:
    """The indices of the highest ``count`` values of each row, in order."""
    if rows.dtype.kind == "f" and np.isnan(rows).any():
        return _descending(np.lexsort((rows[:, ::-1], ~np.isnan(rows[:, ::-1])), 1))[:, :count]
    length = rows.shape[1]
    if length >= _LONG_ROW and count * 8 < length:
        return np.stack([_top_of_long(row, count) for row in rows])
    return _descending(np.argsort(rows[:, ::-1], 1, "stable"))[:, :count]


def _descending(reversed_order: _Indices) -> _Indices:
    """Turns the stable ascending order of reversed rows into one that descends, with lower indices first."""
    order: _Indices = reversed_order.shape[1] - 1 - reversed_order[:, ::-1]
    return order


def _top_of_long(row: _Array, count: int) -> _Indices:
    """The same for one row without sorting all of it: what is above the lowest value wanted, then the first equal."""
    place = len(row) - count
    lowest = np.partition(row, place)[place]
    above = np.flatnonzero(row > lowest)
    equal = np.flatnonzero(row == lowest)[: count - len(above)]
    chosen = np.concatenate((above, equal))
    order: _Indices = _descending(np.argsort(row[chosen][None, ::-1], 1, "stable"))[0]
    top: _Indices = chosen[order]
    return top


def _texts(values: _Array, indices: _Indices, labels: Sequence[str]) -> list[bytes]:
    layout = b"%f:%d" if values.dtype.kind == "f" else b"%d:%d"
    pairs = zip(values.reshape(-1).tolist(), indices.reshape(-1).tolist(), strict=True)
    if not labels:
        return [layout % pair for pair in pairs]
    return [layout % pair + _suffix(labels, pair[1]) for pair in pairs]


def _suffix(labels: Sequence[str], index: int) -> bytes:
    label = labels[index] if index < len(labels) else ""
    return b":" + label.encode() if label else b""

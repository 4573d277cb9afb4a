"""Rows to try a model with: made up from its signature, or those that its configuration gives for warming up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from roost.core.errors import InvalidArgument
from roost.core.tensors import DATATYPES, Tensor, TensorSpec, to_array
from roost.runtimes.proof.dims import NotProven

Array: TypeAlias = "npt.NDArray[Any]"
Rows: TypeAlias = dict[str, Array]
"""Inputs by name; elements of BYTES are ``bytes``, those of BF16 are the upper halves of FP32."""

INTEGER_LIMITS = (1000, 100, 2)
"""Integers are often indices into a table of unknown length, so smaller and smaller ones are tried."""
SIZES = (4, 16, 64, 224, 1024)
"""What open dimensions but the first may be, tried until two of them are taken."""
MAX_ELEMENTS = 2**24

_FLOATS = frozenset({"FP16", "FP32", "FP64", "BF16"})
_SEED = 20


class Samples(Protocol):
    """Where rows come from."""

    def rows(self, count: int) -> Rows:
        """So many rows, the same ones at each call."""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Random rows.

    Attributes:
        specs: The inputs.
        size: What their open dimensions are, the first one aside.
        limit: Integers are less than this.
    """

    specs: Sequence[TensorSpec]
    size: int
    limit: int

    def rows(self, count: int) -> Rows:
        """See ``Samples``."""
        generator = np.random.default_rng(_SEED)
        return {spec.name: self._array(generator, spec, count) for spec in self.specs}

    def _array(self, generator: np.random.Generator, spec: TensorSpec, count: int) -> Array:
        shape = (count, *(self.size if dim < 0 else dim for dim in spec.shape[1:]))
        if math.prod(shape) > MAX_ELEMENTS:
            raise NotProven(f"rows of input '{spec.name}' are too large to try")
        return random_array(generator, spec.datatype, shape, self.limit)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The rows of the model's own samples, over and over."""

    inputs: Mapping[str, Array]

    def rows(self, count: int) -> Rows:
        """See ``Samples``."""
        return {name: array[np.arange(count) % len(array)] for name, array in self.inputs.items()}


def made_up(specs: Sequence[TensorSpec], limit: int) -> Iterator[MadeUp]:
    """Random rows of several sizes, one if no dimension but the first is open."""
    is_open = any(dim < 0 for spec in specs for dim in spec.shape[1:])
    for size in SIZES if is_open else SIZES[:1]:
        yield MadeUp(specs, size, limit)


def warm_up(specs: Sequence[TensorSpec], samples: Sequence[Mapping[str, Any]], root: str) -> WarmUp | None:
    """The samples that ``model_warmup`` of a configuration gives; None if there are none.

    Args:
        specs: The inputs.
        samples: For each sample, and each input of it, ``shape`` and either ``file``, ``zero`` or ``random``.
        root: The model's folder, in whose folder ``warmup`` the files are.

    Raises:
        NotProven: If a file is missing or does not fit.
    """
    if not samples:
        return None
    generator = np.random.default_rng(_SEED)
    parts = [{spec.name: _sample(generator, spec, sample, root) for spec in specs} for sample in samples]
    try:
        return WarmUp({spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in specs})
    except ValueError:
        raise NotProven("its samples for warming up differ in shape") from None


def _sample(generator: np.random.Generator, spec: TensorSpec, sample: Mapping[str, Any], root: str) -> Array:
    given = sample.get(spec.name)
    if given is None:
        raise NotProven(f"its samples for warming up lack input '{spec.name}'")
    shape = tuple(int(size) for size in given["shape"])
    if len(shape) != len(spec.shape) or not shape or shape[0] < 1 or math.prod(shape) > MAX_ELEMENTS:
        raise NotProven(f"its samples for warming up do not fit input '{spec.name}'")
    if "file" not in given:
        random = random_array(generator, spec.datatype, shape, INTEGER_LIMITS[0])
        return random if given.get("random") else np.full(shape, b"") if spec.datatype == "BYTES" else random * 0
    try:
        data = (Path(root) / "warmup" / str(given["file"])).read_bytes()
        return to_array(Tensor(spec.name, spec.datatype, shape, data))
    except (OSError, InvalidArgument):
        raise NotProven(f"its samples for warming up do not fit input '{spec.name}'") from None


def random_array(generator: np.random.Generator, datatype: str, shape: tuple[int, ...], limit: int) -> Array:
    """An array as a model may be given one; integers are less than ``limit``, strings are short words."""
    dtype = DATATYPES[datatype].dtype
    if datatype in _FLOATS:
        values = generator.standard_normal(shape, dtype=np.float32)
        return narrowed(values) if datatype == "BF16" else values.astype(dtype)
    if dtype is None:
        words = [b"row %d" % number for number in generator.integers(0, 10 * limit, math.prod(shape))]
        array = np.empty(len(words), dtype=object)
        array[:] = words
        return array.reshape(shape)
    if datatype == "BOOL":
        return generator.integers(0, 2, shape).astype(bool)
    return generator.integers(0, min(limit, np.iinfo(dtype).max), shape).astype(dtype)


def mates(rows: Rows, specs: Sequence[TensorSpec], kind: float) -> Rows:
    """Rows that are to leave the others beside them alone: times 10,000, zero, NaN or infinite, where they can be."""
    return {spec.name: _mate(rows[spec.name], spec.datatype, kind) for spec in specs}


def _mate(array: Array, datatype: str, kind: float) -> Array:
    if datatype not in _FLOATS:
        return np.zeros_like(array) if kind == 0 and datatype != "BYTES" else array
    values = widened(array) if datatype == "BF16" else array
    with np.errstate(all="ignore"):
        changed = values * values.dtype.type(kind) if math.isfinite(kind) else np.full_like(values, kind)
    return narrowed(changed) if datatype == "BF16" else changed


def widened(array: Array) -> npt.NDArray[np.float32]:
    """BF16 as FP32."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def narrowed(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """FP32 as BF16, cut off."""
    return (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16)

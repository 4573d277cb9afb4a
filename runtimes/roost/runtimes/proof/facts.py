"""What is known of each tensor of a graph: its size, where its rows are, and its elements if they are few sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from roost.runtimes.proof.dims import BATCH, ONE, Dim, NotProven, symbol

MAX_VALUES = 256

Dims: TypeAlias = tuple[Dim, ...]
Element: TypeAlias = Dim | int | float | bool
Values: TypeAlias = "npt.NDArray[Any]"
"""An array of ``Element`` objects; sizes that are numbers are ``int``."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Which dimension of a tensor has the rows of the batch.

    Its size is ``outer * batch * inner``: between ``outer`` slow and ``inner`` fast indices lies that of the row.
    """

    axis: int
    outer: Dim = ONE
    inner: Dim = ONE

    @property
    def size(self) -> Dim:
        """The size of the dimension."""
        return self.outer.times(BATCH).times(self.inner)

    def at(self, axis: int) -> Rows:
        """The same in another dimension."""
        return Rows(axis, self.outer, self.inner)


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of a tensor.

    Either ``rows`` says where the rows are, and then each part of the tensor depends on the row of the inputs that it
    belongs to and on nothing of another one; or the tensor is the same whatever the rows are. Sizes other than
    that of the dimension with the rows don't depend on the number of rows, and neither does anything but ``values``.

    Attributes:
        dims: Its size; None if not even the number of dimensions is known.
        rows: Where the rows are; None if it does not depend on them.
        values: Its elements, if known in terms of sizes.
    """

    dims: Dims | None
    rows: Rows | None = None
    values: Values | None = None

    def __post_init__(self) -> None:
        for axis, dim in enumerate(self.dims or ()):
            is_place = self.rows is not None and axis == self.rows.axis
            if dim.counts_rows != is_place or (self.rows is not None and is_place and dim != self.rows.size):
                raise NotProven("combines rows that lie in different dimensions")

    @property
    def counts_rows(self) -> bool:
        """Whether an element is the number of rows, or a multiple of it."""
        return self.values is not None and any(isinstance(v, Dim) and v.counts_rows for v in self.values.flat)

    @property
    def rank(self) -> int:
        """How many dimensions it has.

        Raises:
            NotProven: If that is not known.
        """
        return len(self.sizes)

    @property
    def sizes(self) -> Dims:
        """Its size.

        Raises:
            NotProven: If it is not known.
        """
        if self.dims is None:
            raise NotProven("has an input of unknown size")
        return self.dims


UNKNOWN = Fact(None)


def fact_of(dims: Sequence[Dim], rows: Rows | None = None) -> Fact:
    """A fact about a tensor of which only the size is known."""
    return Fact(tuple(dims), rows)


def fact_of_values(values: Values | Element | Sequence[Element]) -> Fact:
    """A fact about a tensor whose elements are known; too many of them are forgotten.

    Raises:
        NotProven: If they are too many and the number of rows is among them.
    """
    array = values if isinstance(values, np.ndarray) else as_values(values)
    dims = tuple(Dim(size) for size in array.shape)
    known = Fact(dims, None, array)
    if array.size <= MAX_VALUES:
        return known
    if known.counts_rows:
        raise NotProven("computes with the number of rows")
    return Fact(dims)


def as_values(values: Any) -> Values:
    """An array of elements, sizes that are numbers made plain."""
    array = np.array(values, dtype=object)
    for index in np.ndindex(array.shape):
        element = array[index]
        if isinstance(element, Dim) and not element.symbols:
            array[index] = element.factor
    return array


def as_dim(element: Element) -> Dim:
    """An element as a size."""
    return element if isinstance(element, Dim) else Dim(int(element))


def rows_of(facts: Iterable[Fact]) -> bool:
    """Whether any of them has rows."""
    return any(fact.rows is not None for fact in facts)


def joined(left: Dim, right: Dim) -> Dim:
    """The size of a dimension that both have, or that one has and the other is broadcast to."""
    if left == right or right == ONE:
        return left
    if left == ONE or right.number is not None:
        return right
    if left.number is not None:
        return left
    return symbol(f"({'|'.join(sorted((str(left), str(right))))})")


def broadcast(facts: Sequence[Fact]) -> Fact:
    """What is known of elements that are computed from those at the same place, broadcast as numpy does.

    Raises:
        NotProven: If a row would meet another one, or something that is not the same for each row.
    """
    if not rows_of(facts) and any(fact.dims is None for fact in facts):
        return UNKNOWN
    rank = max(fact.rank for fact in facts)
    rows: Rows | None = None
    for fact in facts:
        if fact.rows is not None:
            found = fact.rows.at(fact.rows.axis + rank - fact.rank)
            if rows is not None and rows != found:
                raise NotProven("combines rows that lie in different dimensions")
            rows = found
    dims: list[Dim] = [ONE] * rank
    for fact in facts:
        for axis, dim in enumerate(fact.sizes, start=rank - fact.rank):
            if rows is not None and axis == rows.axis and fact.rows is None and dim != ONE:
                raise NotProven("combines rows with something that has a fixed number of them")
            dims[axis] = joined(dims[axis], dim)
    return fact_of(dims, rows)

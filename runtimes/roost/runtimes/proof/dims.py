"""Sizes of dimensions as products: a number times symbols, such as ``4 * batch * sequence``.

Products are all that following a batch through reshapes takes, since they can be divided exactly. A sum or a rounded
quotient becomes a symbol of its own that is equal to itself alone; one of the batch can't be made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

BATCH_NAME = "<batch>"


class NotProven(Exception):
    """The rows of a model can't be shown to be independent; the text says why, for the model's owner."""


@dataclass(frozen=True, slots=True)
class Dim:
    """``factor`` times all of ``symbols``, which are sorted and may repeat."""

    factor: int
    symbols: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [str(self.factor)] if self.factor != 1 or not self.symbols else []
        return "*".join((*parts, *self.symbols))

    @property
    def number(self) -> int | None:
        """The size if it is known."""
        return self.factor if not self.symbols else None

    @property
    def counts_rows(self) -> bool:
        """Whether it grows with the batch."""
        return BATCH_NAME in self.symbols

    def times(self, other: Dim) -> Dim:
        """Their product."""
        if not self.factor or not other.factor:
            return ZERO
        return Dim(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Dim) -> Dim | None:
        """Their quotient, if ``other`` divides this whatever the symbols stand for."""
        left = Counter(self.symbols)
        left.subtract(Counter(other.symbols))
        if not other.factor or self.factor % other.factor or min(left.values(), default=0) < 0:
            return None
        return Dim(self.factor // other.factor, tuple(sorted(left.elements())))


ZERO = Dim(0)
ONE = Dim(1)
BATCH = Dim(1, (BATCH_NAME,))


def symbol(name: str) -> Dim:
    """A size that only has a name."""
    return Dim(1, (name,))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of sizes; of none it is 1."""
    total = ONE
    for dim in dims:
        total = total.times(dim)
    return total


def add(left: Dim, right: Dim, sign: int = 1) -> Dim:
    """``left + sign * right``.

    Raises:
        NotProven: If it would be a number of rows and something else.
    """
    right = Dim(sign * right.factor, right.symbols)
    if left.symbols == right.symbols:
        total = left.factor + right.factor
        return Dim(total, left.symbols) if total else ZERO
    if not left.factor or not right.factor:
        return left if left.factor else right
    return _opaque("+".join(sorted((str(left), str(right)))), left, right)


def divide(left: Dim, right: Dim) -> Dim:
    """``left // right``.

    Raises:
        NotProven: If it would be a number of rows that is rounded.
    """
    if left.number is not None and right.number:
        return Dim(math.floor(left.number / right.number))
    exact = left.over(right)
    return exact if exact is not None else _opaque(f"{left}//{right}", left, right)


def _opaque(text: str, *of: Dim) -> Dim:
    if any(dim.counts_rows for dim in of):
        raise NotProven("computes with the number of rows")
    return symbol(f"({text})")

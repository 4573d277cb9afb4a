"""Computing with the elements of small tensors, where graphs work out the sizes for their reshapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from roost.runtimes.proof.dims import Dim, add, divide
from roost.runtimes.proof.facts import Element, Fact, Values, as_dim, as_values


class _Undecided(Exception):
    """The element depends on what a size is."""


def compute(op: str, facts: Sequence[Fact]) -> Values | None:
    """The elements of what an elementwise operator makes of known ones; None if they can't be told.

    Raises:
        NotProven: If they would be the number of rows and something else.
    """
    function = _FUNCTIONS.get(op)
    operands = [fact.values for fact in facts]
    if function is None or any(values is None for values in operands):
        return None
    ufunc: Any = np.frompyfunc(function, len(operands), 1)
    try:
        return as_values(ufunc(*operands))
    except (_Undecided, ArithmeticError, ValueError, TypeError):
        return None


def cast(values: Values, to_integer: bool) -> Values | None:
    """The elements as integers or as floating point numbers; None if a size can't be one."""
    if to_integer:
        return as_values(np.frompyfunc(lambda v: v if isinstance(v, Dim) else int(v), 1, 1)(values))
    if any(isinstance(value, Dim) for value in values.flat):
        return None
    return as_values(np.frompyfunc(float, 1, 1)(values))


def _plain(*elements: Element) -> bool:
    return not any(isinstance(element, Dim) for element in elements)


def _sizes(*elements: Element) -> list[Dim]:
    if any(isinstance(element, float) for element in elements):
        raise _Undecided
    return [as_dim(element) for element in elements]


def _add(left: Any, right: Any) -> Any:
    return left + right if _plain(left, right) else _sum(left, right, 1)


def _sub(left: Any, right: Any) -> Any:
    return left - right if _plain(left, right) else _sum(left, right, -1)


def _sum(left: Element, right: Element, sign: int) -> Element:
    first, second = _sizes(left, right)
    return add(first, second, sign)


def _mul(left: Any, right: Any) -> Any:
    if _plain(left, right):
        return left * right
    first, second = _sizes(left, right)
    return first.times(second)


def _div(left: Any, right: Any) -> Any:
    if not _plain(left, right):
        first, second = _sizes(left, right)
        return divide(first, second)
    if isinstance(left, float) or isinstance(right, float):
        return left / right
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _equal(left: Any, right: Any) -> bool:
    if _plain(left, right):
        return bool(left == right)
    if left == right:
        return True
    numbers = [element for element in (left, right) if not isinstance(element, Dim)]
    if numbers and numbers[0] < 0:  # no size is
        return False
    raise _Undecided


def _where(condition: Any, left: Element, right: Element) -> Element:
    if isinstance(condition, Dim):
        raise _Undecided
    return left if condition else right


def _numbers(function: Callable[..., Element]) -> Callable[..., Element]:
    """A function of numbers alone."""

    def apply(*elements: Element) -> Element:
        if not _plain(*elements):
            if len(set(elements)) == 1 and len(elements) > 1 and function in (min, max):
                return elements[0]
            raise _Undecided
        return function(*elements)

    return apply


def _not(value: Any) -> bool:
    return not value


_FUNCTIONS: Mapping[str, Callable[..., Element]] = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Equal": _equal,
    "Where": _where,
    "Identity": lambda value: value,
    "Neg": _numbers(lambda value: -value),
    "Not": _numbers(_not),
    "Abs": _numbers(abs),
    "Floor": _numbers(lambda value: float(np.floor(float(value)))),
    "Ceil": _numbers(lambda value: float(np.ceil(float(value)))),
    "Max": _numbers(max),
    "Min": _numbers(min),
    "Greater": _numbers(lambda left, right: left > right),
    "Less": _numbers(lambda left, right: left < right),
}

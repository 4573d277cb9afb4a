"""What the paths of conditions lead to in JSON documents. Pure; ``graph_conditions`` reads paths."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

MISSING: Final = object()
"""What a path leads to that leads to nothing."""

_MAX_DIGITS = 18
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TRUTH = {"false": False, "true": True}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of an object, or an index of an array."""

    text: str
    pattern: re.Pattern[str] | None

    def step(self, value: Any) -> Any:
        """What is there; ``MISSING`` if nothing is."""
        if isinstance(value, dict):
            if self.pattern is None:
                return value.get(self.text, MISSING)
            return next((item for key, item in value.items() if self.pattern.fullmatch(key)), MISSING)
        if isinstance(value, list) and self.text.isascii() and self.text.isdigit() and len(self.text) <= _MAX_DIGITS:
            index = int(self.text)
            return value[index] if index < len(value) else MISSING
        return MISSING


@dataclass(frozen=True, slots=True)
class Each:
    """``#``: how long an array is, or what the rest of the path leads to in each of its elements."""


@dataclass(frozen=True, slots=True)
class Several:
    """``[...]``: an array of what several paths lead to."""

    paths: tuple[Path, ...]

    def step(self, value: Any) -> Any:
        """The array; paths that lead to nothing add nothing to it."""
        return [found for path in self.paths if (found := find(value, path)) is not MISSING]


@dataclass(frozen=True, slots=True)
class This:
    """``@this``: the value itself."""

    def step(self, value: Any) -> Any:
        """The value."""
        return value


@dataclass(frozen=True, slots=True)
class Query:
    """``#(...)``: the first element of an array that matches, or with ``#`` behind it all of them.

    Attributes:
        path: What of an element is looked at; None: itself, which must not be an object or array.
        comparison: An operator; empty: anything will do that is there.
        text: What to compare with.
        all: Whether all elements are meant.
        pattern: What ``text`` matches as a pattern.
    """

    path: Path | None
    comparison: str
    text: str
    all: bool
    pattern: re.Pattern[str] | None

    def matching(self, array: Sequence[Any]) -> Iterator[Any]:
        """The elements that match, looked at one by one as they are asked for."""
        return (element for element in array if self._matches(element))

    def _matches(self, element: Any) -> bool:
        is_nested = isinstance(element, dict | list)
        if is_nested == (self.path is None):
            return False
        value = element if self.path is None else find(element, self.path)
        return value is not MISSING and (not self.comparison or self._compares(value))

    def _compares(self, value: Any) -> bool:
        if isinstance(value, str):
            if self.pattern is not None:
                return (self.pattern.fullmatch(value) is not None) == (self.comparison == "%")
            return _COMPARE[self.comparison](value, self.text)
        if not isinstance(value, bool | int | float) or self.pattern is not None:
            return False
        other = _TRUTH.get(self.text) if isinstance(value, bool) else _number(self.text)
        return self.comparison == "!=" if other is None else _COMPARE[self.comparison](value, other)


Part: TypeAlias = Key | Each | Several | This | Query
Chain: TypeAlias = tuple[Part, ...]
Path: TypeAlias = tuple[Chain, ...]
"""Chains with ``|`` between them: what follows one sees its whole result, and not each element of that."""


def find(value: Any, path: Path) -> Any:
    """What a path leads to; ``MISSING`` if to nothing."""
    for chain in path:
        value = _walk(value, chain)
        if value is MISSING:
            break
    return value


def _walk(value: Any, chain: Chain) -> Any:
    for position, part in enumerate(chain):
        if isinstance(part, Each | Query):
            return _gather(value, part, chain[position + 1 :])
        value = part.step(value)
        if value is MISSING:
            break
    return value


def _gather(value: Any, part: Each | Query, rest: Chain) -> Any:
    """What is behind ``#`` or a query, of one element or of several."""
    if not isinstance(value, list):
        return MISSING
    if isinstance(part, Each):
        if not rest:
            return len(value)
        elements: Iterator[Any] = iter(value)
    else:
        elements = part.matching(value)
        if not part.all:
            first = next(elements, MISSING)
            return first if first is MISSING else _walk(first, rest)
    return [found for element in elements if (found := _walk(element, rest)) is not MISSING]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

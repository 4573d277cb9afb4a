r"""Conditions of inference graphs: whether a path leads to something in a JSON document. Pure.

The paths are GJSON's, as in KServe; a condition holds if its path leads to anything, ``null`` included. Understood are
keys (with ``*``, ``?`` and ``\``), indices, ``#``, queries such as ``#(score>0.5)`` and ``#(...)#``, ``|``, ``@this``
and arrays of paths (``[@this]``). What else GJSON has is refused when a path is read, rather than never true: objects
of paths, other modifiers, literals, ``~`` and lines of JSON. A number is never equal to a text that is none, which in
GJSON counts as 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.names import shorten
from roost.router.graph_paths import MISSING, Chain, Each, Key, Part, Path, Query, Several, This, find

_MAX_DEPTH = 16
_ENDS = frozenset(".|")
_MODIFIERS = frozenset(
    (
        "this",
        "reverse",
        "pretty",
        "ugly",
        "valid",
        "flatten",
        "join",
        "keys",
        "values",
        "tostr",
        "fromstr",
        "group",
        "dig",
    )
)
_OPERATORS = ("==", "!=", "!%", "<=", ">=", "=", "<", ">", "%")


class Condition:
    """A path that leads to something, or does not.

    Args:
        text: The path.

    Raises:
        InvalidArgument: If it can't be understood.
    """

    __slots__ = ("_path", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._path = _parse(text, 0)
        except InvalidArgument as error:
            raise InvalidArgument(f"condition {shorten(text)!r}: {error.message}") from None

    def holds(self, document: Any) -> bool:
        """Whether the path leads to something in a document."""
        return find(document, self._path) is not MISSING


def _parse(text: str, depth: int) -> Path:
    if depth > _MAX_DEPTH:
        raise InvalidArgument("nested too deeply")
    if text.startswith(".."):
        raise InvalidArgument("lines of JSON ('..') are not supported")
    chains: list[Chain] = []
    chain: list[Part] = []
    at = 0
    while True:
        part, at = _part(text, at, depth)
        chain.append(part)
        if at == len(text):
            return (*chains, tuple(chain))
        if text[at] not in _ENDS:
            raise InvalidArgument(f"expected '.' or '|' before {shorten(text[at:], 20)!r}")
        if text[at] == "|":
            chains.append(tuple(chain))
            chain = []
        at += 1


def _part(text: str, at: int, depth: int) -> tuple[Part, int]:
    """The part of a path that begins at a position, and where it ends."""
    char = text[at : at + 1]
    if not char or char in _ENDS:
        raise InvalidArgument("a part of the path is empty")
    if char == "#":
        return _query(text, at, depth) if text[at + 1 : at + 2] in ("(", "[") else (Each(), at + 1)
    if char == "[":
        end = _closing(text, at)
        return Several(tuple(_parse(path.strip(), depth + 1) for path in _split(text[at + 1 : end]))), end + 1
    if char in "{!":
        raise InvalidArgument(f"{'objects of paths' if char == '{' else 'literals'} ({char!r}) are not supported")
    if char == "@" and (name := re.compile(r"\w*").match(text, at + 1)) and name[0] in _MODIFIERS:
        if name[0] != "this":
            raise InvalidArgument(f"modifier '@{name[0]}' is not supported")
        return This(), name.end()
    return _key(text, at)


def _key(text: str, at: int) -> tuple[Key, int]:
    start = at
    while at < len(text) and text[at] not in _ENDS:
        at += 2 if text[at] == "\\" else 1
    at = min(at, len(text))
    written = text[start:at]
    plain = re.sub(r"\\(.)", r"\1", written, flags=re.DOTALL)
    special = re.sub(r"\\.", "", written, flags=re.DOTALL)
    if found := re.search(r"[=<>]", special):
        raise InvalidArgument(
            f"comparisons belong into queries, such as [@this].#(a==1), and keys have a '\\' before {found[0]!r}"
        )
    return Key(plain, _pattern(written) if {*special} & {*"*?"} else None), at


def _query(text: str, at: int, depth: int) -> tuple[Query, int]:
    end = _closing(text, at + 1)
    inner = text[at + 2 : end]
    split = _comparison_at(inner)
    path, behind = inner[:split].strip(), inner[split:].strip()
    comparison = next((sign for sign in _OPERATORS if behind.startswith(sign)), "")
    if behind and not comparison:
        raise InvalidArgument(f"there is no operator in {shorten(inner)!r}")
    operand = _operand(behind[len(comparison) :].strip())
    if not path and not comparison:
        raise InvalidArgument("a query is empty")
    is_pattern = comparison in ("%", "!%")
    wants_all = text[end + 1 : end + 2] == "#"
    query = Query(
        _parse(path, depth + 1) if path else None,
        "=" if comparison == "==" else comparison,
        operand,
        wants_all,
        _pattern(operand) if is_pattern else None,
    )
    return query, end + 1 + wants_all


def _operand(text: str) -> str:
    if text.startswith("~"):
        raise InvalidArgument("comparisons with '~' are not supported")
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        if "&&" in text or "||" in text:
            raise InvalidArgument("there is no 'and' or 'or': put a query behind another one, as in #(a>1)#|#(a<2)")
        return text
    try:
        value = json.loads(text, strict=False)
    except ValueError:  # a pattern may have escapes that JSON has not
        return text[1:-1]
    return str(value)


def _comparison_at(text: str) -> int:
    """Where a query's path ends, which is where its operator begins."""
    return next((at for at, char, nested in _outside(text) if not nested and char in "!=<>%"), len(text))


def _split(text: str) -> list[str]:
    """The paths of an array of them."""
    commas = [at for at, char, nested in _outside(text) if not nested and char == ","]
    starts = [0, *(at + 1 for at in commas)]
    return [text[start:end] for start, end in zip(starts, [*commas, len(text)], strict=True)]


def _closing(text: str, at: int) -> int:
    """Where the bracket that opens at a position closes."""
    for place, char, nested in _outside(text[at:]):
        if char in ")]}" and not nested:
            return at + place
    raise InvalidArgument(f"{text[at]!r} is not closed")


def _outside(text: str) -> Iterator[tuple[int, str, int]]:
    """The characters that are in no quotes and not escaped, with their places and the depth of brackets around them."""
    nested = at = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 2
            continue
        if char == '"':
            quoted = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL).match(text, at)
            at = quoted.end() if quoted else len(text)
            continue
        nested -= char in ")]}"
        yield at, char, nested
        nested += char in "([{"
        at += 1


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern with ``*`` and ``?``, which takes no more than its length times that of what it is matched with.

    Each piece between stars is found where it is first, once and for all: later places could only be worse.
    """
    pieces = [""]
    for token in re.findall(r"\\.|.", text, re.DOTALL):
        if token == "*":
            pieces.append("")
        else:
            pieces[-1] += "." if token == "?" else re.escape(token[-1])
    first, *middle, last = pieces if len(pieces) > 1 else ["", *pieces]
    if len(pieces) == 1:
        return re.compile(last, re.DOTALL)
    found = "".join(f"(?>.*?{piece})" for piece in middle if piece)
    return re.compile(f"{first}{found}.*{last}", re.DOTALL)

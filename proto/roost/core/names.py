"""Names of models and versions, and the key under which a version is known."""

from __future__ import annotations

import re
from typing import NamedTuple

from roost.core.errors import InvalidArgument

DEFAULT_NAMESPACE = "default"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


class VersionKey(NamedTuple):
    """One version of one model in one namespace."""

    namespace: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


def is_name(text: str) -> bool:
    """Whether the text can name a model or a version."""
    return _NAME.match(text) is not None


def shorten(text: str, most: int = 80) -> str:
    """A text of somebody else's as messages may carry it: not too long."""
    return text if len(text) <= most else text[:most] + "..."


def check_name(text: str, what: str = "model name") -> str:
    """Returns the text if it is a valid name.

    Raises:
        InvalidArgument: If it is not.
    """
    if not is_name(text):
        raise InvalidArgument(
            f"invalid {what} {shorten(text)!r}: use letters, digits, '.', '_' and '-', start with a letter or digit, "
            "at most 128 characters"
        )
    return text


def version_order(version: str) -> tuple[int, int, str]:
    """Sorts digit versions by number, before named ones, which sort by name."""
    if version.isascii() and version.isdigit():
        return (0, int(version), "")
    return (1, 0, version)

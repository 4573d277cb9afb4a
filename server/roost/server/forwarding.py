"""Headers of a request that the operator wants models to see, as string parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable


def in_any_case(pattern: re.Pattern[str] | None) -> re.Pattern[str] | None:
    """The pattern for a transport whose header names have no case."""
    return pattern and re.compile(pattern.pattern, pattern.flags | re.IGNORECASE)


def forwarded(pattern: re.Pattern[str], items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers whose name the pattern matches anywhere, as parameters.

    Args:
        pattern: What to look for in names.
        items: Names and values as they came.

    Returns:
        Values by name as it came first. A header that came several times has its values joined with commas, and what
        is not UTF-8 in a value is replaced, since parameters are texts.
    """
    found: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for name, value in items:
        if pattern.search(name) is None:
            continue
        text = value if value.isascii() else value.encode("utf-8", "replace").decode()
        key = spelled.setdefault(name.lower(), name)
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found

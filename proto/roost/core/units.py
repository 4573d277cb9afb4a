"""Byte sizes and durations as people write them."""

from __future__ import annotations

import re

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")
_MAX_CHARS = 64  # more is a mistake, and no float holds the numbers that are much longer
_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "ki": 2**10,
    "kib": 2**10,
    "mi": 2**20,
    "mib": 2**20,
    "gi": 2**30,
    "gib": 2**30,
    "ti": 2**40,
    "tib": 2**40,
}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_bytes(text: str | int) -> int:
    """Reads a size such as ``2GiB``, ``512Mi``, ``10MB`` or ``4096`` (bytes).

    Raises:
        ValueError: If the number or the unit makes no sense.
    """
    if isinstance(text, int):
        return text
    match = _match(text)
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in _BYTE_UNITS:
        raise ValueError(f"{_shown(text)} is not a size: write a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB")
    return int(float(match.group(1)) * _BYTE_UNITS[unit])


def parse_seconds(text: str | float) -> float:
    """Reads a duration such as ``60s``, ``250ms``, ``5m`` or ``1.5`` (seconds).

    Raises:
        ValueError: If the number or the unit makes no sense.
    """
    if isinstance(text, int | float):
        try:
            return float(text)
        except OverflowError:
            raise ValueError("the duration is too long") from None
    match = _match(text)
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in _SECONDS:
        raise ValueError(f"{_shown(text)} is not a duration: write a number with us, ms, s, m or h")
    return float(match.group(1)) * _SECONDS[unit]


def _match(text: str) -> re.Match[str] | None:
    return _QUANTITY.match(text) if len(text) <= _MAX_CHARS else None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "...")


def format_bytes(size: float) -> str:
    """Writes a size with a binary unit and at most one decimal, such as ``2 GiB`` or ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.1f}".rstrip("0").rstrip(".") + f" {unit}"
        size /= 1024
    return f"{size:.1f}".rstrip("0").rstrip(".") + " TiB"

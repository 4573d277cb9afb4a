"""Bars and dots for terminals, with Unicode or without."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

WORKER_STYLES = {"up": "green", "starting": "yellow", "down": "red"}
STATE_STYLES = {
    "ready": "green",
    "loading": "yellow",
    "waiting": "yellow",
    "draining": "magenta",
    "unloading": "magenta",
    "failed": "red",
    "standby": "dim",
    "ensemble": "dim",
    "unloaded": "dim",
}
_FULL, _NEARLY_FULL = 0.95, 0.8


def has_unicode(console: Console) -> bool:
    """Whether the terminal shows more than ASCII."""
    return (console.encoding or "").lower().startswith("utf")


def dot(text: str, colour: str, *, unicode: bool) -> Text:
    """A word that says how something is, behind a dot of that colour."""
    return Text.assemble(("● " if unicode else "* ", f"not bold {colour}"), (text, f"not bold {colour}"))


def bar(used: float, whole: float, width: int, *, reserved: float = 0, unicode: bool) -> Text:
    """What is used of a whole, that of it which is only reserved, and what is free.

    What is not nothing is at least one cell wide.
    """
    whole = whole or 1
    used_cells = _cells(used, whole, width)
    reserved_cells = min(used_cells, _cells(reserved, whole, width))
    fill = used / whole
    colour = "red" if fill > _FULL else "yellow" if fill > _NEARLY_FULL else "green"
    solid, shade, free = ("━", "╌", "─") if unicode else ("#", "+", "-")
    return Text.assemble(
        (solid * (used_cells - reserved_cells), colour),
        (shade * reserved_cells, "yellow"),
        (free * (width - used_cells), "bright_black"),
    )


def _cells(part: float, whole: float, width: int) -> int:
    return min(width, max(1, round(width * part / whole))) if part > 0 else 0

"""The worker process and one adapter module per framework; ``Model`` is what models in Python derive from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roost.runtimes.python.model import Model, Request

__all__ = ["Model", "Request"]


def __getattr__(name: str) -> Any:
    """Imports them when they are asked for: workers of other kinds do without."""
    if name in __all__:
        from roost.runtimes.python import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

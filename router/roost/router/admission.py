"""Step 0 and 4 of the data path: how much may be in the server at once."""

from __future__ import annotations

from roost.core.errors import ResourceExhausted
from roost.core.units import format_bytes


class ByteBudget:
    """Counts the bytes of request bodies in the server; taken before a body is read, given back after the answer."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def acquire(self, size_bytes: int) -> None:
        """Takes ``size_bytes`` at once or not at all.

        Raises:
            ResourceExhausted: If they do not fit.
        """
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise ResourceExhausted(
                f"the server holds {format_bytes(self.used_bytes)} of request bodies, "
                f"another {format_bytes(size_bytes)} would pass its limit of {format_bytes(self.limit_bytes)}",
                retry_after_s=1.0,
            )
        self.used_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Gives back what was taken."""
        self.used_bytes -= size_bytes

"""Step 0 and 4 of the data path: how much may be in the server at once."""

from __future__ import annotations

from roost.core.errors import Limit, ResourceExhausted
from roost.core.units import format_bytes


class ByteBudget:
    """Counts bytes of one sort that the server holds, such as request bodies; taken before there is memory for them.

    Args:
        limit_bytes: How many there may be.
        what: What they are, in the plural, for messages.
        limit: What metrics call a request that finds no room.
    """

    def __init__(self, limit_bytes: int, what: str = "request bodies", limit: Limit = Limit.BODY_BUDGET) -> None:
        self.limit_bytes = limit_bytes
        self._what = what
        self._limit = limit
        self.used_bytes = 0

    def acquire(self, size_bytes: int) -> None:
        """Takes ``size_bytes`` at once or not at all.

        Raises:
            ResourceExhausted: If they do not fit.
        """
        if size_bytes > self.limit_bytes:
            raise ResourceExhausted(
                f"{format_bytes(size_bytes)} is more than the {format_bytes(self.limit_bytes)} for all {self._what}",
                limit=self._limit,
            )
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise ResourceExhausted(
                f"the server holds {format_bytes(self.used_bytes)} of {self._what}, "
                f"another {format_bytes(size_bytes)} would pass its limit of {format_bytes(self.limit_bytes)}",
                retry_after_s=1.0,
                limit=self._limit,
            )
        self.used_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Gives back what was taken."""
        self.used_bytes -= size_bytes


class AnswerMemory(bytearray):
    """Memory of an answer that is charged to a budget for as long as anything refers to it or views it.

    Raises:
        ResourceExhausted: If the budget does not have so much; no memory was taken then.
    """

    def __init__(self, size_bytes: int, budget: ByteBudget) -> None:
        budget.acquire(size_bytes)
        self._budget = budget
        self._size_bytes = size_bytes
        super().__init__(size_bytes)

    def __del__(self) -> None:
        if hasattr(self, "_size_bytes"):  # else the budget refused
            self._budget.release(self._size_bytes)

"""Places in an arena: who has which part of one range of bytes. Pure bookkeeping, it knows nothing of the memory."""

from __future__ import annotations

import mmap
from bisect import bisect_left

SLOT_ALIGNMENT_BYTES = mmap.PAGESIZE
"""A page: no two slots share one, so that the pages of a free one can be given back."""

QUICK_LOOKS = 8
"""Blocks that are looked at before it is worth to remember where there are none."""

PATIENCE = 64
"""Blocks that are nearly large enough and looked at, before any that is surely large enough will do."""


class SlotAllocator:
    """Hands out parts of ``[0, size_bytes)``, at the lowest address that fits, so that warm pages are used again.

    Free blocks are kept in order of their addresses and never touch each other. For each size class (a power of two) a
    hint says below which address there is no block of it: a search for a large one does not walk over the many small
    holes that slow readers may leave, and costs a bisection in the common case. Only among very many holes that are a
    little too small the address may not be the lowest: there, the first block of the next class is taken.
    """

    __slots__ = ("_ends", "_highest_hint", "_hints", "_live", "_starts", "free_bytes", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes - size_bytes % SLOT_ALIGNMENT_BYTES
        self.free_bytes = self.size_bytes
        self._starts = [0] if self.size_bytes else []
        self._ends = [self.size_bytes] if self.size_bytes else []
        self._live: dict[int, int] = {}  # where a slot ends, by where it starts
        self._hints = [0] * (self.size_bytes.bit_length() + 2)
        self._highest_hint = 0

    @property
    def used_bytes(self) -> int:
        """What all slots take, the unused ends of their last pages included."""
        return self.size_bytes - self.free_bytes

    @property
    def used_end(self) -> int:
        """Behind which address nothing is taken."""
        if self._ends and self._ends[-1] == self.size_bytes:
            return self._starts[-1]
        return self.size_bytes

    def take(self, size_bytes: int) -> int | None:
        """Takes a slot and returns where it starts; None if no free block is large enough.

        Args:
            size_bytes: More than nothing.
        """
        size_bytes = -(-size_bytes // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES
        if size_bytes > self.free_bytes:
            return None
        at = self._find(size_bytes)
        if at is None:
            return None
        start = self._starts[at]
        end = start + size_bytes
        if end == self._ends[at]:
            del self._starts[at], self._ends[at]
        else:
            self._starts[at] = end
        self._live[start] = end
        self.free_bytes -= size_bytes
        return start

    def free(self, start: int) -> None:
        """Gives back the slot that starts here.

        Raises:
            KeyError: If there is none.
        """
        end = self._live.pop(start)
        self.free_bytes += end - start
        starts, ends = self._starts, self._ends
        at = bisect_left(starts, start)
        joins_next = at < len(starts) and starts[at] == end
        if at and ends[at - 1] == start:
            at -= 1
            start = starts[at]
            if joins_next:
                end = ends[at + 1]
                del starts[at + 1], ends[at + 1]
            ends[at] = end
        elif joins_next:
            end = ends[at]
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, end)
        self._lower_hints(start, end - start)

    def free_blocks(self) -> list[tuple[int, int]]:
        """Start and end of all that is free, in order."""
        return list(zip(self._starts, self._ends, strict=True))

    def _find(self, size_bytes: int) -> int | None:
        """The position of the first free block that is large enough."""
        starts, ends = self._starts, self._ends
        hint = self._hints[size_bytes.bit_length()]
        first = bisect_left(starts, hint) if hint else 0
        for at in range(first, min(first + QUICK_LOOKS, len(starts))):
            if ends[at] - starts[at] >= size_bytes:
                return at
        return self._search(size_bytes, first) if len(starts) > first + QUICK_LOOKS else None

    def _search(self, size_bytes: int, first: int) -> int | None:
        """The same where there are many blocks.

        All blocks as large as this have the size's class or a higher one, so none starts below the hint of its class.
        """
        class_ = size_bytes.bit_length()
        smallest = 1 << (class_ - 1)
        starts, ends = self._starts, self._ends
        hint: int | None = None
        misses = 0
        for at in range(first, len(starts)):
            room = ends[at] - starts[at]
            if room < smallest:
                continue
            if hint is None:
                hint = self._raise_hint(class_, starts[at])
            if room >= size_bytes:
                return at
            misses += 1
            if misses == PATIENCE and (larger := self._find(1 << class_)) is not None:
                return larger
        if hint is None:
            self._raise_hint(class_, self.size_bytes)
        return None

    def _raise_hint(self, class_: int, start: int) -> int:
        self._hints[class_] = start
        self._highest_hint = max(self._highest_hint, start)
        return start

    def _lower_hints(self, start: int, size_bytes: int) -> None:
        """A block of this size is free now: no hint may be above it that it could serve."""
        if start >= self._highest_hint:
            return
        hints = self._hints
        for class_ in range(SLOT_ALIGNMENT_BYTES.bit_length(), size_bytes.bit_length() + 1):
            if hints[class_] > start:
                hints[class_] = start

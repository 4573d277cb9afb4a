"""Step 7 of the data path: the memory that one worker process shares with the router, which gives out its parts.

Inputs are copied in once; outputs are handed on as views, each of which keeps its slot until nobody refers to it. The
arena of a worker that was lost goes as a whole, once the last such view is gone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from roost.core.arena import RUNNING_BYTES, create_arena, map_arena
from roost.core.tensors import Buffer
from roost.router.admission import AnswerMemory, ByteBudget
from roost.router.slots import SlotAllocator

WARM_BYTES = 8 << 20
"""What an idle arena keeps: pages that were given back cost several times as much to write as the copy itself."""

_STEP_BYTES = 4 << 20  # giving back so much takes half a millisecond
_FIRST_BYTE = -(-RUNNING_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE


class Arena:
    """The shared memory of one worker process.

    Slots may be let go in any thread, since whoever sends an answer may hold the last view on it; all else is for the
    event loop.

    Args:
        size_bytes: How much there is for tensors; 0 for none, then there is only the table of runs that have begun.

    Raises:
        OSError: If the machine has no descriptor for it.
    """

    def __init__(self, size_bytes: int) -> None:
        self._slots = SlotAllocator(size_bytes)
        self.descriptor = create_arena(_FIRST_BYTE + self._slots.size_bytes)
        try:
            self._map = map_arena(self.descriptor)
        except BaseException:
            self.close()
            raise
        self._view = memoryview(self._map)
        self._running = self._view[:RUNNING_BYTES].cast("Q")
        self._let_go: deque[int] = deque()
        self._touched_end = 0  # behind it no page was touched
        self._peak_end = 0  # behind it nothing was taken in this period
        self._kept_end = 0  # nor behind this in the one before

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the descriptor, once the worker has inherited it; the memory itself goes with its last user."""
        descriptor, self.descriptor = getattr(self, "descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def size_bytes(self) -> int:
        """How much there is for tensors."""
        return self._slots.size_bytes

    @property
    def used_bytes(self) -> int:
        """What slots take."""
        self._collect()
        return self._slots.used_bytes

    @property
    def scarce(self) -> bool:
        """Whether less than half is free: what may be held for long should not stay here."""
        if self._let_go:
            self._collect()
        return self._slots.free_bytes * 2 < self._slots.size_bytes

    def has_begun(self, run: int) -> bool:
        """Whether the worker has begun with a run, unless its thread has begun with another one since."""
        return run in self._running.tolist()

    def take(self, size_bytes: int) -> int | None:
        """Takes a slot; returns its offset, or None if there is no room."""
        if self._let_go:
            self._collect()
        start = self._slots.take(size_bytes)
        if start is None:
            return None
        end = start + size_bytes
        if end > self._peak_end:
            self._peak_end = end
            if end > self._touched_end:
                self._touched_end = end
        return _FIRST_BYTE + start

    def free(self, offset: int) -> None:
        """Gives back a slot that nothing refers to; safe in any thread."""
        # Not at once: collections and other threads come by in the middle of what the allocator does.
        self._let_go.append(offset - _FIRST_BYTE)

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Copies pieces one behind the other to an offset; the slot there has room for them."""
        view = self._view
        for piece in pieces:
            end = offset + len(piece)
            view[offset:end] = piece
            offset = end

    def answer(self, offset: int, size_bytes: int, answers: ByteBudget) -> memoryview:
        """The elements of an output whose place was taken here; the place is let go once nobody views them.

        Where memory is scarce it is a copy on the heap.

        Raises:
            ResourceExhausted: If the budget of answers does not have so much; the place is let go then.
        """
        if self.scarce:
            try:
                memory = AnswerMemory(size_bytes, answers)
                memory[:] = self._view[offset : offset + size_bytes]
            finally:
                self.free(offset)
            return memoryview(memory)
        try:
            answers.acquire(size_bytes)
        except BaseException:
            self.free(offset)
            raise
        return self._place(offset, size_bytes, answers).data

    def stage(self, size_bytes: int) -> memoryview | None:
        """Memory for an input that can be filled before its run is known, and then be sent as it is.

        It stays as long as anybody views it. None if memory is scarce.
        """
        offset = None if self.scarce else self.take(size_bytes)
        return None if offset is None else self._place(offset, size_bytes, None).data

    def staged(self, data: Buffer) -> int | None:
        """The offset of what ``stage`` has given; None for any other memory, or a part of it."""
        place: object = data.obj if isinstance(data, memoryview) else None
        if not isinstance(place, _Place) or place.held is None:
            return None
        arena, offset, _ = place.held
        return offset if arena is self and place.size == len(data) else None

    @property
    def cooling(self) -> bool:
        """Whether there are pages that may have to be given back: ``end_period`` wants to be called now and then."""
        return self._touched_end > WARM_BYTES

    def end_period(self) -> None:
        """Begins a new period: what was not in use in the one before is for ``give_back``."""
        self._collect()
        self._kept_end = max(self._peak_end, WARM_BYTES)
        self._peak_end = self._slots.used_end

    def give_back(self) -> bool:
        """Gives some pages back to the system that were not in use for a period; returns whether there are more."""
        self._collect()
        kept = max(self._kept_end, self._peak_end, self._slots.used_end)
        kept = -(-kept // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._touched_end <= kept:
            return False
        start = max(kept, (self._touched_end - 1) // _STEP_BYTES * _STEP_BYTES)
        with contextlib.suppress(OSError):  # not every sandbox knows it: the pages are used again, that is all
            self._map.madvise(mmap.MADV_REMOVE, _FIRST_BYTE + start, self._touched_end - start)
        self._touched_end = start
        return start > kept

    def _place(self, offset: int, size_bytes: int, answers: ByteBudget | None) -> _Place:
        place = _Place((size_bytes,), np.uint8, self._map, offset)
        place.held = (self, offset, answers)
        return place

    def _collect(self) -> None:
        while self._let_go:
            self._slots.free(self._let_go.popleft())


class _Place(npt.NDArray[np.uint8]):
    """A slot as memory that gives itself, and what it was charged to, back at its end."""

    held: tuple[Arena, int, ByteBudget | None] | None = None  # None in arrays that numpy makes of it

    def __del__(self) -> None:
        if self.held is not None:
            arena, offset, answers = self.held
            if answers is not None:
                answers.release(self.size)
            arena.free(offset)

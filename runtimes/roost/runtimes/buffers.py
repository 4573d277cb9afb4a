"""Large buffers that are used one after the other, in the same memory."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

from roost.runtimes.memory import MALLOC_ENVIRONMENT

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_ANY_NUMBER = 65536  # of mappings; malloc's own default
_NEVER_BYTES = 1 << 30

_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)


class Buffers:
    """Keeps malloc from mapping each large buffer anew, where they come and go.

    Touching new memory, page by page, takes the kernel a third of the time in which a prepared copy loads: ONNX Runtime
    packs its weights into buffers that it then drops. In the heap the next buffer has the pages of the last one. What
    is free in the end has to be trimmed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    @contextlib.contextmanager
    def reused(self) -> Iterator[None]:
        """Meanwhile large buffers, of whichever thread, are in the heap, and what was freed of it is kept."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                _set(0, _NEVER_BYTES)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    _set(_ANY_NUMBER, int(MALLOC_ENVIRONMENT["MALLOC_TRIM_THRESHOLD_"]))


def _set(mappings: int, trim_bytes: int) -> None:
    if _mallopt is not None:  # glibc only
        _mallopt(_M_MMAP_MAX, mappings)
        _mallopt(_M_TRIM_THRESHOLD, trim_bytes)

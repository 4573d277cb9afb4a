"""When to give back what loads and unloads leave behind in malloc's heap."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from roost.runtimes.memory import private_bytes, trim_memory

AT_LEAST_BYTES = 256 << 10
"""What creating or dropping the smallest model leaves behind."""

DUE_BYTES = 2 << 20
DUE_SHARE = 32
"""Trimming is due once it is the larger of ``DUE_BYTES`` and this fraction of what the process has."""


_LEFT_PER_BYTE = 3  # of a model's files, which are parsed, optimised and packed


class Leftovers:
    """Trims the heap when that is worth what it costs.

    Trimming visits every free piece of the heap, which takes the longer the more models there are, and whoever else
    allocates has to wait meanwhile. What was left behind is not known without such a visit, so it is estimated: too
    much only means that trimming comes earlier.

    Safe to use from several threads.

    Args:
        trim: Trims the heap.
        measure: Says what the process has, in bytes.
    """

    def __init__(self, trim: Callable[[], None] = trim_memory, measure: Callable[[], int] = private_bytes) -> None:
        self._trim = trim
        self._measure = measure
        self._lock = threading.Lock()
        self._left_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Something was created or dropped that may have left so much behind, or a little if that is nothing."""
        with self._lock:
            self._left_bytes += max(size_bytes, AT_LEAST_BYTES)
            is_due = self._left_bytes >= DUE_BYTES and self._left_bytes >= self._measure() // DUE_SHARE
            if is_due:
                self._left_bytes = 0
        if is_due:
            self._trim()


def left_by_load(folder: str) -> int:
    """About what loading a model whose files are in a folder leaves behind."""
    size_bytes = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            size_bytes += entry.stat().st_size
    return _LEFT_PER_BYTE * size_bytes

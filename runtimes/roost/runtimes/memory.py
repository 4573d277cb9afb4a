"""What memory the worker holds for itself, and how to give freed memory back to the system."""

from __future__ import annotations

import ctypes

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_FIELDS = (b"RssAnon:", b"VmSwap:")


def private_bytes(pid: int | str = "self") -> int:
    """Anonymous memory of a process, by default this one, resident or swapped, in bytes.

    From ``status``: ``smaps`` counts page by page, which takes milliseconds for each gigabyte.
    """
    total_kb = 0
    with open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(_FIELDS):
                total_kb += int(line.split()[1])
    return total_kb * 1024


def trim_memory() -> None:
    """Gives the pages that malloc keeps free back to the system; without it a freed model's memory stays here.

    It does not reach the free end of the arenas that threads other than the first have, so whoever starts a worker
    sets ``MALLOC_ARENA_MAX`` to 1.
    """
    if _malloc_trim is not None:  # glibc only
        _malloc_trim(0)

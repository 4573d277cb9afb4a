"""What memory the worker holds for itself, and how to give freed memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os

from roost.core.figures import Figures

MALLOC_ENVIRONMENT = {
    # Trimming reaches all of what was freed in the first arena only.
    "MALLOC_ARENA_MAX": "1",
    # What is larger is mapped, and unmapped when it is freed: trimming what a large load or unload leaves behind in the
    # heap keeps whoever allocates waiting for milliseconds. Without a number malloc finds its own, up to twice as much;
    # with a smaller one the buffers of batches would be mapped anew for each run.
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    # Else, with the number above given, each run that frees as much as 128 KiB gives it back, to ask for it again.
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
}
"""How glibc's malloc is set up in processes that have models."""

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_FIELDS = (b"RssAnon:", b"VmSwap:")
_FILE_FIELD = b"RssFile:"
_SHARED_OUT_FIELDS = (b"Pss_Anon:", b"SwapPss:")


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


def shared_out_bytes(pid: int | str = "self") -> int:
    """Anonymous memory of a process, of which what n processes share counts as the n-th part: sums count it once.

    Counted page by page, for processes that have little.

    Raises:
        OSError: If it has ended, or its pages must not be looked at.
    """
    total_kb = 0
    with open(f"/proc/{pid}/smaps_rollup", "rb") as pages:
        for line in pages:
            if line.startswith(_SHARED_OUT_FIELDS):
                total_kb += int(line.split()[1])
    return total_kb * 1024


def memory_of(pid: int | str = "self") -> Figures:
    """What a process has in memory; its mappings, which take long to count, are 0.

    Raises:
        OSError: If it has ended.
    """
    private_kb = mapped_kb = 0
    with open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(_FIELDS):
                private_kb += int(line.split()[1])
            elif line.startswith(_FILE_FIELD):
                mapped_kb = int(line.split()[1])
    return Figures(private_kb * 1024, mapped_kb * 1024)


def forget_peak() -> bool:
    """Has the kernel forget the most that this process has had in memory; False if it does not do that here."""
    try:
        with open("/proc/self/clear_refs", "wb") as file:
            file.write(b"5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most that this process has had in memory since ``forget_peak``, pages of files included."""
    with open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(b"VmHWM:"))


def family_memory_of(pid: int) -> Figures:
    """The same of a process and all that it has started, directly or not; what several map counts for each.

    Raises:
        OSError: If it has ended.
    """
    private_bytes, mapped_bytes = 0, 0
    found = [memory_of(pid)]
    left = _children_of(pid)
    while left:
        child = left.pop()
        with contextlib.suppress(OSError):  # it has ended just now
            found.append(memory_of(child))
            left += _children_of(child)
    for figures in found:
        private_bytes += figures.private_bytes
        mapped_bytes += figures.mapped_bytes
    return Figures(private_bytes, mapped_bytes)


def _children_of(pid: int) -> list[int]:
    """The processes that the threads of a process have started; none where the kernel does not say."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                children += map(int, file.read().split())
    return children


def mappings_of(pid: int | str = "self") -> int:
    """How many mappings a process has; takes tens of milliseconds where there are tens of thousands.

    Raises:
        OSError: If it has ended.
    """
    with open(f"/proc/{pid}/maps", "rb") as maps:
        return sum(1 for _ in maps)


_MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    """What ``mallinfo2`` of glibc 2.33 and later says."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO)


def allocated_bytes() -> int:
    """What malloc has given out and not got back, to the byte; 0 where it does not say."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = _MallInfo
    found = mallinfo()
    return int(found.uordblks) + int(found.hblkhd)


def trim_memory() -> None:
    """Gives the pages that malloc keeps free back to the system; without it a freed model's memory stays here.

    It does not reach the free end of the arenas that threads other than the first have, so whoever starts a worker
    starts it with ``MALLOC_ENVIRONMENT``.
    """
    if _malloc_trim is not None:  # glibc only
        _malloc_trim(0)

"""Memory that the router and one worker share: how it is made and mapped, and the table that it begins with.

The router makes one arena for each worker process and hands its descriptor down; places in it are the router's to
give. It begins with the *running table*: thread ``i`` of the worker stores the number of the run that it begins at
index ``i``, before the model is called, and never clears it. When a worker is lost, runs that stand there had started.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Protocol

RUNNING_BYTES = 4096
"""The size of the running table, and so the offset of the first byte that can be a tensor's."""

RUNNING_THREADS = RUNNING_BYTES // 8

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ArenaError(Exception):
    """A descriptor that is not an arena's."""


class RunningTable(Protocol):
    """Run numbers by thread; one plain store writes one."""

    def __getitem__(self, thread: int, /) -> int: ...
    def __setitem__(self, thread: int, run: int, /) -> None: ...


def create_arena(size_bytes: int) -> int:
    """Makes an arena and gives its descriptor, which is not inherited; it takes memory only where it is written.

    Its size is sealed: neither end can take pages away from the other, which would kill it.

    Raises:
        OSError: If there is no descriptor or no memory for it.
        ValueError: If it has no room for the running table.
    """
    if size_bytes < RUNNING_BYTES:
        raise ValueError(f"an arena of {size_bytes} bytes, at least {RUNNING_BYTES} are needed")
    descriptor = os.memfd_create("roost-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_arena(descriptor: int) -> mmap.mmap:
    """Maps the whole of an arena, for reading and writing; the descriptor may be closed afterwards.

    Raises:
        ArenaError: If it is not a sealed arena.
        OSError: If it can't be mapped.
    """
    size_bytes = os.fstat(descriptor).st_size
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        raise ArenaError("the descriptor is no memory that can be sealed") from None
    if seals & _SEALS != _SEALS or size_bytes < RUNNING_BYTES:
        raise ArenaError("the descriptor is not a sealed arena")
    return mmap.mmap(descriptor, size_bytes)


def running_table(arena: mmap.mmap) -> RunningTable:
    """The running table at the start of an arena."""
    return memoryview(arena)[:RUNNING_BYTES].cast("Q")

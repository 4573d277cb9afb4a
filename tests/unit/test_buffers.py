"""Where malloc puts large buffers."""

from __future__ import annotations

import subprocess
import sys

PLACES = """
import ctypes
from roost.runtimes.buffers import Buffers
from roost.runtimes.memory import trim_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def place():
    buffer = libc.malloc(64 << 20)
    in_heap = buffer < libc.sbrk(0)
    libc.free(buffer)
    return buffer if in_heap else None

buffers = Buffers()
before = place()
with buffers.reused():
    with buffers.reused():
        first = place()
    second = place()
trim_memory()
print(before, first == second, first is not None, place())
"""


def test_large_buffers_are_reused_where_that_is_wanted_and_mapped_elsewhere() -> None:
    ended = subprocess.run([sys.executable, "-c", PLACES], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["None", "True", "True", "None"]

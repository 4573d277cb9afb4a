"""The worker's end of the link: whole frames in, whole frames out, over a blocking Unix stream socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
from roost.core.frames import ALIGNMENT, HEADER_BYTES, FrameError, Header, unpack_header
from roost.core.tensors import Buffer

_MAX_BUFFERS = 1024  # IOV_MAX: more in one call are refused
_DISCARD_BYTES = 1 << 20
_JOIN_BYTES = 16 << 10  # copying so little costs less than handing over the pieces


class PayloadTooLarge(Exception):
    """There is no memory for a frame's payload; it was read and dropped, the link can go on."""

    def __init__(self, header: Header) -> None:
        super().__init__(f"no memory for a payload of {header.length} bytes")
        self.header = header


class Link:
    """Reads frames from one thread and writes frames from any.

    Args:
        sock: The connected socket, in blocking mode.
        end: Called when a write finds the peer gone. The default ends the process at once: nobody is left to
            work for.
    """

    def __init__(self, sock: socket.socket, end: Callable[[int], NoReturn] = os._exit) -> None:
        self._sock = sock
        self._end = end
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._write_lock = threading.Lock()

    def read(self) -> tuple[Header, memoryview] | None:
        """Waits for the next frame; None once the peer has closed the link between two frames.

        The payload starts at an address that is a multiple of 64 bytes and is never reused: views on it keep it alive.

        Raises:
            FrameError: If the bytes are not a frame, or the link ends in the middle of one.
            PayloadTooLarge: If there is no memory for the payload.
        """
        if not self._fill(self._header, may_end=True):
            return None
        header = unpack_header(self._header)
        try:
            payload = aligned_buffer(header.length)
        except MemoryError:
            self._discard(header.length)
            raise PayloadTooLarge(header) from None
        self._fill(payload)
        return header, payload

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Writes one frame, given as buffers; returns when the kernel has all of it."""
        with self._write_lock:
            try:
                if sum(map(len, buffers)) <= _JOIN_BYTES:
                    self._sock.sendall(b"".join(buffers))
                else:
                    self._send_all(buffers)
            except OSError:
                self._end(0)

    def _send_all(self, buffers: Sequence[Buffer]) -> None:
        left = [memoryview(buffer) for buffer in buffers]
        while left:
            sent = self._sock.sendmsg(left[:_MAX_BUFFERS])
            done = 0
            while done < len(left) and sent >= len(left[done]):
                sent -= len(left[done])
                done += 1
            del left[:done]
            if sent:
                left[0] = left[0][sent:]

    def _fill(self, view: memoryview, may_end: bool = False) -> bool:
        at = 0
        while at < len(view):
            try:
                count = self._sock.recv_into(view[at:])
            except ConnectionResetError:
                count = 0
            if not count:
                if may_end and not at:
                    return False
                raise FrameError("the link ended in the middle of a frame")
            at += count
        return True

    def _discard(self, length: int) -> None:
        scratch = memoryview(bytearray(min(length, _DISCARD_BYTES)))
        while length:
            self._fill(scratch[:length])
            length -= min(length, len(scratch))


def aligned_buffer(length: int) -> memoryview:
    """Allocates bytes, not cleared, that start at a multiple of 64 bytes: runtimes use such memory without a copy."""
    if not length:
        return memoryview(b"")
    block = np.empty(length + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + length].data

"""The worker's end of the link: frames in and out over a blocking Unix stream socket, many with one system call."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
from roost.core.errors import Code
from roost.core.frames import ALIGNMENT, HEADER_BYTES, FrameError, Header, error_frame, unpack_header
from roost.core.tensors import Buffer

_MAX_BUFFERS = 1024  # IOV_MAX: more in one call are refused
_READ_BYTES = 128 << 10
_DISCARD_BYTES = 1 << 20
_JOIN_BYTES = 16 << 10  # copying so little costs less than handing over the pieces


class PayloadTooLarge(Exception):
    """There is no memory for a frame's payload; it was read and dropped, the link can go on."""

    def __init__(self, header: Header) -> None:
        super().__init__(f"no memory for a payload of {header.length} bytes")
        self.header = header


class Frame(NamedTuple):
    """A frame that has come.

    Attributes:
        header: Its header.
        payload: Its payload.
        is_lent: The payload's memory is read into again by the next ``fill``; else it is its own, and views on it
            keep it alive.
    """

    header: Header
    payload: memoryview
    is_lent: bool

    def keep(self) -> memoryview:
        """The payload in memory of its own, its tensors aligned as they are in a frame that is."""
        if not self.is_lent:
            return self.payload
        return _copy_of(self.payload)


class Link:
    """Reads frames from one thread at a time and writes frames from any.

    Small frames are read many at a time into one buffer, a large one into memory of its own. Either begins at a
    multiple of 64 bytes.

    Args:
        sock: The connected socket, in blocking mode.
        wait: Returns when there is something to read; the default leaves that to the reading itself.
        end: Called when a write finds the peer gone. The default ends the process at once: nobody is left to
            work for.
    """

    def __init__(
        self,
        sock: socket.socket,
        wait: Callable[[], object] = lambda: None,
        end: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        self._sock = sock
        self._wait = wait
        self._end = end
        self._buffer = aligned_buffer(_READ_BYTES)
        self._at = 0  # where the next frame begins
        self._filled = 0
        self._begun: Header | None = None  # of the next frame, as far as it is known that it has not come whole
        self._large: Frame | None = None
        self._write_lock = threading.Lock()

    def take(self) -> Frame | None:
        """The next frame that has been read; None: there is no whole one.

        Raises:
            FrameError: If the bytes are not a frame.
        """
        large = self._large
        if large is not None:
            self._large = None
            return large
        start = self._at + HEADER_BYTES
        if start > self._filled:
            return None
        header = unpack_header(self._buffer, at=self._at)
        end = start + header.length
        if end > self._filled:
            self._begun = header
            return None
        payload = self._buffer[start:end]
        is_aligned = not self._at % ALIGNMENT  # as runs are that follow each other, but not one behind a control frame
        self._at = end
        return Frame(header, payload if is_aligned else _copy_of(payload), is_aligned)

    def fill(self) -> bool:
        """Waits for more, once ``take`` has nothing left; False if the peer has closed the link between two frames.

        Raises:
            FrameError: If the link ends in the middle of a frame.
            PayloadTooLarge: If there is no memory for the payload.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun.length > _READ_BYTES // 2:
            self._fill_large(begun)
            return True
        at, rest = self._at, self._filled - self._at
        if at:
            self._at = 0
            if rest:
                self._buffer[:rest] = self._buffer[at : self._filled]
        self._filled = rest
        self._wait()
        count = self._receive(self._buffer[rest:])
        if not count and rest:
            raise FrameError("the link ended in the middle of a frame")
        self._filled += count
        return count > 0

    def fill_or_refuse(self) -> bool:
        """As ``fill``, but answers a payload for which there is no memory with RESOURCE_EXHAUSTED and goes on."""
        try:
            return self.fill()
        except PayloadTooLarge as error:
            self.send([error_frame(error.header.request, Code.RESOURCE_EXHAUSTED, str(error))])
            return True

    def detach(self) -> None:
        """Leaves the buffer to the payloads that were taken from it: what follows is read into another one."""
        buffer = aligned_buffer(_READ_BYTES)
        rest = self._filled - self._at
        buffer[:rest] = self._buffer[self._at : self._filled]
        self._buffer, self._at, self._filled = buffer, 0, rest

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Writes frames, given as buffers; returns when the kernel has all of them."""
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

    def _fill_large(self, header: Header) -> None:
        start = self._at + HEADER_BYTES
        beginning = self._buffer[start : self._filled]
        self._at = self._filled = 0
        try:
            payload = _payload_buffer(header.length)
        except MemoryError:
            self._discard(header.length - len(beginning))
            raise PayloadTooLarge(header) from None
        payload[: len(beginning)] = beginning
        self._receive_all(payload[len(beginning) :])
        self._large = Frame(header, payload, False)

    def _receive(self, view: memoryview) -> int:
        try:
            return self._sock.recv_into(view)
        except ConnectionResetError:
            return 0

    def _receive_all(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            count = self._receive(view[at:])
            if not count:
                raise FrameError("the link ended in the middle of a frame")
            at += count

    def _discard(self, length: int) -> None:
        scratch = memoryview(bytearray(min(length, _DISCARD_BYTES)))
        while length:
            self._receive_all(scratch[:length])
            length -= min(length, len(scratch))


def until_readable(sock: socket.socket) -> Callable[[], object]:
    """What waits for a socket to have something to read, or to be closed.

    A thread that sleeps in ``recv`` is also woken when the peer has read what was sent to it, once for each answer, and
    waking costs more than anything else here. One that sleeps in ``poll`` is not.
    """
    readable = select.poll()
    readable.register(sock, select.POLLIN)
    return readable.poll


def aligned_buffer(length: int) -> memoryview:
    """Allocates bytes, not cleared, that start at a multiple of 64 bytes: runtimes use such memory without a copy."""
    if not length:
        return memoryview(b"")
    block = np.empty(length + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + length].data


def _copy_of(payload: memoryview) -> memoryview:
    copy = _payload_buffer(len(payload))
    copy[:] = payload
    return copy


def _payload_buffer(length: int) -> memoryview:
    """Memory for a payload whose frame would begin at a multiple of 64 bytes."""
    return aligned_buffer(HEADER_BYTES + length)[HEADER_BYTES:]

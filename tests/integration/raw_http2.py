"""A unary gRPC call written by hand, frame by frame, for clients that behave as no library does and cost no memory."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_FRAME_BYTES = 16_384
_ZEROS = bytes(65_536)


def _frame(type_: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", type_, flags, stream) + payload


def _header(name: str, value: str) -> bytes:
    """A header that is neither compressed nor remembered."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


@dataclass
class RawCall:
    """One call on a connection of its own.

    ``start`` sends the headers; ``send`` sends the message as fast as the server's windows allow; ``answered`` waits
    until the server has ended the call. ``read_frames`` must run meanwhile.
    """

    port: int
    path: str
    got_data: bool = False
    sent_bytes: int = 0

    async def start(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._stream_window = self._connection_window = 65_535
        self._initial_window = 65_535
        self._frame_bytes = _FRAME_BYTES
        self._changed = asyncio.Condition()
        self._ended = asyncio.Event()
        headers = b"".join(
            _header(name, value)
            for name, value in [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", self.path),
                (":authority", "localhost"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ]
        )
        self._writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, 1, headers))

    async def read_frames(self) -> None:
        """Reads what the server sends, until the call has ended or the connection has."""
        try:
            while not self._ended.is_set():
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                await self._on_frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._ended.set()
            async with self._changed:
                self._changed.notify_all()

    async def send(self, head: bytes, zeros: int) -> None:
        """Sends one message, ``head`` and then so many zeros, behind gRPC's prefix; then ends the sending side."""
        prefix = b"\x00" + (len(head) + zeros).to_bytes(4, "big") + head
        left = len(prefix) + zeros
        while left:
            count = min(left, self._frame_bytes)
            async with self._changed:
                await self._changed.wait_for(
                    lambda count=count: (  # type: ignore[misc]
                        self._ended.is_set() or min(self._stream_window, self._connection_window) >= count
                    )
                )
            if self._ended.is_set():
                return
            self._stream_window -= count
            self._connection_window -= count
            self.sent_bytes += count
            left -= count
            payload = prefix + _ZEROS[len(prefix) : count]
            prefix = b""
            self._writer.write(_frame(_DATA, 0 if left else _END_STREAM, 1, payload))
            await self._writer.drain()

    async def answered(self) -> None:
        await self._ended.wait()

    def close(self) -> None:
        self._writer.close()

    async def _on_frame(self, type_: int, flags: int, stream: int, payload: bytes) -> None:
        if type_ == _SETTINGS and not flags & _ACK:
            self._writer.write(_frame(_SETTINGS, _ACK, 0, b""))
            for key, value in struct.iter_unpack(">HI", payload):
                if key == 4:
                    self._stream_window += value - self._initial_window
                    self._initial_window = value
                elif key == 5:
                    self._frame_bytes = min(value, len(_ZEROS))
        elif type_ == _WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if stream:
                self._stream_window += increment
            else:
                self._connection_window += increment
        elif type_ == _PING and not flags & _ACK:
            self._writer.write(_frame(_PING, _ACK, 0, payload))
        elif type_ in (_RST_STREAM, _GOAWAY) or (type_ in (_HEADERS, _DATA) and flags & _END_STREAM):
            self._ended.set()
        self.got_data = self.got_data or type_ == _DATA
        async with self._changed:
            self._changed.notify_all()


async def raw_call(port: int, path: str, head: bytes, zeros: int) -> RawCall:
    """Makes one whole call with a message of ``head`` and zeros."""
    call = RawCall(port, path)
    await call.start()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(call.read_frames())
            await call.send(head, zeros)
    finally:
        call.close()
    return call

"""A native gRPC connection without a socket: what a client sends goes in, the frames it would get come out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hpack import Decoder, Encoder
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_native import NativeTransport
from roost.server.grpc_native_connection import GrpcConnection
from roost.server.grpc_server import build_grpc_server
from roost.server.http2 import frames
from roost.server.http2.shared import Shared
from roost.server.transport_options import TransportOptions

from tests.unit.grpc_fakes import FakeDataPlane

Frame = tuple[int, int, int, bytes]

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
REQUEST_HEADERS = ((":method", "POST"), (":scheme", "http"), (":path", INFER_PATH), ("te", "trailers"))
GRPC = ("content-type", "application/grpc")


class FakeTransport:
    """Keeps what is written; closed once and for all."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.writes = 0
        self.written = asyncio.Event()
        self.is_closed = False
        self.is_reading = True

    def write(self, data: bytes) -> None:
        if not self.is_closed:
            self.sent += data
            self.writes += 1
            self.written.set()

    def writelines(self, pieces: Sequence[bytes]) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return len(self.sent)

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1234)


class Client:
    """A client of a server with a fake data plane.

    Args:
        plane: Answers.
        limits: Those of the server.
        options: What its operator chose.
        shared: What its connections have in common, if it is that of another server.
    """

    def __init__(
        self,
        plane: FakeDataPlane,
        limits: GrpcLimits | None = None,
        options: TransportOptions | None = None,
        shared: Shared | None = None,
    ) -> None:
        server = build_grpc_server(plane, limits or GrpcLimits(), options)
        assert isinstance(server.transport, NativeTransport)
        self.service = server.transport.service
        self.service.shared = shared or self.service.shared
        self.transport = FakeTransport()
        self.connection = GrpcConnection(self.service)
        self.connection.connection_made(self.transport)
        self.encoder = Encoder()
        self._decoder = Decoder()

    def greet(self) -> Client:
        """Begins as clients do."""
        self.send(frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0))
        self.frames()
        return self

    def headers(self, stream_id: int, *more: tuple[str, str], flags: int = 0, path: str = INFER_PATH) -> bytes:
        """The frame that begins a call."""
        named = [(name, path if name == ":path" else value) for name, value in REQUEST_HEADERS]
        block = self.encoder.encode([*named, GRPC, *more])
        return frames.frame(frames.HEADERS, flags | frames.END_HEADERS, stream_id, block)

    def call(self, stream_id: int, message: bytes, *more: tuple[str, str]) -> bytes:
        """The frames of a whole call."""
        return self.headers(stream_id, *more) + data(stream_id, message)

    def send(self, raw: bytes) -> None:
        """Brings bytes to the server."""
        if not self.transport.is_closed:
            receive(self.connection, raw)

    def frames(self) -> list[Frame]:
        """The frames that were sent since the last look, those that wait for the end of the turn included."""
        self.connection.output.flush()
        sent, self.transport.sent = bytes(self.transport.sent), bytearray()
        found = []
        while sent:
            high, low, kind, flags, stream_id = frames.HEAD.unpack_from(sent)
            end = frames.HEAD_BYTES + (high << 8 | low)
            found.append((kind, flags, stream_id, sent[frames.HEAD_BYTES : end]))
            sent = sent[end:]
        return found

    async def answers(self, count: int = 1) -> dict[int, tuple[dict[str, str], bytes]]:
        """Waits until so many calls have ended; their headers and trailers together, and their data."""
        headers: dict[int, dict[str, str]] = {}
        body: dict[int, bytes] = {}
        ended: set[int] = set()
        while len(ended) < count:
            for kind, flags, stream_id, payload in self.frames():
                if kind == frames.HEADERS:
                    fields = {str(key): str(value) for key, value in self._decoder.decode(payload)}
                    headers.setdefault(stream_id, {}).update(fields)
                elif kind == frames.DATA:
                    body[stream_id] = body.get(stream_id, b"") + payload
                elif kind in (frames.RST_STREAM, frames.GOAWAY):
                    raise AssertionError((kind, stream_id, payload))
                if flags & frames.END_STREAM and kind in (frames.HEADERS, frames.DATA):
                    ended.add(stream_id)
            await asyncio.sleep(0)
        return {stream_id: (fields, body.get(stream_id, b"")) for stream_id, fields in headers.items()}


def receive(connection: GrpcConnection, raw: bytes) -> None:
    """Brings bytes to a connection as event loops do."""
    at = 0
    while at < len(raw):
        room = connection.get_buffer(-1)
        count = min(len(room), len(raw) - at)
        room[:count] = raw[at : at + count]
        connection.buffer_updated(count)
        at += count


def data(stream_id: int, message: bytes, flags: int = frames.END_STREAM) -> bytes:
    """A DATA frame with one message."""
    return frames.frame(frames.DATA, flags, stream_id, b"\0" + len(message).to_bytes(4, "big") + message)

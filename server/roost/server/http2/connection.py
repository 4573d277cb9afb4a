"""One HTTP/2 connection, as the server sees it: takes frames apart, keeps the rules, and tells what streams bring.

Clients may send the first 64 KiB of each stream unasked; anything beyond is asked for by whoever wants to have it. What
is behind this bounds how many streams wait, and so what a connection can hold.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from roost.server.http2 import frames
from roost.server.http2.blocks import MAX_LIST_BYTES, HeaderBlocks
from roost.server.http2.frames import ConnectionFailed, ErrorCode
from roost.server.http2.hpack import Header
from roost.server.http2.output import Output
from roost.server.http2.shared import Shared
from roost.server.http2.streams import FillingStream, IncomingStream, Stream

# No more than the window that a stream begins with, since there are clients that send whole frames or nothing.
MAX_FRAME_BYTES: Final = frames.DEFAULT_WINDOW
# Frames other than DATA are put together before they are looked at.
_MAX_WHOLE_BYTES: Final = 65_536
_WINDOW_BYTES: Final = 2**24
_WRITE_BUFFER_BYTES: Final = 2**17
# Data waits until the client reads, everything else is small and goes out at once: this much of it is an attack.
_MAX_UNREAD_BYTES: Final = 2**20
# Smaller reads are copied before they are looked at.
_VIEW_BYTES: Final = 32_768
# Of what one read brings; whoever sends more has to let other connections have their turn.
_TURN_BYTES: Final = 65_536
# Changed windows make all streams be looked at; libraries that adapt theirs do so a few times a second.
_MAX_SETTINGS: Final = 100
_SETTINGS_S: Final = 1.0
_LINGER_S: Final = 30.0
_LAST_WORDS_S: Final = 1.0

H = TypeVar("H")


class Connection(asyncio.BufferedProtocol, Generic[H]):
    """Reads frames. ``H`` is what a list of headers means to who is behind it.

    Args:
        max_streams: How many streams may be open at once.
        shared: What it shares with the other connections of its event loop.
    """

    def __init__(self, max_streams: int, shared: Shared) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_streams = max_streams
        self._shared = shared
        self._blocks = HeaderBlocks(self.meaning)
        self.streams: dict[int, Stream] = {}
        self.filling: dict[int, FillingStream] = {}  # those of them that receive a large message
        self._fresh: dict[int, H] = {}  # streams of the chunk at hand that have sent headers alone
        self.fresh_grants: dict[int, int] = {}  # what these may be sent beyond the usual window
        self._rest = b""
        self._has_begun = False
        self._left = 0  # of a DATA frame that is not complete: bytes, stream, flags
        self._data_id = 0
        self._data_flags = 0
        self._unasked_bytes = 0  # received since the connection's window was last opened
        self._last_id = 0
        self._opened = 0  # streams, with the chunk at hand
        self._settings = 0  # of the client, since
        self._settings_since = 0.0
        self._last_taken_id = frames.MAX_STREAM_ID
        self._pongs: dict[bytes, Callable[[], None]] = {}
        self.heard = 0.0
        self.is_lost = False

    # -- what is behind it ------------------------------------------------------------------------------------------

    @abstractmethod
    def meaning(self, headers: list[Header] | None) -> H:
        """What a list of headers means: a function of them alone, since it is remembered; None is one too large."""

    @abstractmethod
    def open(self, stream_id: int, meaning: H, is_complete: bool) -> IncomingStream | None:
        """Opens a stream; None if it was answered already. ``is_complete``: the client sends nothing else."""

    @abstractmethod
    def take_whole(self, stream_id: int, meaning: H, data: bytes) -> bool:
        """Takes a stream whose headers and data came at once and whole; False to have it opened instead."""

    @abstractmethod
    def on_ping(self) -> None:
        """The client has asked for a sign of life.

        Raises:
            ConnectionFailed: If it does so too often.
        """

    # -- transport --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """See ``asyncio.BaseProtocol``."""
        self.transport: asyncio.Transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.output = Output(transport.write, transport.writelines, self._shared.flush_soon)
        self.heard = time.monotonic()
        limits = {
            frames.MAX_CONCURRENT_STREAMS: self._max_streams,
            frames.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            frames.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
        }
        window = frames.window_update(0, _WINDOW_BYTES - frames.DEFAULT_WINDOW)
        self.output.write(frames.settings(limits) + window)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.BaseProtocol``."""
        self.is_lost = True
        streams = list(self.streams.values())
        self.streams.clear()
        self.output.forget_all()
        for stream in streams:
            self._tell_reset(stream)

    def pause_writing(self) -> None:
        """See ``asyncio.BaseProtocol``."""
        self.output.is_paused = True

    def resume_writing(self) -> None:
        """See ``asyncio.BaseProtocol``."""
        self.output.resume()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See ``asyncio.BufferedProtocol``; what is left of the last read goes before what comes."""
        rest, room = self._rest, self._shared.room
        if not rest:
            return room
        room[: len(rest)] = rest
        return room[len(rest) :]

    def buffer_updated(self, nbytes: int) -> None:
        """See ``asyncio.BufferedProtocol``."""
        data = self._shared.room[: len(self._rest) + nbytes]
        self._rest = b""
        # What is large goes to where it belongs from here; pieces of bytes are faster to make than pieces of views.
        self.receive(bytes(data) if nbytes < _VIEW_BYTES else data)

    def receive(self, data: bytes | memoryview) -> None:
        """Takes what has come; a view is not looked at any more after this call."""
        self.heard = time.monotonic()
        if self.is_lost:
            return
        self._opened = 0
        if len(data) >= _TURN_BYTES:
            # Some event loops read on for as long as there is something, and serve nobody else meanwhile.
            self.transport.pause_reading()
            self._loop.call_soon(self._read_on)
        try:
            at = 0 if self._has_begun else self._begin(data)
            if at < 0:
                self._rest = bytes(data)
                return
            at = self._take_frames(data, at)
            self._rest = bytes(data[at:])
            self._end_chunk()
        except ConnectionFailed as failure:
            self.fail(failure)

    def _end_chunk(self) -> None:
        if self._fresh:
            self._open_fresh()
        if self.fresh_grants:
            self.fresh_grants.clear()  # those of streams that were answered or reset at once
        if self._unasked_bytes >= _WINDOW_BYTES // 2:
            self.output.write(frames.window_update(0, self._unasked_bytes))
            self._unasked_bytes = 0
        if self.output.is_paused and self.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, "what is sent is not read")

    def _read_on(self) -> None:
        if not self.is_lost:
            self.transport.resume_reading()

    def fail(self, failure: ConnectionFailed) -> None:
        """Ends the connection and says why."""
        if not self.is_lost:
            last_id = min(self._last_id, self._last_taken_id)
            self.output.write(frames.goaway(last_id, failure.code, failure.text))
            self.close(_LAST_WORDS_S)

    def close(self, linger_s: float = _LINGER_S) -> None:
        """Ends the connection; what was handed to the socket is still sent, if it is read within so many seconds."""
        self.output.flush()
        if self.transport.get_write_buffer_size():
            self._loop.call_later(linger_s, self.transport.abort)
        self.transport.close()
        self.connection_lost(None)

    # -- sending ----------------------------------------------------------------------------------------------------

    def ping(self, data: bytes, on_pong: Callable[[], None]) -> None:
        """Asks the client for a sign of life."""
        self._pongs[data] = on_pong
        self.output.write(frames.frame(frames.PING, 0, 0, data))

    def announce_end(self) -> None:
        """Tells the client to open no more streams here, while those on their way are still taken."""
        self.output.write(frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR))

    def refuse_streams(self) -> None:
        """From now on takes no more streams; the client may open them elsewhere, as none of them was looked at."""
        self._last_taken_id = self._last_id
        self.output.write(frames.goaway(self._last_id, ErrorCode.NO_ERROR))

    def forget(self, stream: Stream) -> None:
        """A stream has ended."""
        self.streams.pop(stream.stream_id, None)

    # -- frames -----------------------------------------------------------------------------------------------------

    def _begin(self, data: bytes | memoryview) -> int:
        """The end of the preface; -1 if it is not all there."""
        preface = frames.PREFACE
        first = bytes(data[: len(preface)])
        if first != preface:
            if preface.startswith(first):
                return -1
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        self._has_begun = True
        return len(preface)

    def _take_frames(self, data: bytes | memoryview, at: int) -> int:
        """Takes all frames that are complete, and what there is of a DATA frame; returns where the rest begins."""
        size = len(data)
        unpack = frames.HEAD.unpack_from
        if self._left:
            at = self._go_on(data, at)
        while size - at >= frames.HEAD_BYTES:
            high, low, kind, flags, stream_id = unpack(data, at)
            length = high << 8 | low
            body = at + frames.HEAD_BYTES
            end = body + length
            if kind == frames.DATA and not flags & frames.PADDED:
                if length > MAX_FRAME_BYTES:
                    raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "a DATA frame is too large")
                if self._blocks.open_id:
                    raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a header block is cut short")
                if end > size:
                    self._left, self._data_id, self._data_flags = length, stream_id, flags
                    return self._go_on(data, body)
                if not flags and stream_id in self.filling:
                    count = self._on_frames(self.filling[stream_id], data, at, length)
                    if count:
                        at += count * (frames.HEAD_BYTES + length)
                        continue
                self._on_data(stream_id, flags, data, body, end, length)
            elif length > _MAX_WHOLE_BYTES:
                raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "a frame is too large")
            elif end > size:
                return at
            elif kind == frames.HEADERS:
                self._on_headers(stream_id, flags, bytes(data[body:end]))
            else:
                self._on_other(kind, flags, stream_id & frames.MAX_STREAM_ID, bytes(data[body:end]))
            at = end
        return at

    def _go_on(self, data: bytes | memoryview, at: int) -> int:
        """Takes what there is of a DATA frame that began earlier."""
        end = min(at + self._left, len(data))
        self._left -= end - at
        flags = 0 if self._left else self._data_flags
        if end > at or flags & frames.END_STREAM:
            self._on_data(self._data_id, flags, data, at, end, end - at)
        return end

    def _on_data(
        self, stream_id: int, flags: int, data: bytes | memoryview, at: int, end: int, counted_bytes: int
    ) -> None:
        self._unasked_bytes += counted_bytes
        if self._unasked_bytes > _WINDOW_BYTES:
            raise ConnectionFailed(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window allows")
        is_last = bool(flags & frames.END_STREAM)
        meaning = self._fresh.pop(stream_id, None) if self._fresh else None
        if meaning is not None:
            is_whole = is_last and end - at <= frames.DEFAULT_WINDOW
            if is_whole and self.take_whole(stream_id, meaning, bytes(data[at:end])):
                return
            self._open(stream_id, meaning, False)
        stream = self.streams.get(stream_id)
        if isinstance(stream, IncomingStream):
            stream.on_data(data[at:end], counted_bytes, is_last)
        elif stream_id > self._last_id or not stream_id & 1:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "data of a stream that is not open")

    def _on_frames(self, stream: FillingStream, data: bytes | memoryview, at: int, length: int) -> int:
        """Takes a number of frames of one large message at once; returns how many, perhaps none."""
        if not length or isinstance(data, bytes):  # little was read
            return 0
        count = min(frames.count_alike(data, at, length), (_WINDOW_BYTES - self._unasked_bytes) // length)
        count = stream.on_frames(data, at, length, count)
        self._unasked_bytes += count * length
        return count

    def _on_headers(self, stream_id: int, flags: int, block: bytes) -> None:
        if self._blocks.open_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a header block is cut short")
        if flags & (frames.PADDED | frames.WITH_PRIORITY):
            block = _without_extras(flags, block)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, flags, block)
        else:
            self._blocks.begin(stream_id, flags, block)

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        meaning = self._blocks.read(block)
        is_last = flags & frames.END_STREAM
        if not stream_id & 1 or stream_id > frames.MAX_STREAM_ID:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a stream has a wrong number")
        if stream_id <= self._last_id:
            self._on_trailers(stream_id, bool(is_last))
            return
        self._last_id = stream_id
        if stream_id > self._last_taken_id:
            return  # the client knows that it was not taken
        self._opened += 1
        # Those that were opened and reset at once count too, as they were work.
        if len(self.streams) + len(self._fresh) >= self._max_streams or self._opened > self._max_streams:
            self.output.write(frames.reset(stream_id, ErrorCode.REFUSED_STREAM))
        elif is_last:
            self._open(stream_id, meaning, True)
        else:
            self._fresh[stream_id] = meaning

    def _open_fresh(self) -> None:
        fresh, self._fresh = self._fresh, {}
        for stream_id, meaning in fresh.items():
            self._open(stream_id, meaning, False)

    def _open(self, stream_id: int, meaning: H, is_complete: bool) -> None:
        stream = self.open(stream_id, meaning, is_complete)
        if stream is not None:
            self.streams[stream_id] = stream
            stream.granted_bytes += self.fresh_grants.pop(stream_id, 0)

    def _on_trailers(self, stream_id: int, is_last: bool) -> None:
        if not is_last:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a stream has headers twice")
        meaning = self._fresh.pop(stream_id, None)
        if meaning is not None:
            self._open(stream_id, meaning, True)
            return
        stream = self.streams.get(stream_id)
        if isinstance(stream, IncomingStream):
            stream.on_data(b"", 0, True)

    def _on_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._blocks.open_id and (kind != frames.CONTINUATION or stream_id != self._blocks.open_id):
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a header block is cut short")
        match kind:
            case frames.WINDOW_UPDATE:
                self._on_window_update(stream_id, payload)
            case frames.PING:
                self._on_ping(flags, stream_id, payload)
            case frames.SETTINGS:
                self._on_settings(flags, stream_id, payload)
            case frames.RST_STREAM:
                self._on_reset(stream_id, payload)
            case frames.DATA:
                body = _without_extras(flags, payload)
                self._on_data(stream_id, flags, body, 0, len(body), len(payload))
            case frames.CONTINUATION:
                block = self._blocks.go_on(flags, payload)
                if block is not None:
                    self._on_block(stream_id, self._blocks.open_flags, block)
            case frames.PUSH_PROMISE:
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "clients can't push")
            case frames.PRIORITY if len(payload) != 5:
                raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "a priority has a wrong size")
            case frames.PRIORITY | frames.GOAWAY if bool(stream_id) is not (kind == frames.PRIORITY):
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a frame is of a wrong stream")
            case frames.GOAWAY | frames.PRIORITY | _:
                pass  # the client leaves when its streams have ended; kinds that are not known mean nothing

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "a window update has a wrong size")
        increment = frames.word(payload) & frames.MAX_WINDOW
        if not stream_id:
            if not increment:
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a window is enlarged by nothing")
            self.output.grant_all(increment)
            return
        if stream_id > self._last_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a window of a stream that is not open")
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id in self._fresh:
                self.fresh_grants[stream_id] = self.fresh_grants.get(stream_id, 0) + increment
            return
        if not increment:
            self._end_stream(stream, ErrorCode.PROTOCOL_ERROR)
            return
        try:
            self.output.grant(stream, increment)
        except OverflowError:
            self._end_stream(stream, ErrorCode.FLOW_CONTROL_ERROR)

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a ping of a stream")
        if len(payload) != 8:
            raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "a ping has a wrong size")
        if flags & frames.ACK:
            on_pong = self._pongs.pop(payload, None)
            if on_pong is not None:
                on_pong()
            return
        self.output.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        self.on_ping()

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "settings of a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement has settings")
            return
        if self.heard - self._settings_since >= _SETTINGS_S:
            self._settings_since, self._settings = self.heard, 0
        self._settings += 1
        if self._settings > _MAX_SETTINGS:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, "settings change too often")
        window_bytes = -1
        for key, value in frames.read_settings(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW:
                    raise ConnectionFailed(ErrorCode.FLOW_CONTROL_ERROR, "windows of streams are too large")
                window_bytes = value
            elif key == frames.ENABLE_PUSH and value > 1:
                raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "pushing is neither on nor off")
            elif key == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_BYTES <= value < 2**24:
                    raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "frames have a wrong size")
                self.output.frame_bytes = min(value, MAX_FRAME_BYTES)
        self.output.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if window_bytes >= 0:
            # After the acknowledgement: clients hold what comes before it to the old window.
            self.output.resize_windows(window_bytes)

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "a reset has a wrong size")
        if not stream_id or stream_id > self._last_id:
            raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a reset of a stream that is not open")
        self._fresh.pop(stream_id, None)
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self.output.forget(stream)
            self._tell_reset(stream)

    def _end_stream(self, stream: Stream, code: ErrorCode) -> None:
        self.streams.pop(stream.stream_id, None)
        self.output.forget(stream)
        self.output.write(frames.reset(stream.stream_id, code))
        self._tell_reset(stream)

    @abstractmethod
    def _tell_reset(self, stream: Stream) -> None:
        """A stream was ended by the client or the connection."""


def _without_extras(flags: int, payload: bytes) -> bytes:
    """The payload of a frame without padding and priority.

    Raises:
        ConnectionFailed: If there is more padding than frame.
    """
    at = padding = 0
    if flags & frames.PADDED:
        padding = payload[0] if payload else 1
        at = 1
    if flags & frames.WITH_PRIORITY:
        at += 5
    if at + padding > len(payload):
        raise ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "a frame has more padding than content")
    return payload[at : len(payload) - padding]

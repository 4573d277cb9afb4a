"""Frames of HTTP/2, RFC 9113: numbers, layout, and what can be wrong with them."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
WITH_PRIORITY: Final = 32

# Settings that matter here.
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_BYTES: Final = 16_384
MAX_WINDOW: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1

HEAD: Final = struct.Struct(">HBBBI")  # the length is its first two numbers
_WORD: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")


class ErrorCode(IntEnum):
    """Why a stream or connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFailed(Exception):
    """The connection can't go on.

    Args:
        code: What the client is told.
        text: The same in words.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def count_alike(data: bytes | memoryview, at: int, length: int) -> int:
    """How many whole frames with the same head there are, one behind the other, the first of which begins at ``at``."""
    stride = HEAD_BYTES + length
    first = data[at : at + HEAD_BYTES]
    end = at + (len(data) - at) // stride * stride
    place = at
    while place < end and data[place : place + HEAD_BYTES] == first:
        place += stride
    return (place - at) // stride


def head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The first nine bytes of a frame."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return head(len(payload), kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def window_update(stream_id: int, increment: int) -> bytes:
    """Lets the peer send so many bytes more."""
    return frame(WINDOW_UPDATE, 0, stream_id, _WORD.pack(increment))


def reset(stream_id: int, code: ErrorCode) -> bytes:
    """Ends a stream at once."""
    return frame(RST_STREAM, 0, stream_id, _WORD.pack(code))


def goaway(last_stream_id: int, code: ErrorCode, text: str = "") -> bytes:
    """Announces that no streams after the last one are taken."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + text.encode())


def word(payload: bytes) -> int:
    """The 31 bits of a window increment or the 32 of an error code."""
    value: int = _WORD.unpack(payload)[0]
    return value


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The keys and values of a SETTINGS frame.

    Raises:
        ConnectionFailed: If it is cut short.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFailed(ErrorCode.FRAME_SIZE_ERROR, "settings are cut short")
    return [(key, value) for key, value in _SETTING.iter_unpack(payload)]

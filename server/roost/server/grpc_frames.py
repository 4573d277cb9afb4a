"""What gRPC sends over HTTP/2: response headers, the prefix of a message, and how calls end."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from roost.server.http2 import frames
from roost.server.http2.hpack import literal

PREFIX_BYTES: Final = 5

# Status 200 is in the table of header compression, as is the name of the content type.
_HEADERS: Final = b"\x88\x0f\x10\x10application/grpc"
_OK: Final = literal(b"grpc-status", b"0")
_END: Final = frames.END_HEADERS | frames.END_STREAM
# Printable ASCII but for the percent sign stays as it is in a status message.
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

# A response in one piece: headers and the head of their frame but for the number of the stream, the head of a DATA
# frame with gRPC's prefix behind it, and the trailers.
_HEADERS_HEAD: Final = frames.head(len(_HEADERS), frames.HEADERS, frames.END_HEADERS, 0)[:5]
_TRAILERS_HEAD: Final = frames.head(len(_OK), frames.HEADERS, _END, 0)[:5]
_BEFORE: Final = struct.Struct(f">5sI{len(_HEADERS)}sHBBBIBI")
_AFTER: Final = struct.Struct(f">5sI{len(_OK)}s")


def response_headers(stream_id: int) -> bytes:
    """The frame that begins a response."""
    return _HEADERS_HEAD + stream_id.to_bytes(4, "big") + _HEADERS


def ok_trailers(stream_id: int) -> bytes:
    """The frame that ends a response well."""
    return _TRAILERS_HEAD + stream_id.to_bytes(4, "big") + _OK


def prefix(size_bytes: int) -> bytes:
    """What goes before a message."""
    return b"\0" + size_bytes.to_bytes(4, "big")


def around_message(stream_id: int, size_bytes: int) -> tuple[bytes, bytes]:
    """What is before and after the one message of a response, in one frame, so that these are all frames of it."""
    length = size_bytes + PREFIX_BYTES
    first = _BEFORE.pack(
        _HEADERS_HEAD, stream_id, _HEADERS, length >> 8, length & 0xFF, frames.DATA, 0, stream_id, 0, size_bytes
    )
    return first, _AFTER.pack(_TRAILERS_HEAD, stream_id, _OK)


def status_trailers(
    stream_id: int, status: int, details: str, metadata: Iterable[tuple[str, str]], *, is_first: bool
) -> bytes:
    """The frame that ends a call with a status; ``is_first``: nothing of the response was sent before."""
    block = _HEADERS if is_first else b""
    block += literal(b"grpc-status", str(status).encode())
    if details:
        block += literal(b"grpc-message", quote(details, safe=_PLAIN).encode())
    for name, value in metadata:
        block += literal(name.encode(), value.encode())
    return frames.frame(frames.HEADERS, _END, stream_id, block)


def http_refusal(stream_id: int, http_status: int) -> bytes:
    """The frame that answers what is no gRPC call."""
    return frames.frame(frames.HEADERS, _END, stream_id, literal(b":status", str(http_status).encode()))

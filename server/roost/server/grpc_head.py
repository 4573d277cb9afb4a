"""What the headers of a gRPC call say, worked out once for all calls that have the same ones."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from roost.server.http2.hpack import Header

Metadata = tuple[tuple[str, str | bytes], ...]

_UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MAX_TIMEOUT_DIGITS: Final = 8
# Visible ASCII without capitals and colons, RFC 9113, section 8.2.1.
_NAME: Final = re.compile(rb"[!-9;-@\[-~]+")
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_THE_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
# Handlers do not get to see these, as in grpc.
_OF_THE_TRANSPORT: Final = frozenset(
    {"te", "content-type", "content-length", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "host"}
)


@dataclass(slots=True)
class CallHead:
    """The headers of a call.

    Attributes:
        path: The method, as ``/service/method``.
        metadata: What the client sent besides, in its order; those whose name ends with ``-bin`` are bytes.
        timeout_s: How long the client wants to wait; None: as long as it takes.
        encoding: How the client packs messages.
        http_status: That of the refusal of what is no gRPC call; 0 if it is one.
        is_malformed: Whether it is not even HTTP.
        is_too_large: Whether there was more metadata than allowed, so that nothing else is known.
        extra: What who is behind the transport makes of them.
    """

    path: str = ""
    metadata: Metadata = ()
    timeout_s: float | None = None
    encoding: str = "identity"
    http_status: int = 0
    is_malformed: bool = False
    is_too_large: bool = False
    extra: Any = None


def read_head(headers: Sequence[Header] | None) -> CallHead:
    """Reads the headers of a call; None are ones that were too large."""
    if headers is None:
        return CallHead(is_too_large=True)
    pseudo, others = _separate(headers)
    if pseudo is None or others is None:
        return CallHead(is_malformed=True)
    method, path = pseudo.get(b":method"), pseudo.get(b":path")
    if not method or not path or b":scheme" not in pseudo:
        return CallHead(is_malformed=True)
    head = CallHead(path=_text(path))
    values = {name: _text(value) for name, value in others if not name.endswith("-bin")}
    if method != b"POST":
        head.http_status = 405
    elif not _is_grpc(values.get("content-type", "")):
        head.http_status = 415
    head.encoding = values.get("grpc-encoding", "identity")
    timeout = values.get("grpc-timeout")
    head.timeout_s = None if timeout is None else read_timeout(timeout)
    metadata = ((name, _value(name, value)) for name, value in others if name not in _OF_THE_TRANSPORT)
    head.metadata = tuple((name, value) for name, value in metadata if value is not None)
    return head


def read_timeout(text: str) -> float | None:
    """The seconds of a ``grpc-timeout``; None, as if there were none, if it makes no sense."""
    digits, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not digits.isascii() or not digits.isdigit() or len(digits) > _MAX_TIMEOUT_DIGITS:
        return None
    return int(digits) * _UNITS_S[unit]


def find(metadata: Metadata, name: str) -> str | None:
    """The first text of a name; None if there is none."""
    for key, value in metadata:
        if key == name and isinstance(value, str):
            return value
    return None


def _separate(headers: Sequence[Header]) -> tuple[Mapping[bytes, bytes] | None, list[tuple[str, bytes]] | None]:
    """Pseudo headers and the others; None if they are not as HTTP/2 wants them."""
    pseudo: dict[bytes, bytes] = {}
    others: list[tuple[str, bytes]] = []
    for name, value in headers:
        if name.startswith(b":"):
            if others or name in pseudo or name not in _PSEUDO:
                return None, None
            pseudo[name] = value
        elif not _NAME.fullmatch(name) or name in _OF_THE_CONNECTION or not _is_plain(value):
            return None, None
        else:
            others.append((_text(name), value))
    return pseudo, others


def _is_plain(value: bytes) -> bool:
    return b"\0" not in value and b"\n" not in value and b"\r" not in value


def _is_grpc(content_type: str) -> bool:
    return content_type == "application/grpc" or content_type.startswith(("application/grpc+", "application/grpc;"))


def _value(name: str, value: bytes) -> str | bytes | None:
    if not name.endswith("-bin"):
        return _text(value)
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        return None


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")

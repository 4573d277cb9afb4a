"""Heads of requests that the parser has taken before, by their bytes.

The parser alone decides what a head means. What it makes of one depends on nothing but the bytes, so the same bytes
need not be parsed again: the memo holds heads of plain inference requests that it has accepted. What changes from
request to request is cut out first: the name of the model, of which there may be thousands, with its version, and the
values of some headers, whose names are left in place.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import hdrs
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from roost.server.rest.codec import HEADER_LENGTH
from roost.server.rest.codec_json import LARGE_JSON_BYTES
from roost.server.rest.compression import preferred_coding
from roost.server.rest.lean_window import Window
from roost.server.rest.paths import normal_version

_MAX_HEADS = 1024
_MAX_KINDS = 4096
_MAX_HEAD_BYTES = 2048
# No character of a name or a version means anything to the parser.
_START = re.compile(
    rb"POST (/v2/models/([A-Za-z0-9][A-Za-z0-9._-]*)(?:/versions/([0-9]{1,18}))?/infer) HTTP/1\.1(?=\r\n)"
)
_VALUES = re.compile(
    rb"\r\n(?:(Content-Length|Inference-Header-Content-Length): ([0-9]{1,18})"
    rb"|(Traceparent): ([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}))(?=\r\n)",
    re.IGNORECASE,
)
# No head that the parser accepts has a NUL.
_CUT_OUT = rb"\r\n\1\3:\0"
_LENGTH = hdrs.CONTENT_LENGTH.lower()
_JSON_LENGTH = HEADER_LENGTH.lower()
_TRACEPARENT = "traceparent"
# With one of these a request needs more than the lean path does.
_NOT_PLAIN = (hdrs.TRANSFER_ENCODING, hdrs.CONTENT_ENCODING, hdrs.EXPECT, hdrs.UPGRADE)

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, eq=False)
class Headers:
    """What all heads say that differ in nothing but what is cut out.

    Attributes:
        coding: The content coding that is wanted for answers.
        names: The headers whose values were cut out, in order and in lower case.
    """

    coding: str
    names: tuple[str, ...]


class Kind:
    """What all requests have in common whose heads differ in nothing but the values of headers.

    Attributes:
        model: From the path.
        version: From the path, empty if it is not there.
        coding: The content coding that they want for their answers.
        allowance_s: How long requests of this kind may take, as far as is known.
        window: Those of them that are under way.
    """

    __slots__ = ("allowance_s", "coding", "model", "version", "window")

    def __init__(self, model: str, version: str, coding: str, allowance_s: float) -> None:
        self.model = model
        self.version = version
        self.coding = coding
        self.allowance_s = allowance_s
        self.window = Window()


class Head:
    """What the head of one request says.

    Attributes:
        kind: Of which kind it is.
        body_bytes: How long the body is.
        json_bytes: How much of it is JSON.
        traceparent: The trace context, empty if there is none.
    """

    __slots__ = ("body_bytes", "json_bytes", "kind", "traceparent")

    def __init__(self, kind: Kind, body_bytes: int, json_bytes: int, traceparent: str) -> None:
        self.kind = kind
        self.body_bytes = body_bytes
        self.json_bytes = json_bytes
        self.traceparent = traceparent


class HeadMemo:
    """The heads that are known; so many at most, then the oldest make room.

    Args:
        max_body_bytes: The largest body; heads that announce more are unknown.
        timeout_s: How long a request may take at most.
        left_alone: Names of headers that make a request one of those that are not plain, in any case; None: no more.
    """

    def __init__(self, max_body_bytes: int, timeout_s: float, left_alone: re.Pattern[str] | None) -> None:
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._left_alone = left_alone
        self._heads: OrderedDict[bytes, Head] = OrderedDict()
        self._headers: OrderedDict[bytes, Headers] = OrderedDict()
        self._kinds: OrderedDict[tuple[bytes, Headers], Kind] = OrderedDict()  # by path

    def __len__(self) -> int:
        return len(self._heads) + len(self._headers) + len(self._kinds)

    def find(self, head: bytes) -> Head | None:
        """What a head says; None if it is not known to be plain.

        Args:
            head: All bytes of it, with the empty line at its end.
        """
        return self._heads.get(head) or self._read(head)

    def learn(self, head: bytes, message: RawRequestMessage) -> None:
        """Remembers a head, if it is plain.

        Args:
            head: All bytes of it.
            message: What the parser made of exactly these bytes.
        """
        start = _START.match(head)
        if start is None or len(head) > _MAX_HEAD_BYTES or not self._is_plain(message):
            return
        names, values = _values(head)
        if message.path.encode() != start[1] or values.get(_LENGTH) != message.headers[hdrs.CONTENT_LENGTH]:
            return
        for name in (_JSON_LENGTH, _TRACEPARENT):
            if message.headers.getall(name, []) != ([values[name]] if name in values else []):
                return
        coding = preferred_coding(message.headers.get(hdrs.ACCEPT_ENCODING, ""))
        _keep(self._headers, _VALUES.sub(_CUT_OUT, head[start.end() :]), Headers(coding, names), _MAX_HEADS)

    def _is_plain(self, message: RawRequestMessage) -> bool:
        headers = message.headers
        if (
            message.version != HttpVersion11
            or message.should_close
            or message.chunked
            or message.upgrade
            or message.compression
            or hdrs.CONTENT_LENGTH not in headers
            or any(name in headers for name in _NOT_PLAIN)
        ):
            return False
        return self._left_alone is None or not any(map(self._left_alone.search, headers))

    def _read(self, head: bytes) -> Head | None:
        """What a head says that is of a known kind."""
        start = _START.match(head)
        if start is None or len(head) > _MAX_HEAD_BYTES:
            return None
        headers = self._headers.get(_VALUES.sub(_CUT_OUT, head[start.end() :]))
        if headers is None:
            return None
        names, values = _values(head)
        body_bytes = int(values.get(_LENGTH, -1))
        json_bytes = int(values.get(_JSON_LENGTH, body_bytes))
        if (
            names != headers.names
            or not 0 < json_bytes <= body_bytes <= self._max_body_bytes
            or json_bytes > LARGE_JSON_BYTES
        ):
            return None
        kind = self._kinds.get((start[1], headers)) or self._new_kind(start, headers)
        found = Head(kind, body_bytes, json_bytes, values.get(_TRACEPARENT, ""))
        if not found.traceparent:
            _keep(self._heads, head, found, _MAX_HEADS)
        return found

    def _new_kind(self, start: re.Match[bytes], headers: Headers) -> Kind:
        version = normal_version((start[3] or b"").decode())
        kind = Kind(start[2].decode(), version, headers.coding, self._timeout_s)
        _keep(self._kinds, (start[1], headers), kind, _MAX_KINDS)
        return kind


def _keep(memo: OrderedDict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Adds an entry in place of the oldest one, if there are as many as may be."""
    if len(memo) >= most and key not in memo:
        memo.popitem(last=False)
    memo[key] = value


def _values(head: bytes) -> tuple[tuple[str, ...], dict[str, str]]:
    """The headers that are cut out: their names in order, and their values; none is there twice in what is plain."""
    pairs = [
        ((length or trace).decode().lower(), (number or context).decode())
        for length, number, trace, context in _VALUES.findall(head)
    ]
    return tuple(name for name, _ in pairs), dict(pairs)

"""Answers of the lean path as bytes: what aiohttp would send, header for header."""

from __future__ import annotations

import time
from typing import TypeAlias

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from roost.core.tensors import Buffer
from roost.server.rest.codec import HEADER_LENGTH
from roost.server.rest.compression import IDENTITY

_OK = "HTTP/1.1 200 OK\r\nContent-Type: "
_CODED = {
    coding: f"\r\nContent-Encoding: {coding}" if coding != IDENTITY else "" for coding in (IDENTITY, "gzip", "deflate")
}
_JSON = {coding: f"{_OK}application/json{header}\r\nContent-Length: ".encode() for coding, header in _CODED.items()}
_BINARY = {
    coding: f"{_OK}application/octet-stream\r\n{HEADER_LENGTH}: %d{header}\r\nContent-Length: %d%b".encode()
    for coding, header in _CODED.items()
}
Prepared: TypeAlias = tuple[bytes, bytes]

_CLOSE = b"Connection: close\r\n\r\n"


class HeadWriter:
    """Writes the heads of answers; their ends, which have the time in them, once a second."""

    def __init__(self) -> None:
        self._until = 0.0
        self._ends = (b"", b"")

    def json(self, body: Buffer, coding: str, is_last: bool) -> bytes:
        """A successful answer in JSON.

        Args:
            body: As it is sent.
            coding: Its content coding.
            is_last: Whether the connection ends with it.
        """
        return b"".join((_JSON[coding], b"%d" % len(body), self._end(is_last), body))

    def binary(self, json_bytes: int, size_bytes: int, coding: str, is_last: bool) -> bytes:
        """The head of a successful answer with binary tensors behind ``json_bytes`` of JSON."""
        return _BINARY[coding] % (json_bytes, size_bytes, self._end(is_last))

    def whole(self, response: web.Response, is_last: bool) -> bytes:
        """All of an answer that was made for aiohttp."""
        return self.prepared(prepare(response), is_last)

    def prepared(self, answer: Prepared, is_last: bool) -> bytes:
        """All of an answer that is always the same."""
        return answer[0] + self._end(is_last) + answer[1]

    def _end(self, is_last: bool) -> bytes:
        now = time.time()
        if now >= self._until or now < self._until - 1:
            end = f"\r\nDate: {rfc822_formatted_time()}\r\nServer: {SERVER_SOFTWARE}\r\n".encode()
            self._ends = end + b"\r\n", end + _CLOSE
            self._until = int(now) + 1
        return self._ends[is_last]


def prepare(response: web.Response) -> Prepared:
    """An answer that was made for aiohttp, up to what is the same in all answers, and its body."""
    body = response.body if isinstance(response.body, bytes) else b""
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode(), body

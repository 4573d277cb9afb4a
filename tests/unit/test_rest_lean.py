"""What the lean path knows without a connection: heads, where the parser is, and how far the loop is behind."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from roost.server.rest.codec_json import LARGE_JSON_BYTES as MAX_JSON
from roost.server.rest.lean_body import ArrivingBody
from roost.server.rest.lean_framing import Framing
from roost.server.rest.lean_heads import Head, HeadMemo, Kind
from roost.server.rest.lean_turn import Turn

MAX_BODY = 1 << 20
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER_TRACE = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203332-00"


def head(*headers: str, path: str = "/v2/models/simple/infer", line: str = "POST {} HTTP/1.1") -> bytes:
    return "\r\n".join([line.format(path), "Host: x", *headers, "", ""]).encode("utf-8", "surrogateescape")


PLAIN = head("Content-Length: 10")


class Parsed:
    """A parser of a connection, its framing, and what they have learned."""

    def __init__(self, memo: HeadMemo | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.memo = HeadMemo(MAX_BODY, 60.0, None) if memo is None else memo
        self.framing = Framing(self.memo)
        self._protocol = BaseProtocol(loop)
        self._parser = HttpRequestParser(self._protocol, loop, 1 << 20, max_field_size=8190, auto_decompress=False)
        self._protocol._parser = self._parser

    def feed(self, data: bytes) -> int:
        """Feeds parser and framing; how many messages began."""
        messages, _, _ = self._parser.feed_data(data)
        self.framing.fed(data, [message for message, _ in messages])
        return len(messages)


def learned(*heads: bytes, **options: Any) -> HeadMemo:
    memo = HeadMemo(MAX_BODY, 60.0, **{"left_alone": None, **options})
    for data in heads:
        Parsed(memo).feed(data)
    return memo


def said(found: Head | None) -> tuple[str, str, int, int, str] | None:
    if found is None:
        return None
    return found.kind.model, found.kind.version, found.body_bytes, found.json_bytes, found.traceparent


JSON_LENGTH = "Inference-Header-Content-Length"
KNOWN = {
    "the same": (PLAIN, PLAIN, ("simple", "", 10, 10, "")),
    "another length": (PLAIN, head("Content-Length: 987"), ("simple", "", 987, 987, "")),
    "the longest JSON": (PLAIN, head(f"Content-Length: {MAX_JSON}"), ("simple", "", MAX_JSON, MAX_JSON, "")),
    "a version": (
        head("Content-Length: 10", path="/v2/models/a.b-c_1/versions/007/infer"),
        head("Content-Length: 11", path="/v2/models/a.b-c_1/versions/007/infer"),
        ("a.b-c_1", "7", 11, 11, ""),
    ),
    "another model": (PLAIN, PLAIN.replace(b"simple", b"Other.1"), ("Other.1", "", 10, 10, "")),
    "another version": (
        PLAIN,
        head("Content-Length: 10", path="/v2/models/simple/versions/012/infer"),
        ("simple", "12", 10, 10, ""),
    ),
    "binary": (
        head(f"{JSON_LENGTH}: 5", "Content-Length: 10"),
        head(f"{JSON_LENGTH}: 6", f"Content-Length: {MAX_BODY}"),
        ("simple", "", MAX_BODY, 6, ""),
    ),
    "a trace": (
        head("content-length: 10", f"TraceParent: {TRACE}"),
        head("content-length: 9", f"TraceParent: {OTHER_TRACE}"),
        ("simple", "", 9, 9, OTHER_TRACE),
    ),
    "keep-alive and identity": (
        head("Connection: keep-alive", "Accept-Encoding: identity", "Content-Length: 10"),
        head("Connection: keep-alive", "Accept-Encoding: identity", "Content-Length: 10"),
        ("simple", "", 10, 10, ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
async def test_known_heads(case: str) -> None:
    first, second, expected = KNOWN[case]
    memo = learned(first)
    # Twice: the second time by all of its bytes.
    assert said(memo.find(second)) == expected
    assert said(memo.find(second)) == expected


NEVER_LEARNED = {
    "HTTP/1.0": head("Content-Length: 10", line="POST {} HTTP/1.0"),
    "HTTP/1.0 kept alive": head("Connection: keep-alive", "Content-Length: 10", line="POST {} HTTP/1.0"),
    "the last request": head("Connection: close", "Content-Length: 10"),
    "chunks": head("Transfer-Encoding: chunked"),
    "no length": head(),
    "a content coding": head("Content-Encoding: gzip", "Content-Length: 10"),
    "a client that waits": head("Expect: 100-continue", "Content-Length: 10"),
    "an upgrade": head("Connection: upgrade", "Upgrade: websocket", "Content-Length: 10"),
    "an upgrade without a connection": head("Upgrade: h2c", "Content-Length: 10"),
    "another method": head("Content-Length: 10", line="PUT {} HTTP/1.1"),
    "another call": head("Content-Length: 10", path="/v2/models/simple/generate"),
    "a query": head("Content-Length: 10", path="/v2/models/simple/infer?x"),
    "an escape": head("Content-Length: 10", path="/v2/models/s%69mple/infer"),
    "a version beyond all": head("Content-Length: 10", path=f"/v2/models/simple/versions/{'9' * 19}/infer"),
    "a named version": head("Content-Length: 10", path="/v2/models/simple/versions/v1/infer"),
    "an absolute target": head("Content-Length: 10", path="http://x/v2/models/simple/infer"),
    "the length with a tab": head("Content-Length:\t10"),
    "the length without a space": head("Content-Length:10"),
    "the length with a space behind": head("Content-Length: 10 "),
    "the JSON's length without a space": head("Content-Length: 10", f"{JSON_LENGTH}:5"),
    "the JSON's length twice": head("Content-Length: 10", f"{JSON_LENGTH}: 5", f"{JSON_LENGTH}: 5"),
    "the JSON's length a word": head("Content-Length: 10", f"{JSON_LENGTH}: x"),
    "a trace of another form": head("Content-Length: 10", "traceparent: 1"),
    "two traces": head("Content-Length: 10", f"traceparent: {TRACE}", f"traceparent: {TRACE}"),
    "a long head": head("Content-Length: 10", "X: " + "a" * 4000),
}  # fmt: skip


@pytest.mark.parametrize("case", NEVER_LEARNED)
async def test_heads_that_are_not_plain(case: str) -> None:
    data = NEVER_LEARNED[case]
    assert len(learned(data)) == 0
    assert learned(PLAIN).find(data) is None


DIFFERENT = {
    "the length twice": head("Content-Length: 10", "Content-Length: 10"),
    "the length with a sign": head("Content-Length: +10"),
    "no length": head("Content-Length: "),
    "a length over the limit": head(f"Content-Length: {MAX_BODY + 1}"),
    "a length of 19 digits": head("Content-Length: " + "0" * 17 + "10"),
    "JSON that takes long": head(f"Content-Length: {MAX_JSON + 1}"),
    "no body": head("Content-Length: 0"),
    "two lengths in one": head("Content-Length: 10, 10"),
    "a NUL for the length": PLAIN.replace(b"10", b"\0").replace(b": \0", b":\0"),
    "a NUL": PLAIN.replace(b"x\r", b"\0\r"),
    "chunks besides": head("Content-Length: 10", "Transfer-Encoding: chunked"),
    "chunks before": head("Transfer-Encoding: chunked", "Content-Length: 10"),
    "a folded header": PLAIN.replace(b"Host: x\r\n", b"Host: x\r\n y\r\n"),
    "bare line feeds": PLAIN.replace(b"\r\n", b"\n"),
    "a bare line feed": PLAIN.replace(b"x\r\n", b"x\n"),
    "a bare carriage return": PLAIN.replace(b"x\r\n", b"x\rX: y\r\n"),
    "a space before the colon": PLAIN.replace(b"Length:", b"Length :"),
    "an empty line before": b"\r\n" + PLAIN,
    "a tab in the request line": PLAIN.replace(b"POST ", b"POST\t"),
    "another call": head("Content-Length: 10", path="/v2/models/simple/generate"),
    "a name that is none": PLAIN.replace(b"simple", b".simple"),
    "an escape": PLAIN.replace(b"simple", b"s%69mple"),
    "a named version": head("Content-Length: 10", path="/v2/models/simple/versions/v1/infer"),
    "a header more": head("X: y", "Content-Length: 10"),
    "a byte more": PLAIN + b"x",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
async def test_heads_that_differ_from_a_known_one(case: str) -> None:
    assert learned(PLAIN).find(DIFFERENT[case]) is None


async def test_every_byte_counts() -> None:
    """A head with any one byte changed is unknown, but for the digits of lengths."""
    known = head(f"{JSON_LENGTH}: 25", f"traceparent: {TRACE}", "Content-Length: 30")
    memo = learned(known)
    for index in range(len(known)):
        for byte in b"\0\r\n :x1Z\xff":
            changed = known[:index] + bytes([byte]) + known[index + 1 :]
            found = memo.find(changed)
            if changed == known or found is None:
                continue
            parsed = Parsed()
            assert parsed.feed(changed) == 1
            assert said(parsed.memo.find(changed)) == said(found), changed


async def test_left_alone() -> None:
    data = head("X-Tenant: 5", "Content-Length: 10")
    assert said(learned(data).find(data)) is not None
    assert learned(data, left_alone=re.compile("^x-tenant", re.IGNORECASE)).find(data) is None


async def test_memo_is_bounded() -> None:
    parsed = Parsed()
    memo = parsed.memo
    for number in range(10_000):
        data = head(f"X-Request-Id: {number}", "Content-Length: 1")
        parsed.feed(data + b"x")
        assert memo.find(data) is not None
    for length in range(1, 2_001):
        assert memo.find(head("X-Request-Id: 9999", f"Content-Length: {length}")) is not None
    for number in range(10_000):
        found = memo.find(head("X-Request-Id: 9999", "Content-Length: 1", path=f"/v2/models/m{number}/infer"))
        assert found is not None
        assert found.kind.model == f"m{number}"
    assert len(memo) <= 1024 + 1024 + 4096


async def test_requests_to_a_model_have_a_window_whatever_their_lengths() -> None:
    memo = learned(PLAIN)
    kinds = {
        found.kind
        for length in range(1, 20)
        for path in ("/v2/models/a/infer", "/v2/models/b/infer")
        if (found := memo.find(head(f"Content-Length: {length}", path=path)))
    }
    assert sorted(kind.model for kind in kinds) == ["a", "b"]


BODY = b"0123456789"
GET = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = head("Transfer-Encoding: chunked")
FED: dict[str, tuple[list[bytes], bool]] = {
    "nothing": ([], True),
    "a request": ([PLAIN + BODY], True),
    "a request and half of another": ([PLAIN + BODY + PLAIN[:20]], False),
    "both of them": ([PLAIN + BODY + PLAIN[:20], PLAIN[20:] + BODY], True),
    "head and body": ([PLAIN, BODY], True),
    "only the head": ([PLAIN], False),
    "half of the body": ([PLAIN + BODY[:5]], False),
    "byte by byte": ([bytes([byte]) for byte in PLAIN + BODY + GET], True),
    "all but a byte": ([bytes([byte]) for byte in PLAIN + BODY + GET[:-1]], False),
    "without bodies": ([GET, GET + GET], True),
    "a body and what follows": ([PLAIN + BODY[:3], BODY[3:] + GET + PLAIN + BODY], True),
    "chunks": ([CHUNKED + b"0\r\n\r\n"], False),
    "after chunks": ([CHUNKED + b"0\r\n\r\n", PLAIN + BODY], False),
    "empty lines": ([b"\r\n\r\n" + GET], False),
    "without data": ([PLAIN + BODY, b""], True),
}


@pytest.mark.parametrize("case", FED)
async def test_where_the_parser_is(case: str) -> None:
    pieces, between = FED[case]
    parsed = Parsed()
    for piece in pieces:
        parsed.feed(piece)
    assert parsed.framing.between is between


async def test_malformed_request() -> None:
    parsed = Parsed()
    with pytest.raises(HttpProcessingError):
        parsed.feed(b"no HTTP\r\n\r\n")
    # aiohttp puts its error in the place of a message.
    parsed.framing.fed(b"no HTTP\r\n\r\n", ["error"])
    assert not parsed.framing.between


async def test_turns() -> None:
    loop, turn = asyncio.get_running_loop(), Turn()
    assert not turn.is_late(loop, 60.0)
    began = turn.began
    assert not turn.is_late(loop, 60.0)
    assert turn.began == began
    assert turn.is_late(loop, 0.0)
    await asyncio.sleep(0)
    assert not turn.is_late(loop, 60.0)
    assert turn.began > began


def test_bodies_in_pieces() -> None:
    known = Head(Kind("m", "", "identity", 60.0), 10, 10, "")
    for pieces in ([BODY], [BODY[:3], BODY[3:]], [b"", BODY[:9], BODY[9:]]):
        body = ArrivingBody(b"", known, 0.0)
        for piece in pieces:
            body.add(memoryview(piece))
        assert body.missing_bytes == 0
        assert bytes(body.take()) == BODY
        # Whoever still has it, such as a transport, does not keep what has come.
        assert bytes(body.take()) == b""

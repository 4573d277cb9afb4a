"""The server's own HTTP/2, without sockets: header compression, rules of frames, windows, and what bad clients send."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hpack import Encoder
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st
from roost.core.requests import InferRequest, InferResponse
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_head import read_head, read_timeout
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_native_connection import GrpcConnection
from roost.server.http2 import frames, huffman
from roost.server.http2.frames import ErrorCode, frame
from roost.server.http2.hpack import Header, HeaderDecoder, literal
from roost.server.http2.output import Output
from roost.server.http2.streams import Stream

from tests.unit.grpc_fakes import MODEL, FakeDataPlane, echo
from tests.unit.http2_fakes import GRPC, INFER_PATH, REQUEST_HEADERS, Client, FakeTransport, data, receive

# -- header compression ---------------------------------------------------------------------------------------------

names = st.sampled_from([b":path", b"te", b"x-a", b"x-b", b"user-agent"])
header_lists = st.lists(st.tuples(names, st.binary(max_size=200)), max_size=6)


@given(st.lists(st.tuples(header_lists, st.booleans(), st.sampled_from([None, 0, 100, 4096])), max_size=8))
def test_what_another_library_packs_is_unpacked(blocks: list[tuple[list[Header], bool, int | None]]) -> None:
    encoder, decoder = Encoder(), HeaderDecoder(10**6)
    for headers, is_packed, table_bytes in blocks:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        assert decoder.decode(encoder.encode(headers, huffman=is_packed)) == headers


@given(st.binary(max_size=60))
def test_a_damaged_block_is_a_value_error(block: bytes) -> None:
    try:
        HeaderDecoder(1000).decode(block)
        huffman.decode(block)
    except ValueError:
        pass


def test_the_static_table_is_the_standards() -> None:
    block = b"".join(bytes((0x80 | index,)) for index in range(1, 62))
    assert HeaderDecoder(10**6).decode(block) == list(HeaderTable.STATIC_TABLE)


def test_literals_are_read_by_another_library() -> None:
    from hpack import Decoder

    long = b"v" * 3000
    assert list(Decoder().decode(literal(b"name", long), raw=True)) == [(b"name", long)]


def test_a_list_over_the_limit_costs_no_memory_and_keeps_the_table_right() -> None:
    encoder, decoder = Encoder(), HeaderDecoder(100)
    assert decoder.decode(encoder.encode([(b"x-a", b"1"), (b"x-b", b"v" * 200)])) is None
    assert decoder.decode(encoder.encode([(b"x-a", b"1")])) == [(b"x-a", b"1")]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5S", 5.0), ("1500m", 1.5), ("2H", 7200.0), ("0n", 0.0), ("S", None), ("-1S", None), ("123456789S", None)],
)
def test_timeouts(text: str, seconds: float | None) -> None:
    assert read_timeout(text) == seconds


@pytest.mark.parametrize(
    "headers",
    [
        [(b":method", b"POST"), (b":path", b"/")],  # no scheme
        [(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http"), (b"Upper", b"1")],
        [(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http"), (b"te", b"trailers"), (b":authority", b"x")],
        [(b":method", b"POST"), (b":path", b"/"), (b":path", b"/"), (b":scheme", b"http")],
        [(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http"), (b"connection", b"close")],
        [(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http"), (b"x", b"a\r\nb")],
        [(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http"), (b"a b", b"1")],
        [(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http"), (b"a:b", b"1")],
        [],
    ],
)
def test_malformed_headers(headers: list[Header]) -> None:
    assert read_head(headers).is_malformed


# -- windows --------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 300_000), min_size=1, max_size=4),
    frame_bytes=st.sampled_from([16_384, 65_535]),
    grants=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 120_000)), max_size=60),
)
def test_no_more_is_sent_than_windows_allow_and_all_of_it_at_last(
    sizes: list[int], frame_bytes: int, grants: list[tuple[int, int]]
) -> None:
    sent = bytearray()
    output = Output(sent.extend, lambda pieces: sent.extend(b"".join(pieces)), lambda _: None)
    output.frame_bytes = frame_bytes
    streams = [Stream(2 * index + 1) for index in range(len(sizes))]
    done: list[int] = []
    for stream, size in zip(streams, sizes, strict=True):
        ended: Callable[[], None] = lambda stream_id=stream.stream_id: done.append(stream_id)  # type: ignore[misc] # noqa: E731
        end = frame(frames.HEADERS, frames.END_STREAM, stream.stream_id)
        output.send(stream, b"", [bytes((stream.stream_id,)) * size], end, ended)
    allowed = dict.fromkeys([0, *(stream.stream_id for stream in streams)], frames.DEFAULT_WINDOW)

    def check() -> None:
        output.flush()
        data_bytes = dict.fromkeys(allowed, 0)
        at = 0
        while at < len(sent):
            high, low, kind, _, stream_id = frames.HEAD.unpack_from(sent, at)
            at += frames.HEAD_BYTES
            length = high << 8 | low
            assert length <= frame_bytes
            if kind == frames.DATA:
                assert set(sent[at : at + length]) <= {stream_id}
                data_bytes[stream_id] += length
                data_bytes[0] += length
            at += length
        assert all(data_bytes[key] <= allowed[key] for key in allowed)
        assert [size for size, stream in zip(sizes, streams, strict=True) if stream.stream_id in done] == [
            data_bytes[stream_id] for stream_id in sorted(done)
        ]

    check()
    for index, increment in grants:
        if index == 0:
            output.grant_all(increment)
            allowed[0] += increment
        elif index <= len(streams):
            output.grant(streams[index - 1], increment)
            allowed[streams[index - 1].stream_id] += increment
        check()
    output.grant_all(2**30)
    allowed[0] += 2**30
    for stream in streams:
        output.grant(stream, 2**30)
        allowed[stream.stream_id] += 2**30
    check()
    assert sorted(done) == [stream.stream_id for stream in streams]
    assert output.is_empty


# -- calls ----------------------------------------------------------------------------------------------------------


def infer(request_id: str = "", data: bytes = b"ab") -> bytes:
    message = pb.ModelInferRequest(model_name=MODEL, id=request_id, raw_input_contents=[data])
    message.inputs.add(name="IN", datatype="UINT8", shape=[len(data)])
    return message.SerializeToString()


def response_of(body: bytes) -> pb.ModelInferResponse:
    assert int.from_bytes(body[1:5], "big") == len(body) - 5
    return pb.ModelInferResponse.FromString(body[5:])


async def test_a_whole_request_takes_the_lean_way_however_its_chunk_is_ordered() -> None:
    plane = FakeDataPlane()
    client = Client(plane).greet()
    heads = [client.headers(stream_id) for stream_id in (1, 3)]
    client.send(heads[0] + heads[1] + data(3, infer("b")) + frames.window_update(1, 5) + data(1, infer("a")))
    client.send(client.call(5, infer("c"), ("x-new", "1"), ("traceparent", "00-11")))
    answers = await client.answers(3)
    assert {stream_id: response_of(body).id for stream_id, (_, body) in answers.items()} == {1: "a", 3: "b", 5: "c"}
    assert {fields["grpc-status"] for fields, _ in answers.values()} == {"0"}
    assert plane.begun == 3
    assert [request.context.traceparent for request in plane.requests] == ["", "", "00-11"]
    assert plane.requests[0].context.caller == "ipv4:127.0.0.1:1234"
    assert not client.connection.streams
    assert plane.bodies.used_bytes == 0


async def test_what_is_answered_in_one_turn_is_one_write_for_each_connection() -> None:
    plane = FakeDataPlane()
    release = asyncio.Event()

    async def hold(request: InferRequest) -> InferResponse:
        await release.wait()
        return await echo(request)

    plane.on_infer = hold
    client = Client(plane).greet()
    client.send(b"".join(client.call(stream_id, infer(str(stream_id))) for stream_id in (1, 3, 5, 7)))
    while len(plane.requests) < 4:
        plane.arrived.clear()
        await plane.arrived.wait()
    client.transport.writes = 0
    client.transport.written.clear()
    release.set()
    await client.transport.written.wait()
    assert client.transport.writes == 1
    answers = await client.answers(4)
    assert [response_of(answers[stream_id][1]).id for stream_id in (1, 3, 5, 7)] == ["1", "3", "5", "7"]


@pytest.mark.parametrize("cut", [1, 9, 20, 100])
async def test_chunks_may_be_cut_anywhere(cut: int) -> None:
    plane = FakeDataPlane()
    client = Client(plane)
    whole = frames.PREFACE + frame(frames.SETTINGS, 0, 0) + client.call(1, infer("a")) + client.call(3, infer("b"))
    for at in range(0, len(whole), cut):
        client.send(whole[at : at + cut])
    client.frames()[:0]
    answers = await client.answers(2)
    assert [response_of(answers[stream_id][1]).id for stream_id in (1, 3)] == ["a", "b"]


async def test_what_begin_does_not_take_is_an_ordinary_call() -> None:
    plane = FakeDataPlane()
    plane.may_begin = False
    client = Client(plane).greet()
    client.send(client.call(1, infer("a")))
    answers = await client.answers()
    assert response_of(answers[1][1]).id == "a"
    assert plane.begun == 0
    await plane.bodies.is_empty()


async def test_padding_priority_and_continuation_mean_nothing() -> None:
    plane = FakeDataPlane()
    client = Client(plane).greet()
    block = client.encoder.encode([*REQUEST_HEADERS, GRPC])
    first = bytes((3,)) + bytes(5) + block[:10] + bytes(3)
    message = infer("a")
    body = b"\0" + len(message).to_bytes(4, "big") + message
    client.send(
        frame(frames.HEADERS, frames.PADDED | frames.WITH_PRIORITY, 1, first)
        + frame(frames.CONTINUATION, 0, 1, block[10:12])
        + frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[12:])
        + frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, bytes((4,)) + body + bytes(4))
    )
    answers = await client.answers()
    assert response_of(answers[1][1]).id == "a"


async def test_a_reset_or_a_lost_connection_cancels_the_request() -> None:
    for is_lost in (False, True):
        plane = FakeDataPlane()
        plane.on_infer = for_ever
        client = Client(plane).greet()
        client.send(client.call(1, infer()))
        await plane.arrived.wait()
        assert plane.bodies.used_bytes > 0
        if is_lost:
            client.connection.connection_lost(None)
        else:
            client.send(frames.reset(1, ErrorCode.CANCEL))
        await plane.cancelled.wait()
        assert plane.bodies.used_bytes == 0
        assert not client.connection.streams


async def for_ever(_: InferRequest) -> InferResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def test_more_streams_than_allowed_are_refused_and_the_others_live() -> None:
    plane = FakeDataPlane()
    plane.on_infer = for_ever
    client = Client(plane, GrpcLimits(max_concurrent_streams=2)).greet()
    client.send(b"".join(client.call(stream_id, infer()) for stream_id in (1, 3, 5)))
    assert client.frames() == [(frames.RST_STREAM, 0, 5, struct.pack(">I", ErrorCode.REFUSED_STREAM))]
    assert set(client.connection.streams) == {1, 3}


@pytest.mark.parametrize(
    ("more", "path", "status", "words"),
    [
        ((), "/no/Such", "12", "Method not found!"),
        ((("x", "v" * 20_000),), INFER_PATH, "8", "metadata size"),
        ((("grpc-timeout", "5S"), ("content-type", "text/plain")), INFER_PATH, None, ""),
    ],
)
async def test_what_is_no_call_of_ours(
    more: tuple[tuple[str, str], ...], path: str, status: str | None, words: str
) -> None:
    client = Client(FakeDataPlane()).greet()
    client.send(client.headers(1, *more, path=path) + data(1, infer()))
    fields, _ = (await client.answers())[1]
    assert fields.get("grpc-status") == status
    assert words in fields.get("grpc-message", "")
    assert fields[":status"] == ("415" if status is None else "200")
    client.send(client.call(3, infer()))
    assert (await client.answers())[3][0]["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("message", "more", "status"),
    [
        (b"\x01" + bytes(4), (), "12"),  # packed, without saying how
        (b"\x01" + bytes(4), (("grpc-encoding", "snappy"),), "12"),
        (b"\x02" + bytes(4), (), "13"),
        (b"\0\0\0", (), "13"),  # cut short
        (b"\0\0\0\0\x09abc", (), "13"),
        (b"\0\xff\xff\xff\xff", (), "8"),
        (b"", (), "3"),
    ],
)
async def test_messages_that_are_none(message: bytes, more: tuple[tuple[str, str], ...], status: str) -> None:
    plane = FakeDataPlane()
    client = Client(plane).greet()
    client.send(client.headers(1, *more) + frame(frames.DATA, frames.END_STREAM, 1, message))
    fields, _ = (await client.answers())[1]
    assert fields["grpc-status"] == status
    assert plane.bodies.used_bytes == 0


async def test_a_large_message_is_not_sent_before_it_is_asked_for() -> None:
    plane = FakeDataPlane()
    client = Client(plane, GrpcLimits(max_concurrent_receives=1)).greet()
    size = 200_000
    body = b"\0" + size.to_bytes(4, "big") + bytes(size)
    for stream_id in (1, 3):
        head = client.headers(stream_id)
        client.send(head + frame(frames.DATA, 0, stream_id, body[: frames.DEFAULT_WINDOW]))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    updates = [item for item in client.frames() if item[0] == frames.WINDOW_UPDATE]
    assert updates == [(frames.WINDOW_UPDATE, 0, 1, struct.pack(">I", len(body) - frames.DEFAULT_WINDOW))]
    client.send(frame(frames.DATA, 0, 3, b"x"))  # without having been asked
    assert [item[:3] for item in client.frames() if item[0] == frames.RST_STREAM] == [(frames.RST_STREAM, 0, 3)]


@pytest.mark.parametrize("frame_bytes", [1000, 16_384, 65_535])
@pytest.mark.parametrize("behind", [b"", frames.window_update(0, 1)])
async def test_a_large_message_is_whole_however_it_is_cut(frame_bytes: int, behind: bytes) -> None:
    plane = FakeDataPlane()
    client = Client(plane).greet()
    message = infer("a", random.Random(1).randbytes(700_000))
    body = b"\0" + len(message).to_bytes(4, "big") + message
    pieces = [body[at : at + frame_bytes] for at in range(0, len(body), frame_bytes)]
    unasked = frames.DEFAULT_WINDOW // frame_bytes
    sent = [frame(frames.DATA, 0, 1, piece) + behind for piece in pieces]
    client.transport.written.clear()
    client.send(client.headers(1) + b"".join(sent[:unasked]))
    await client.transport.written.wait()
    assert [item[:3] for item in client.frames()] == [(frames.WINDOW_UPDATE, 0, 1)]
    client.send(b"".join(sent[unasked:]) + frame(frames.DATA, frames.END_STREAM, 1))
    client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 2**30}) + frames.window_update(0, 2**30))
    answers = await client.answers()
    assert response_of(answers[1][1]).raw_output_contents[0] == message[-700_000:]
    assert not client.connection.filling
    await plane.bodies.is_empty()


async def test_a_large_message_for_which_no_memory_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("roost.server.grpc_native_call.np.empty", refuse)
    client = Client(FakeDataPlane()).greet()
    message = infer("a", bytes(200_000))
    body = b"\0" + len(message).to_bytes(4, "big") + message
    client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 2**30}) + frames.window_update(0, 2**30))
    client.send(client.headers(1) + frame(frames.DATA, 0, 1, body[:50_000]))
    for _ in range(3):
        await asyncio.sleep(0)
    rest = [frame(frames.DATA, 0, 1, body[at : at + 50_000]) for at in range(50_000, len(body), 50_000)]
    client.send(b"".join(rest) + frame(frames.DATA, frames.END_STREAM, 1))
    assert len(response_of((await client.answers())[1][1]).raw_output_contents[0]) == 200_000


async def test_very_many_frames_of_a_large_message_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if they go beyond the message's end, where they have to be taken one by one."""
    counted: list[int] = []

    def count_alike(*arguments: Any) -> int:
        counted.append(count := frames.count_alike(*arguments))
        return count

    monkeypatch.setattr(
        "roost.server.http2.connection.frames", SimpleNamespace(**vars(frames) | {"count_alike": count_alike})
    )
    client = Client(FakeDataPlane()).greet()
    size = 200_000
    body = b"\0" + size.to_bytes(4, "big") + bytes(size)
    client.send(client.headers(1) + frame(frames.DATA, 0, 1, body[: frames.DEFAULT_WINDOW]))
    for _ in range(3):
        await asyncio.sleep(0)
    assert client.connection.filling
    rest = body[frames.DEFAULT_WINDOW : -4000]
    client.send(b"".join(frame(frames.DATA, 0, 1, rest[at : at + 50_000]) for at in range(0, len(rest), 50_000)))
    client.send(frame(frames.DATA, 0, 1, b"x") * 5000)
    assert sum(counted) < 3 * 5000
    assert not client.connection.filling
    assert client.frames()[-1][:3] == (frames.RST_STREAM, 0, 1)  # for the thousand that nobody has asked for


async def test_an_answer_that_is_not_read_in_time_is_given_up() -> None:
    for may_begin in (True, False):
        plane = FakeDataPlane()
        plane.may_begin = may_begin
        client = Client(plane, GrpcLimits(write_timeout_s=0.02)).greet()
        client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}) + client.call(1, infer(data=bytes(10_000))))
        while frames.reset(1, ErrorCode.CANCEL) not in client.transport.sent:
            client.transport.written.clear()
            await client.transport.written.wait()
        await plane.bodies.is_empty()
        assert not client.connection.streams
        assert client.connection.output.is_empty


# -- rules ----------------------------------------------------------------------------------------------------------

BAD_FRAMES: dict[str, tuple[bytes, ErrorCode]] = {
    "no HTTP/2": (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
    "settings of a stream": (frame(frames.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "settings cut short": (frame(frames.SETTINGS, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "a window too large": (frames.settings({4: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
    "frames too small": (frames.settings({5: 100}), ErrorCode.PROTOCOL_ERROR),
    "a ping of the wrong size": (frame(frames.PING, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "a window enlarged by nothing": (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "a window over its limit": (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "a window of no stream": (frames.window_update(9, 5), ErrorCode.PROTOCOL_ERROR),
    "a reset of no stream": (frames.reset(9, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    "data of no stream": (frame(frames.DATA, 0, 9, b"1"), ErrorCode.PROTOCOL_ERROR),
    "data of an even stream": (frame(frames.DATA, 0, 2, b"1"), ErrorCode.PROTOCOL_ERROR),
    "data of the connection": (frame(frames.DATA, 0, 0, b"1"), ErrorCode.PROTOCOL_ERROR),
    "an even stream": (frame(frames.HEADERS, 4, 2, b"\x83"), ErrorCode.PROTOCOL_ERROR),
    "a stream 0": (frame(frames.HEADERS, 5, 0, b"\x83"), ErrorCode.PROTOCOL_ERROR),
    "a reset of the wrong size": (frame(frames.RST_STREAM, 0, 1, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "a ping of a stream": (frame(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "an acknowledgement with settings": (frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "pushing twice": (frames.settings({frames.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
    "a priority of no stream": (frame(frames.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    "a priority of the wrong size": (frame(frames.PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "an end of a stream for all": (frame(frames.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "settings again and again": (frame(frames.SETTINGS, 0, 0) * 200, ErrorCode.ENHANCE_YOUR_CALM),
    "a push": (frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), ErrorCode.PROTOCOL_ERROR),
    "a damaged block": (frame(frames.HEADERS, 4, 1, b"\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "a block of index 0": (frame(frames.HEADERS, 4, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    "a cut block": (
        frame(frames.HEADERS, 0, 1, b"\x83") + frame(frames.PING, 0, 0, bytes(8)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a continuation of nothing": (frame(frames.CONTINUATION, 4, 1, b"\x83"), ErrorCode.ENHANCE_YOUR_CALM),
    "empty continuations": (
        frame(frames.HEADERS, 0, 1, b"\x83") + frame(frames.CONTINUATION, 0, 1),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "a block without end": (
        frame(frames.HEADERS, 0, 1, b"\x83") + 5 * frame(frames.CONTINUATION, 0, 1, bytes(16_000)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "more padding than frame": (frame(frames.HEADERS, 4 | 8, 1, b"\x09\x83"), ErrorCode.PROTOCOL_ERROR),
    "a large frame": (frames.head(2**20, frames.HEADERS, 4, 1), ErrorCode.FRAME_SIZE_ERROR),
    "large data": (frames.head(2**20, frames.DATA, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_bad_frames_end_the_connection_with_a_reason(name: str) -> None:
    raw, code = BAD_FRAMES[name]
    plane = FakeDataPlane()
    plane.on_infer = for_ever
    client = Client(plane)
    if name != "no HTTP/2":
        client.greet()
        client.send(client.call(1, infer()) if "block" not in name and "padding" not in name else b"")
    client.send(raw)
    last = client.frames()[-1]
    assert last[0] == frames.GOAWAY
    assert ErrorCode(int.from_bytes(last[3][4:8], "big")) is code
    assert client.transport.is_closed
    assert not client.service.connections
    assert plane.bodies.used_bytes == 0


async def test_clients_that_ping_too_often_are_cut_off_and_those_with_answers_are_not() -> None:
    client = Client(FakeDataPlane(), GrpcLimits(max_ping_strikes=2)).greet()
    ping = frame(frames.PING, 0, 0, bytes(8))
    for stream_id in range(1, 20, 2):
        client.send(client.call(stream_id, infer()) + ping)
        await client.answers()
    client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}) + client.call(21, infer(data=bytes(1000))))
    for _ in range(10):  # libraries ping while they receive, to find out how much is on its way
        await asyncio.sleep(0)
        client.send(frames.window_update(21, 10) + ping)
    client.send(frames.window_update(21, 10_000))
    await client.answers()
    for _ in range(3):
        client.send(ping)
        assert client.frames() == [(frames.PING, frames.ACK, 0, bytes(8))]
    client.send(ping)
    assert b"too_many_pings" in client.frames()[-1][3]


async def test_a_client_that_only_asks_and_never_reads_is_cut_off() -> None:
    client = Client(FakeDataPlane(), GrpcLimits(max_ping_strikes=0)).greet()
    client.connection.pause_writing()
    for _ in range(200):
        client.send(frame(frames.SETTINGS, 0, 0) * 1000)
    assert client.transport.is_closed
    assert len(client.transport.sent) < 1_100_000


async def test_a_continuation_may_be_empty_if_it_is_the_last() -> None:
    client = Client(FakeDataPlane()).greet()
    block = client.encoder.encode([*REQUEST_HEADERS, GRPC])
    client.send(
        frame(frames.HEADERS, 0, 1, block) + frame(frames.CONTINUATION, frames.END_HEADERS, 1) + data(1, infer())
    )
    assert (await client.answers())[1][0]["grpc-status"] == "0"


async def test_streams_that_are_opened_and_reset_at_once_count_as_open() -> None:
    plane = FakeDataPlane()
    client = Client(plane, GrpcLimits(max_concurrent_streams=3)).greet()
    for chunk in range(2):
        ids = range(1 + 100 * chunk, 21 + 100 * chunk, 2)
        client.send(b"".join(client.call(key, infer()) + frames.reset(key, ErrorCode.CANCEL) for key in ids))
        refused = [stream_id for kind, _, stream_id, _ in client.frames() if kind == frames.RST_STREAM]
        assert refused == list(ids)[3:]
    assert plane.bodies.used_bytes == 0
    client.send(client.call(301, infer()))
    assert (await client.answers())[301][0]["grpc-status"] == "0"


async def test_whoever_sends_much_at_once_lets_others_have_their_turn() -> None:
    client = Client(FakeDataPlane()).greet()
    was_reading = []
    for count in (10, 6000):
        client.send(frames.window_update(0, 1) * count)
        was_reading.append(client.transport.is_reading)
        await asyncio.sleep(0)
        was_reading.append(client.transport.is_reading)
    assert was_reading == [True, True, False, True]


async def test_streams_that_are_reset_leave_nothing_behind() -> None:
    plane = FakeDataPlane()
    client = Client(plane).greet()
    client.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    for stream_id in range(1, 21, 2):  # a window for a stream that is gone with the chunk, and an answer that waits
        head = client.headers(stream_id)
        client.send(head + frames.window_update(stream_id, 5) + frames.reset(stream_id, ErrorCode.CANCEL))
    for stream_id in range(21, 41, 2):
        client.send(client.call(stream_id, infer(data=bytes(100))))
        while client.connection.output.is_empty:
            client.transport.written.clear()
            await client.transport.written.wait()
        assert len(client.connection._write_timers) == 1
        client.send(frames.reset(stream_id, ErrorCode.CANCEL))
    assert not client.connection.fresh_grants
    assert not client.connection._write_timers
    assert client.connection.output.is_empty
    assert plane.bodies.used_bytes == 0


@pytest.mark.parametrize("may_begin", [True, False])
async def test_a_message_in_very_small_pieces_is_whole_and_takes_little_memory(may_begin: bool) -> None:
    plane = FakeDataPlane()
    plane.may_begin = may_begin
    client = Client(plane).greet()
    message = infer("a", bytes(3000))
    body = b"\0" + len(message).to_bytes(4, "big") + message
    client.send(client.headers(1) + frame(frames.DATA, 0, 1))
    for at in range(0, len(body), 2):
        client.send(frame(frames.DATA, 0, 1, body[at : at + 2]) + frame(frames.DATA, 0, 1))
    assert len(client.connection.streams[1]._pieces) < 4  # type: ignore[attr-defined]
    client.send(frame(frames.DATA, frames.END_STREAM, 1))
    assert response_of((await client.answers())[1][1]).id == "a"
    await plane.bodies.is_empty()


async def test_messages_behind_the_only_one_of_a_call_are_not_kept() -> None:
    plane = FakeDataPlane()
    plane.may_begin = False
    client = Client(plane).greet()
    message = infer("a")
    body = b"\0" + len(message).to_bytes(4, "big") + message
    client.send(client.headers(1) + frame(frames.DATA, frames.END_STREAM, 1, body + bytes(5) * 5000))
    assert len(client.connection.streams[1]._messages) == 1  # type: ignore[attr-defined]
    assert response_of((await client.answers())[1][1]).id == "a"


async def test_a_connection_that_comes_while_the_server_stops_ends_too() -> None:
    client = Client(FakeDataPlane()).greet()
    draining = asyncio.ensure_future(client.service.drain(60))
    await asyncio.sleep(0)
    late = GrpcConnection(client.service)
    transport = FakeTransport()
    late.connection_made(transport)
    for connection in (client.connection, late):
        receive(connection, frames.PREFACE if connection is late else b"")
        receive(connection, frame(frames.PING, frames.ACK, 0, b"roostend"))
    await draining
    assert transport.is_closed


async def test_a_stream_that_begins_with_the_answer_to_the_last_ping_is_answered() -> None:
    plane = FakeDataPlane()
    client = Client(plane).greet()
    draining = asyncio.ensure_future(client.service.drain(60))
    await asyncio.sleep(0)
    client.frames()
    client.send(client.headers(1) + frame(frames.PING, frames.ACK, 0, b"roostend"))
    assert client.frames() == [(frames.GOAWAY, 0, 0, struct.pack(">II", 1, 0))]
    client.send(data(1, infer("a")))
    assert response_of((await client.answers())[1][1]).id == "a"
    client.send(frame(frames.PING, frames.ACK, 0, b"roostbye"))
    await draining


async def test_what_a_lost_connection_would_send_keeps_nothing_of_others() -> None:
    class LostTransport(FakeTransport):
        def write(self, data: bytes) -> None:
            if self.is_closed:
                raise RuntimeError("the handle is closed")
            super().write(data)

    client = Client(FakeDataPlane()).greet()
    lost, transport = GrpcConnection(client.service), LostTransport()
    lost.connection_made(transport)
    lost.close()
    await asyncio.sleep(0)
    lost.output.write(b"late")
    client.connection.output.write(b"in time")
    await asyncio.sleep(0)
    assert client.transport.sent.endswith(b"in time")


async def test_draining_answers_what_was_on_its_way_and_closes_when_the_client_has_read_it() -> None:
    release = asyncio.Event()
    plane = FakeDataPlane()

    async def hold(request: InferRequest) -> InferResponse:
        await release.wait()
        return InferResponse(MODEL, "1", [], request.id)

    plane.on_infer = hold
    client = Client(plane).greet()
    client.send(client.call(1, infer("a")))
    draining = asyncio.ensure_future(client.service.drain(60))
    await plane.arrived.wait()
    away, ping = client.frames()
    assert (away[0], away[3][:4]) == (frames.GOAWAY, struct.pack(">I", 2**31 - 1))
    client.send(client.call(3, infer("b")) + frame(frames.PING, frames.ACK, 0, ping[3]))
    assert client.frames() == [(frames.GOAWAY, 0, 0, struct.pack(">II", 3, 0))]
    client.send(client.call(5, infer("c")))
    release.set()
    answers = await client.answers(2)
    assert {stream_id: response_of(body).id for stream_id, (_, body) in answers.items()} == {1: "a", 3: "b"}
    assert not client.transport.is_closed
    client.send(frame(frames.PING, frames.ACK, 0, b"roostbye"))
    await draining
    assert client.transport.is_closed


@given(st.data())
def test_mutated_frames_raise_nothing_and_leave_nothing(choices: st.DataObject) -> None:
    async def run() -> None:
        plane = FakeDataPlane()
        client = Client(plane)
        calls = b"".join(client.call(stream_id, infer(str(stream_id))) for stream_id in (1, 3, 5))
        raw = bytearray(frames.PREFACE + frame(frames.SETTINGS, 0, 0) + calls + frame(frames.PING, 0, 0, bytes(8)))
        for _ in range(choices.draw(st.integers(1, 6))):
            raw[choices.draw(st.integers(len(frames.PREFACE), len(raw) - 1))] = choices.draw(st.integers(0, 255))
        cut = choices.draw(st.integers(1, len(raw)))
        client.send(bytes(raw[:cut]))
        client.send(bytes(raw[cut:]))
        await asyncio.sleep(0)
        client.connection.connection_lost(None)
        await client.service.drain(0)
        assert plane.bodies.used_bytes == 0
        assert not client.connection.streams

    asyncio.run(run())

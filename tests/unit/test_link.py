"""The router's end of the worker link, fed through a transport that is a list of buffers."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import Code, InvalidArgument, RoostError, Unavailable
from roost.core.frames import (
    HEADER_BYTES,
    Call,
    Credit,
    FrameType,
    Header,
    Response,
    Run,
    StepTimes,
    WireTensor,
    control_frame,
    error_frame,
    pack_header,
    parse_control,
    parse_run,
    response_frame,
    unpack_header,
)
from roost.router.admission import ByteBudget
from roost.router.arena import Arena
from roost.router.link import READ_BUFFER_BYTES, Link, LinkLost, WorkerLink

from tests.virtual_time import settle, virtual


class FakeTransport(asyncio.Transport):
    """Collects what is written; tells the protocol of its end as a real one does, later on the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.aborted = False
        # Weak: a cycle would keep the descriptors of arenas open until some other test.
        self.protocol: weakref.ref[WorkerLink] | None = None

    def is_closing(self) -> bool:
        return self.aborted

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.written += data

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            link = self.protocol() if self.protocol is not None else None
            assert link is not None
            link.connection_lost(None)

    def frames(self) -> Iterator[tuple[Header, bytes]]:
        """What was written, frame by frame."""
        rest = bytes(self.written)
        while rest:
            header = unpack_header(rest)
            yield header, rest[HEADER_BYTES : HEADER_BYTES + header.length]
            rest = rest[HEADER_BYTES + header.length :]


class Recorder:
    """Keeps what a link says, with copies of the tensors' bytes made at once and looked at again later."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.views: list[tuple[memoryview, bytes]] = []
        self.lost = 0
        self.answers = ByteBudget(100 << 20, "answers")

    def on_hello(self, hello: dict[str, Any]) -> None:
        self.said.append(("hello", hello))

    def on_response(self, run: int, response: Response) -> None:
        datas = []
        for tensor in response.outputs:
            assert isinstance(tensor.data, memoryview)
            datas.append(bytes(tensor.data))
            self.views.append((tensor.data, datas[-1]))
        self.said.append(("response", run, datas))

    def on_run_error(self, run: int, error: Exception) -> None:
        self.said.append(("error", run, str(error)))

    def on_response_refused(self, run: int, error: RoostError) -> None:
        self.said.append(("refused", run, str(error)))

    def on_call(self, number: int, call: Call | None) -> None:
        self.said.append(("call", number, call))

    def on_lost(self, link: Link) -> None:
        self.lost += 1


def connected() -> tuple[WorkerLink, FakeTransport, Recorder]:
    recorder, transport = Recorder(), FakeTransport()
    link = WorkerLink(recorder, Arena(0))
    transport.protocol = weakref.ref(link)
    link.connection_made(transport)
    return link, transport, recorder


def feed(link: WorkerLink, data: bytes, sizes: Callable[[int], int] = lambda room: room) -> None:
    """Hands bytes over as a transport does: into the link's own buffer, as many as ``sizes`` says of its room."""
    view = memoryview(data)
    while len(view):
        buffer = link.get_buffer(-1)
        assert len(buffer), "a transport takes an empty buffer for an error"
        count = max(1, min(sizes(len(buffer)), len(buffer), len(view)))
        buffer[:count] = view[:count]
        view = view[count:]
        link.buffer_updated(count)


def answer(run: int, *sizes: int) -> tuple[bytes, tuple[Any, ...]]:
    datas = [bytes([(run + i) % 251]) * size for i, size in enumerate(sizes)]
    outputs = [WireTensor(f"o{i}", "UINT8", (len(data),), data) for i, data in enumerate(datas)]
    buffers = response_frame(run, Response(outputs, times=StepTimes(1, 2, 3, 4, 5, 6)))
    return b"".join(bytes(buffer) for buffer in buffers), ("response", run, datas)


SIZES = st.sampled_from([0, 1, 100, 5_000, READ_BUFFER_BYTES // 2, READ_BUFFER_BYTES + 77, 3 * READ_BUFFER_BYTES])
FRAMES = st.one_of(
    st.builds(answer, st.integers(1, 2**63), SIZES, SIZES),
    st.builds(lambda run: (control_frame(FrameType.STARTED, run), None), st.integers(1, 2**63)),
    st.builds(
        lambda run, text: (error_frame(run, Code.INTERNAL, text), ("error", run, text)), st.integers(1, 99), st.text()
    ),
    st.just((control_frame(FrameType.PONG, 7), None)),
    st.just((control_frame(FrameType.HELLO, 0, {"pid": 3}), ("hello", {"pid": 3}))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(FRAMES, max_size=12), st.data())
def test_frames_come_out_as_they_went_in_whatever_the_chunks(
    frames: list[tuple[bytes, tuple[Any, ...] | None]], data: st.DataObject
) -> None:
    link, transport, recorder = connected()
    chunks = data.draw(st.lists(st.sampled_from([1, 7, 23, 24, 25, 4096, 100_000, 2**20]), min_size=1, max_size=30))
    # Tiny chunks all the way through a large payload would only cost time.
    position = iter(chunks)
    feed(link, b"".join(frame for frame, _ in frames), lambda room: next(position, room))
    assert recorder.said == [expected for _, expected in frames if expected is not None]
    assert all(bytes(view) == copy for view, copy in recorder.views), "memory of an answer was used again"
    assert not transport.aborted


@virtual
async def test_a_run_that_no_frame_can_be_made_of_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    link, transport, recorder = connected()
    link.send_run(1, Run(1, 0, [WireTensor("x", "UINT8", (2**70, 0), b"")]))
    link.send_run(2, Run(1, 0, [WireTensor("x", "UINT8", (1,), b"x")]))
    assert not recorder.said
    await settle()
    assert [said[:2] for said in recorder.said] == [("error", 1)]
    assert [header.request for header, _ in transport.frames()] == [2]
    assert "could not be put into a frame" in caplog.text


def test_byte_by_byte() -> None:
    link, _, recorder = connected()
    first, said = answer(1, 300, 0)
    feed(link, first + control_frame(FrameType.STARTED, 2), lambda room: 1)
    assert recorder.said == [said]


def test_a_payload_of_every_size_around_the_buffers() -> None:
    for size in (READ_BUFFER_BYTES // 2, READ_BUFFER_BYTES - HEADER_BYTES, READ_BUFFER_BYTES, READ_BUFFER_BYTES + 1):
        for before in (0, 1, READ_BUFFER_BYTES // 3):
            link, _, recorder = connected()
            first, said = answer(1, before)
            second, then = answer(2, size)
            feed(link, first + second + first)
            assert recorder.said == [said, then, said]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(64),
        pack_header(FrameType.RESPONSE, 1, 2**60),
        pack_header(FrameType.RESPONSE, 1, 3) + b"abc",
        pack_header(FrameType.HELLO, 0, 4) + b"nope",
        pack_header(FrameType.ERROR, 1, 2) + b"{}",
        pack_header(FrameType.ERROR, 1, 26) + b'{"code": "X","message":""}',
        b"RO\x02\xff" + bytes(20),
        b"RO\x09\x01" + bytes(20),
    ],
)
@pytest.mark.parametrize("before", [b"", control_frame(FrameType.STARTED, 5), answer(5, READ_BUFFER_BYTES)[0]])
def test_garbage_closes_the_link(garbage: bytes, before: bytes) -> None:
    link, transport, recorder = connected()
    feed(link, before)
    said = len(recorder.said)
    feed(link, garbage)
    assert transport.aborted
    assert recorder.lost == 1
    assert len(recorder.said) == said


def test_a_large_payload_of_garbage_closes_the_link() -> None:
    link, transport, recorder = connected()
    feed(link, pack_header(FrameType.RESPONSE, 1, READ_BUFFER_BYTES) + b"\xff" * READ_BUFFER_BYTES)
    assert transport.aborted
    assert not recorder.said


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    link, transport, _ = connected()
    for start in range(0, len(data), 50):
        if not transport.aborted:
            feed(link, data[start : start + 50])


async def test_a_call_is_answered_by_its_status() -> None:
    link, transport, _ = connected()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(link.call(FrameType.LOAD, {"instance": 1}))
        second = group.create_task(link.call(FrameType.UNLOAD, {"instance": 2}))
        await asyncio.sleep(0)
        (load, payload), (unload, _) = transport.frames()
        assert (load.type, unload.type) == (FrameType.LOAD, FrameType.UNLOAD)
        assert parse_control(payload) == {"instance": 1}
        feed(link, control_frame(FrameType.STATUS, unload.request, {"instance": 2}))
        feed(link, control_frame(FrameType.STATUS, load.request, {"instance": 1}))
        feed(link, control_frame(FrameType.STATUS, 99, {}))
    assert first.result() == {"instance": 1}
    assert second.result() == {"instance": 2}


async def test_a_call_that_fails_raises_the_workers_error_and_no_runs() -> None:
    link, transport, recorder = connected()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(_outcome(link))
        await asyncio.sleep(0)
        ((header, _),) = transport.frames()
        feed(link, error_frame(header.request, Code.INVALID_ARGUMENT, "garbage"))
    error = call.result()
    assert isinstance(error, InvalidArgument)
    assert error.message == "garbage"
    assert not recorder.said


async def _outcome(link: WorkerLink) -> Exception | dict[str, Any]:
    try:
        return await link.call(FrameType.LOAD, {})
    except Exception as error:
        return error


async def test_the_end_of_the_link_fails_what_waits_and_all_that_comes() -> None:
    link, transport, recorder = connected()
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(_outcome(link)) for _ in range(3)]
        await asyncio.sleep(0)
        feed(link, pack_header(FrameType.STATUS, 1, 100) + b"{")
        transport.abort()
    assert all(isinstance(call.result(), LinkLost) for call in calls)
    assert recorder.lost == 1
    written = len(transport.written)
    with pytest.raises(Unavailable):
        await link.call(FrameType.LOAD, {})
    link.send_run(1, Run(1, 0, []))
    link.send_cancel(1)
    link.send_credit(1, Credit(1, 1))
    link.abort()
    assert len(transport.written) == written
    assert recorder.lost == 1


async def test_a_link_that_was_never_connected_takes_nothing() -> None:
    link = WorkerLink(Recorder(), Arena(0))
    with pytest.raises(LinkLost):
        await link.call(FrameType.LOAD, {})
    link.send_cancel(1)
    link.abort()


async def test_a_cancelled_call_tells_the_worker() -> None:
    link, transport, recorder = connected()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(link.call(FrameType.LOAD, {}))
        await asyncio.sleep(0)
        call.cancel()
    (load, _), (cancel, _) = transport.frames()
    assert cancel.type is FrameType.CANCEL
    assert cancel.request == load.request
    feed(link, control_frame(FrameType.STATUS, load.request, {}))  # the answer came too late
    feed(link, error_frame(load.request, Code.CANCELLED, "cancelled"))
    assert [said[0] for said in recorder.said] in ([], ["error"])
    assert not transport.aborted


async def test_an_answered_call_is_not_cancelled() -> None:
    link, transport, _ = connected()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(link.call(FrameType.LOAD, {}))
        await asyncio.sleep(0)
        ((load, _),) = transport.frames()
        feed(link, control_frame(FrameType.STATUS, load.request, {"a": 1}))
    assert call.result() == {"a": 1}
    assert len(list(transport.frames())) == 1


def test_runs_are_written_whole_and_numbers_are_never_used_twice() -> None:
    link, transport, _ = connected()
    numbers = [link.next_number() for _ in range(3)]
    assert len(set(numbers)) == 3
    data = bytes(range(256)) * 2048
    link.send_run(numbers[0], Run(4, 5, [WireTensor("a", "UINT8", (len(data),), data)], ["y"], {"p": 1}))
    ((header, payload),) = transport.frames()
    assert (header.type, header.request) == (FrameType.RUN, numbers[0])
    run = parse_run(payload)
    assert (run.instance, run.deadline_ns, list(run.outputs), dict(run.parameters)) == (4, 5, ["y"], {"p": 1})
    assert isinstance(run.inputs[0].data, memoryview)
    assert bytes(run.inputs[0].data) == data


def _answer(run: int, size_bytes: int, *, final: bool = True) -> bytes:
    tensor = WireTensor("y", "UINT8", (size_bytes,), bytes(size_bytes))
    return b"".join(bytes(part) for part in response_frame(run, Response([tensor], final=final)))


async def test_a_large_answer_is_charged_as_long_as_anybody_looks_at_it() -> None:
    link, _, recorder = connected()
    feed(link, _answer(1, 1 << 20))
    assert recorder.answers.used_bytes > 1 << 20
    view, _ = recorder.views.pop()
    assert recorder.answers.used_bytes > 1 << 20
    del view
    assert recorder.answers.used_bytes == 0


async def test_an_answer_over_the_budget_is_refused_and_the_link_goes_on() -> None:
    link, _, recorder = connected()
    recorder.answers = ByteBudget(1 << 20, "answers")
    feed(link, _answer(1, 2 << 20) + _answer(2, 4) + _answer(3, 2 << 20, final=False))
    kinds = [said[:2] for said in recorder.said]
    assert kinds == [("error", 1), ("response", 2), ("refused", 3)]
    assert "more than the 1 MiB" in recorder.said[0][2]
    assert recorder.answers.used_bytes == 0


async def test_a_response_of_a_stream_is_charged_however_small_it_is() -> None:
    link, _, recorder = connected()
    recorder.answers = ByteBudget(2048, "answers")
    feed(link, _answer(1, 1024, final=False) + _answer(1, 1024, final=False) + _answer(2, 1024))
    assert [said[:2] for said in recorder.said] == [("response", 1), ("refused", 1), ("response", 2)]
    assert recorder.answers.used_bytes >= 1024
    recorder.views.clear()
    assert recorder.answers.used_bytes == 0


@virtual
async def test_a_worker_that_answers_nothing_is_hung() -> None:
    link, transport, _ = connected()
    async with asyncio.timeout(60):
        await link.hung()
    assert FrameType.PING in [header.type for header, _ in transport.frames()]


@virtual
async def test_a_worker_that_answers_is_not_hung() -> None:
    link, transport, _ = connected()
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(link.hung())
        answered = 0
        for _ in range(100):
            await asyncio.sleep(1)
            for header, _ in list(transport.frames())[answered:]:
                answered += 1
                if header.type is FrameType.PING:
                    feed(link, control_frame(FrameType.PONG, header.request))
        assert answered > 30
        assert not watch.done()
        watch.cancel()

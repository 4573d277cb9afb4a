"""Plain requests take the lean path, and nobody can tell but by the time it takes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from roost.core.errors import DeadlineExceeded, Limit, ResourceExhausted
from roost.core.requests import Done, InferRequest, InferResponse, Ticket
from roost.server.rest.lean import LeanPath
from roost.server.restrictions import Restrictions
from roost.server.transport_options import TransportOptions

from tests.fakes import MIB, FakeDataPlane
from tests.integration.rest_place import (
    HEADER_LENGTH,
    LOOPS,
    Served,
    announcement,
    read_answer,
    run_on,
    serve,
    simple_request,
    until,
)
from tests.models import write_simple
from tests.server import HOST, started

Loop = Callable[[], asyncio.AbstractEventLoop]
_DATE = re.compile(r"\r\nDate: [^\r]*")


class Client:
    """A raw connection."""

    def __init__(self, served: Served, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert served.lean is not None
        self.lean: LeanPath = served.lean
        self.plane = served.plane
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    async def answer(self) -> tuple[str, bytes]:
        """Head without the time, and body."""
        head, body = await read_answer(self.reader)
        return _DATE.sub("", head), body

    async def ask(self, request: bytes) -> tuple[str, bytes]:
        self.send(request)
        return await self.answer()

    async def leanly(self, request: bytes) -> bool:
        """Whether a request is answered on the lean path; the end of a large answer may be seen here first."""
        before = self.lean.served
        await self.ask(request)
        await until(lambda: self.plane.bodies.used_bytes == 0)
        return self.lean.served > before


@asynccontextmanager
async def connected(served: Served, receive_bytes: int | None = None) -> AsyncIterator[Client]:
    reader, writer = await served.connect(receive_bytes)
    try:
        yield Client(served, reader, writer)
    finally:
        writer.transport.abort()


def request(document: Any, model: str = "simple", extra: str = "", tail: bytes = b"") -> bytes:
    body = json.dumps(document).encode()
    if tail:
        extra += f"{HEADER_LENGTH}: {len(body)}\r\n"
    return announcement(len(body) + len(tail), extra, model) + body + tail


def binary(data: bytes, model: str = "id_UINT8", extra: str = "", **more: Any) -> bytes:
    item = {"name": "IN", "datatype": "UINT8", "shape": [1, len(data)], "parameters": {"binary_data_size": len(data)}}
    return request({"inputs": [item], **more}, model, extra, data)


def numbered(number: int) -> bytes:
    """A request whose answer tells its number."""
    return request(simple_request(id=str(number)))


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SIMPLE = request(simple_request())
OUT_IN_BINARY: dict[str, Any] = {"outputs": [{"name": "OUT", "parameters": {"binary_data": True}}]}
BIG: dict[str, Any] = {"size": 200_000, "fill": 7}
HANG = request({"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [1]}]}, "hang")

LEAN = {
    "JSON": SIMPLE,
    "an id": request(simple_request(id="7")),
    "one output": request(simple_request(outputs=[{"name": "OUTPUT1"}])),
    "a timeout": request(simple_request(parameters={"timeout": 5_000_000})),
    "a trace": request(simple_request(), extra=f"traceparent: {TRACE}\r\n"),
    "a version": SIMPLE.replace(b"simple/", b"simple/versions/01/"),
    "binary both ways": binary(b"abc", **OUT_IN_BINARY),
    "binary in": binary(b"abc"),
    "compression": request(simple_request(), extra="Accept-Encoding: br, gzip;q=0.9\r\n"),
    "compression of binary": binary(b"abc" * 2000, extra="Accept-Encoding: deflate\r\n", **OUT_IN_BINARY),
    "a large body": binary(bytes(MIB), "id_UINT8", **OUT_IN_BINARY),
    "a large answer": request({"inputs": [], "parameters": {**BIG, "binary_data_output": True}}, "big"),
    "an unknown model": request(simple_request(), "nope"),
    "a model that is not ready": request(
        {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [1]}]}, "down"
    ),
    "what its model refuses": request(simple_request(inputs=[])),
    "an output that is no text": request(
        {"inputs": [{"name": "IN", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 5}}]},
        "id_BYTES",
        tail=b"\x01\0\0\0\xff",
    ),
}  # fmt: skip
NOT_LEAN = {
    "malformed": request({"inputs": 5}),
    "JSON that takes long to write": request({"inputs": [], "parameters": BIG}, "big"),
    "compression that takes long": request(
        {"inputs": [], "parameters": {**BIG, "binary_data_output": True}}, "big", "Accept-Encoding: gzip\r\n"
    ),
    "an expectation": request(simple_request(), extra="Expect: y\r\n"),
    "an escape in the path": SIMPLE.replace(b"simple", b"s%69mple"),
    "a raw request": announcement(3, f"{HEADER_LENGTH}: 0\r\n", "id_UINT8") + b"abc",
}


@pytest.mark.parametrize("case", [*LEAN, *NOT_LEAN])
@pytest.mark.parametrize("loop", LOOPS)
def test_answers_are_the_same_on_both_paths(loop: Loop, case: str) -> None:
    data = LEAN.get(case) or NOT_LEAN[case]

    async def main() -> None:
        async with serve() as served, connected(served) as client:
            first = await client.ask(data)
            assert client.lean.served == 0
            for _ in range(2):
                assert await client.ask(data) == first
            # The end of a large answer is seen a moment later here than there.
            await until(lambda: client.lean.served >= 2 * (case in LEAN))
            assert client.lean.served == 2 * (case in LEAN)
            await client.ask(SIMPLE)
            assert await client.leanly(SIMPLE)

    run_on(loop, main())


async def test_clients_of_all_sorts(served: Served) -> None:
    """What aiohttp's client sends is plain as well."""
    assert served.lean is not None
    for _ in range(3):
        assert (await served.infer("simple", simple_request()))[0] == 200
    assert served.lean.served == 2


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as server:
        yield server


@pytest.mark.parametrize("loop", LOOPS)
def test_pieces(loop: Loop) -> None:
    """However a request is cut, it is served; in its body it is so on the lean path."""

    async def main() -> None:
        large = binary(bytes(range(256)) * 4096, **OUT_IN_BINARY)
        async with serve() as served, connected(served) as client:
            for data in (SIMPLE, large):
                expected = await client.ask(data)
                end = data.index(b"\r\n\r\n") + 4
                for cut in (1, end - 3, end - 1, end, end + 1, end + 100, len(data) - 1):
                    before = client.lean.served
                    client.send(data[:cut])
                    if cut >= end:
                        await until(lambda: served.plane.bodies.used_bytes > 0)
                    else:
                        # Or the kernel may put the pieces together, which is right as well.
                        await asyncio.sleep(0.01)
                    assert await client.ask(data[cut:]) == expected
                    await until(lambda: served.plane.bodies.used_bytes == 0)
                    assert client.lean.served >= before + (cut >= end), cut
                    # Where the parser had the head, it has not been forgotten where it is.
                    assert await client.leanly(data)

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_pipelining_keeps_the_order(loop: Loop) -> None:
    async def main() -> None:
        unknown = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        async with serve() as served, connected(served) as client:
            await client.ask(numbered(0))
            lean = client.lean.served
            client.send(*map(numbered, range(1, 200)), unknown, *map(numbered, range(200, 210)), NOT_LEAN["malformed"])
            for number in range(1, 200):
                assert json.loads((await client.answer())[1])["id"] == str(number)
            assert client.lean.served - lean >= 99
            assert b"live" in (await client.answer())[1]
            for number in range(200, 210):
                assert json.loads((await client.answer())[1])["id"] == str(number)
            assert "400" in (await client.answer())[0]
            # The parser had several at once, and it is known where it is.
            assert await client.leanly(numbered(1))
            assert served.plane.bodies.used_bytes == 0

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_what_comes_meanwhile_waits(loop: Loop) -> None:
    async def main() -> None:
        plane = FakeDataPlane()
        plane.go.set()
        async with serve(plane) as served, connected(served) as client:
            await client.ask(HANG)
            await client.ask(SIMPLE)
            plane.go.clear()
            plane.started.clear()
            client.send(HANG)
            await plane.started.wait()
            client.send(SIMPLE, b"no HTTP\r\n\r\n")
            # More than may wait here, so the client has to.
            while client.writer.transport.get_write_buffer_size() < MIB:
                client.send(bytes(MIB))
                await asyncio.sleep(0)
            assert len(plane.requests) == 3
            plane.go.set()
            assert "200" in (await client.answer())[0]
            assert "200" in (await client.answer())[0]
            head, body = await client.answer()
            assert (head.split()[1], b"not valid HTTP" in body) == ("400", True)
            assert client.lean.served >= 1

    run_on(loop, main())


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_disconnect_cancels(loop: Loop, pipelined: bool, at_once: bool) -> None:
    async def main() -> None:
        plane = FakeDataPlane()
        plane.go.set()
        plane.may_begin = at_once  # else its model has to be loaded first
        async with serve(plane) as served:
            async with connected(served) as client:
                await client.ask(HANG)
                plane.go.clear()
                plane.started.clear()
                client.send(HANG, *[SIMPLE] * pipelined)
                await plane.started.wait()
                assert plane.bodies.used_bytes > 0
            await plane.cancelled.wait()
            await until(lambda: plane.bodies.used_bytes == 0)
            assert len(plane.requests) == 2

    run_on(loop, main())


@pytest.mark.parametrize("size", [100, 2 * MIB])
@pytest.mark.parametrize("loop", LOOPS)
def test_disconnect_in_a_body(loop: Loop, size: int) -> None:
    async def main() -> None:
        data = binary(bytes(size))
        async with serve() as served:
            async with connected(served) as client:
                await client.ask(data)
                client.send(data[:-50])
                await until(lambda: served.plane.bodies.used_bytes > 0)
            await until(lambda: served.plane.bodies.used_bytes == 0)
            assert len(served.plane.requests) == 1

    run_on(loop, main())


@pytest.mark.parametrize("size", [100, 2 * MIB])
@pytest.mark.parametrize("loop", LOOPS)
def test_half_a_body_times_out(loop: Loop, size: int) -> None:
    async def main() -> None:
        data = binary(bytes(size))
        plane = FakeDataPlane(request_timeout_s=0.2)
        async with serve(plane) as served, connected(served) as client:
            await client.ask(data)
            head, body = await client.ask(data[:-50])
            assert (head.split()[1], b"did not arrive within 0.2 s" in body) == ("504", True)
            assert "Connection: close" in head
            assert (plane.refusals, plane.bodies.used_bytes, len(plane.requests)) == ([Limit.RECEIVE_TIMEOUT], 0, 1)

    run_on(loop, main())


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
def test_exhausted_budget(loop: Loop, whole: bool) -> None:
    async def main() -> None:
        data = binary(bytes(100_000))
        plane = FakeDataPlane(body_bytes=150_000)
        async with serve(plane) as served, connected(served) as client:
            await client.ask(data)
            plane.bodies.acquire(100_000)
            # Cut off or not: what is refused is not waited for.
            head, body = await client.ask(data if whole else data[:-50])
            assert (head.split()[1], b"would pass its limit" in body) == ("429", True)
            assert "Connection: close" in head
            assert "Retry-After: 1" in head
            assert plane.refusals == [Limit.BODY_BUDGET]
            plane.bodies.release(100_000)

    run_on(loop, main())


class Refusing(FakeDataPlane):
    """Refuses to begin, or fails later, as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once: Exception | None = None
        self.later: Exception | None = None

    def begin(self, request: InferRequest, done: Done) -> Ticket | None:
        if self.at_once is not None:
            raise self.at_once
        later = self.later
        if isinstance(later, (DeadlineExceeded, ResourceExhausted)):
            return _Later(asyncio.get_running_loop().call_soon(done, later))
        return super().begin(request, done)


class _Later:
    def __init__(self, handle: asyncio.Handle) -> None:
        self._handle = handle

    def cancel(self) -> None:
        self._handle.cancel()


async def test_failures_keep_the_connection() -> None:
    plane = Refusing()
    async with serve(plane) as served, connected(served) as client:
        await client.ask(SIMPLE)
        full = ResourceExhausted("the queue is full", retry_after_s=2.5, limit=Limit.QUEUE_FULL)
        for attribute in ("at_once", "later"):
            setattr(plane, attribute, full)
            head, body = await client.ask(SIMPLE)
            assert (head.split()[1], json.loads(body)) == ("429", {"error": "the queue is full"})
            assert "Retry-After: 3" in head
            setattr(plane, attribute, DeadlineExceeded("too late"))
            assert (await client.ask(SIMPLE))[0].split()[1] == "504"
            setattr(plane, attribute, None)
        plane.at_once = RuntimeError("a secret")
        head, body = await client.ask(SIMPLE)
        assert (head.split()[1], b"internal error" in body, b"secret" in body) == ("500", True, False)
        plane.at_once = None
        lean = client.lean.served
        assert "200" in (await client.ask(SIMPLE))[0]
        assert (client.lean.served, lean) == (6, 5)


async def test_an_unexpected_failure_of_one_that_waited_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeDataPlane):
        async def infer(self, request: InferRequest) -> InferResponse:
            raise RuntimeError("a secret")

    plane = Broken()
    async with serve(plane) as served, connected(served) as client:
        await client.ask(SIMPLE)
        plane.may_begin = False
        for _ in range(2):
            head, body = await client.ask(SIMPLE)
            assert (head.split()[1], b"internal error" in body, b"secret" in body) == ("500", True, False)
        assert client.lean.served == 2
        plane.may_begin = True
        assert await client.leanly(SIMPLE)
    assert "a secret" in caplog.text


async def test_statuses_of_triton() -> None:
    options = TransportOptions(compat_triton=True)
    plane = Refusing()
    async with serve(plane, options) as served, connected(served) as client:
        await client.ask(SIMPLE)
        plane.at_once = DeadlineExceeded("too late")
        assert (await client.ask(SIMPLE))[0].split()[1] == "503"


@pytest.mark.parametrize(
    "options",
    [
        TransportOptions(restrictions=Restrictions.parse(["inference:x-key=secret"])),
        TransportOptions(forward_headers=re.compile("^x-key")),
    ],
)
async def test_options_that_need_headers(options: TransportOptions) -> None:
    async with serve(options=options) as served:
        for _ in range(3):
            assert (await served.infer("simple", simple_request(), X_Key="secret"))[0] == 200
        assert served.lean is None or served.lean.served == 0


class LateTurn:
    """A loop that is behind by so many seconds."""

    began = now = 0.0

    def __init__(self, behind_s: float) -> None:
        self.behind_s = behind_s

    def is_late(self, loop: asyncio.AbstractEventLoop, allowance_s: float) -> bool:
        self.began = self.now = loop.time()
        return self.behind_s > allowance_s


async def test_late_requests_are_refused_before_they_are_read(served: Served) -> None:
    lean = served.lean
    assert lean is not None
    in_20_ms = request(simple_request(parameters={"timeout": 20_000}))
    async with connected(served) as client:
        # Long enough to know what they allow.
        for _ in range(200):
            assert "200" in (await client.ask(in_20_ms))[0]
        assert "200" in (await client.ask(SIMPLE))[0]
        turn, lean.turn = lean.turn, LateTurn(1.0)  # type: ignore[assignment]
        # Others of another kind can wait.
        other = request(simple_request(parameters={"timeout": 20_000}), extra="X: y\r\n")
        assert "200" in (await client.ask(other))[0]
        for _ in range(130):
            await client.ask(in_20_ms)
        asked = len(served.plane.requests)
        head, body = await client.ask(in_20_ms)
        assert (head.split()[1], json.loads(body)["error"]) == (
            "429",
            "the server is behind: the answer would come too late",
        )
        assert "Retry-After: 1" in head
        assert "Connection" not in head
        assert served.plane.refusals[-1] == Limit.LAG
        assert len(served.plane.requests) == asked
        lean.turn = turn
        assert "200" in (await client.ask(in_20_ms))[0]


async def test_what_is_under_way_is_counted(served: Served) -> None:
    lean = served.lean
    assert lean is not None

    def under_way(data: bytes) -> int:
        found = lean.heads.find(data[: data.index(b"\r\n\r\n") + 4])
        assert found is not None
        return found.kind.window.under_way

    async with connected(served) as client:
        served.plane.go.set()
        assert not await client.leanly(HANG)
        assert await client.leanly(HANG)
        assert under_way(HANG) == 0
        served.plane.go.clear()
        client.send(HANG)
        await until(lambda: under_way(HANG) == 1)
    # The client is gone.
    await until(lambda: under_way(HANG) == 0)


async def test_a_burst_is_served(served: Served) -> None:
    """Many connections at once, on a server that had nothing to do."""
    in_5_s = request(simple_request(parameters={"timeout": 5_000_000}))
    clients = [Client(served, *await served.connect()) for _ in range(200)]
    for _ in range(2):
        for client in clients:
            client.send(in_5_s)
        for client in clients:
            assert "200" in (await client.answer())[0]
    for client in clients:
        client.writer.transport.abort()
    assert served.plane.refusals == []


@pytest.mark.parametrize("loop", LOOPS)
def test_idle_connections_expire(loop: Loop) -> None:
    async def main() -> None:
        plane = FakeDataPlane()
        plane.go.set()
        async with serve(plane, keepalive_timeout_s=0.2) as served, connected(served) as client:
            await client.ask(HANG)
            plane.go.clear()
            plane.started.clear()
            client.send(HANG)
            await plane.started.wait()
            # Longer than a connection may be idle: this one is not.
            await asyncio.sleep(0.5)
            plane.go.set()
            assert "200" in (await client.answer())[0]
            assert await client.reader.read() == b""

    run_on(loop, main())


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_drain_answers_what_is_under_way(loop: Loop, pipelined: bool, at_once: bool) -> None:
    async def main() -> None:
        plane = FakeDataPlane()
        plane.go.set()
        plane.may_begin = at_once  # else its model has to be loaded first
        async with serve(plane) as served, connected(served) as client, asyncio.TaskGroup() as group:
            await client.ask(HANG)
            await client.ask(SIMPLE)
            plane.go.clear()
            plane.started.clear()
            client.send(HANG, *[SIMPLE] * pipelined)
            await plane.started.wait()
            drain = group.create_task(served.runner.drain(30))
            await until(lambda: bool(not served.runner.sites))
            plane.go.set()
            heads = [(await client.answer())[0] for _ in range(1 + pipelined)]
            assert [("200" in head, "Connection: close" in head) for head in heads[:-1]] == [(True, False)] * pipelined
            assert "200" in heads[-1]
            assert "Connection: close" in heads[-1]
            assert await client.reader.read() == b""
            await drain
            assert client.lean.served == 2 + pipelined

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_drain_waits_for_a_body(loop: Loop) -> None:
    async def main() -> None:
        data = binary(bytes(MIB))
        async with serve() as served, connected(served) as client, asyncio.TaskGroup() as group:
            await client.ask(data)
            client.send(data[:-50])
            await until(lambda: served.plane.bodies.used_bytes > 0)
            drain = group.create_task(served.runner.drain(30))
            await until(lambda: bool(not served.runner.sites))
            assert "Connection: close" in (await client.ask(data[-50:]))[0]
            await drain

    run_on(loop, main())


async def ask_for_much(client: Client, model: str, times: int) -> None:
    document = {"inputs": [], "parameters": {"size": 8 * MIB, "fill": 7, "binary_data_output": True}}
    client.send(*[request(document, model)] * times)


@pytest.mark.parametrize("loop", LOOPS)
def test_slow_and_dead_readers(loop: Loop) -> None:
    async def main() -> None:
        async with serve(write_timeout_s=0.5) as served:
            async with connected(served) as client:
                await ask_for_much(client, "big", 1)
                await client.answer()
            async with connected(served, 4096) as client:
                await ask_for_much(client, "big", 1)
                await until(lambda: served.plane.bodies.used_bytes > 0)
                _, body = await client.answer()
                assert body.count(7) >= 8 * MIB
                assert await client.leanly(SIMPLE)
                lean = client.lean.served
                assert lean == 2
                # Now nobody reads.
                await ask_for_much(client, "big", 2)
                await until(lambda: served.plane.bodies.used_bytes > 0)
                await until(lambda: served.plane.bodies.used_bytes == 0)
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await client.answer()
                assert client.lean.served == lean

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_pipelining_without_reading_is_cut_off(loop: Loop) -> None:
    async def main() -> None:
        async with serve(write_timeout_s=0.2) as served, connected(served, 4096) as client:
            await client.ask(SIMPLE)
            lost = asyncio.Event()

            async def flood() -> None:
                try:
                    while True:
                        client.send(SIMPLE)
                        await client.writer.drain()
                except ConnectionError:
                    lost.set()

            async with asyncio.TaskGroup() as group:
                group.create_task(flood())
                await lost.wait()
            assert client.lean.served > 1
            await until(lambda: served.plane.bodies.used_bytes == 0)

    run_on(loop, main())


async def test_many_heads(served: Served) -> None:
    assert served.lean is not None
    async with connected(served) as client:
        for number in range(3000):
            await client.ask(request(simple_request(), extra=f"X-Request-Id: {number}\r\n"))
        assert len(served.lean.heads) <= 2048
        assert served.lean.served == 0


async def test_half_closed_connections_end(served: Served) -> None:
    async with connected(served) as client:
        await client.ask(SIMPLE)
        client.send(SIMPLE)
        sock = client.writer.get_extra_info("socket")
        sock.shutdown(socket.SHUT_WR)
        await client.reader.read()
        await until(lambda: served.plane.bodies.used_bytes == 0)


async def test_a_real_server_takes_it(tmp_path: Path) -> None:
    write_simple(tmp_path / "models" / "simple" / "1" / "model.onnx")
    with started(tmp_path / "models", tmp_path / "run", "--workers", "1") as server:
        reader, writer = await asyncio.open_connection(HOST, server.ports["http"])
        answers = []
        for _ in range(100):
            writer.write(SIMPLE)
            answers.append(await read_answer(reader))
        writer.close()
        assert len({body for _, body in answers}) == 1
        # Not the first one, which loads the model and whose head was not known, nor one that comes before aiohttp is
        # done with the one before it; once the lean path has a connection it keeps it.
        assert server.metric("roost_rest_lean_requests_total") >= 50

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable

import numpy as np
import psutil
import pytest
from roost.core.errors import Limit
from roost.core.tensors import pack_bytes, to_array

from tests.fakes import MIB, FakeDataPlane, encode_file
from tests.integration.rest_place import (
    HEADER_LENGTH,
    LOOPS,
    Served,
    announcement,
    binary_request,
    read_answer,
    run_on,
    serve,
    simple_request,
    until,
)

# The last bytes are few enough that writing them would not wait for the client by itself.
ANSWER_BYTES = 8 * MIB + 40_000


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as server:
        yield server


SUM = list(range(1, 17))
DIFFERENCE = list(range(-1, 15))


async def test_health_and_metadata(served: Served) -> None:
    assert await served.json("GET", "/v2/health/live") == (200, {"live": True})
    assert await served.json("GET", "/v2/health/ready") == (200, {"ready": True})
    served.plane.ready = False
    status, document = await served.json("GET", "/v2/health/ready?x=1")
    assert (status, document["ready"]) == (503, False)
    assert "error" in document
    assert (await served.json("GET", "/v2"))[1]["name"] == "triton"
    status, document = await served.json("GET", "/v2/models/simple/versions/1")
    assert status == 200
    assert list(document) == ["name", "versions", "platform", "inputs", "outputs"]
    assert document["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]}
    status, document = await served.json("GET", "/v2/models/simple/config")
    assert (status, document["max_batch_size"], document["input"][0]["dims"]) == (200, 8, [16])


async def test_model_ready(served: Served) -> None:
    assert await served.json("GET", "/v2/models/simple/ready") == (200, {"name": "simple", "ready": True})
    status, document = await served.json("GET", "/v2/models/nope/ready")
    assert (status, document["error"]) == (400, "Model version not ready")


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/models/simple/", 404, "Not Found"),
        ("GET", "/v2/models/simple/versions/x", 404, "Not Found"),
        ("POST", "/v2/health/live", 405, "Method Not Allowed"),
        ("GET", "/v2/models/simple/infer", 405, "Method Not Allowed"),
        ("GET", "/v2/repository/index", 405, "Method Not Allowed"),
        ("GET", "/v2/models/nope", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/config", 404, "'nope'"),
        ("GET", "/v2/models/simple/versions/9", 404, "version 9"),
        ("GET", f"/v2/models/simple/versions/{2**63}", 400, "out of range"),
        ("GET", f"/v2/models/simple/versions/{'9' * 5000}", 400, "out of range"),
        ("POST", "/v2/repository/other/index", 501, "repository_name"),
        ("POST", "/v2/repository/other/models/simple/load", 501, "repository_name"),
    ],
)
async def test_errors_are_json(served: Served, method: str, path: str, status: int, text: str) -> None:
    got, document = await served.json(method, path)
    assert got == status
    assert text in document["error"]


async def test_head_is_not_allowed(served: Served) -> None:
    status, response, body = await served.call("HEAD", "/v2")
    assert (status, body, response.headers["Allow"]) == (405, b"", "GET")


async def test_json_infer(served: Served) -> None:
    status, document = await served.infer("simple", simple_request(id="abc"))
    assert status == 200
    assert list(document) == ["id", "model_name", "model_version", "outputs"]
    assert document["outputs"] == [
        {"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 16], "data": SUM},
        {"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 16], "data": DIFFERENCE},
    ]
    context = served.plane.requests[0].context
    assert context.deadline == context.received + served.plane.request_timeout_s
    assert context.caller == "127.0.0.1"


async def test_outputs_version_and_parameters(served: Served) -> None:
    body = simple_request(outputs=[{"name": "OUTPUT1"}], parameters={"a": "s", "timeout": 1_000_000})
    status, document = await served.infer("simple/versions/01", body, traceparent="00-a-b-01")
    assert status == 200
    assert [output["name"] for output in document["outputs"]] == ["OUTPUT1"]
    request = served.plane.requests[0]
    assert (request.model_version, request.parameters, request.context.traceparent) == ("1", {"a": "s"}, "00-a-b-01")
    assert request.context.deadline == pytest.approx(request.context.received + 1.0)


async def test_binary_both_ways(served: Served) -> None:
    body, length = binary_request()
    status, document = await served.infer("simple", body, **{HEADER_LENGTH: length})
    assert (status, document["outputs"][0]["data"]) == (200, SUM)
    outputs = [{"name": "OUTPUT1", "parameters": {"binary_data": True}}, {"name": "OUTPUT0"}]
    for changes, sizes in (
        ({"parameters": {"binary_data_output": True}}, [64, 64]),
        ({"outputs": outputs}, [64, None]),
    ):
        body, length = binary_request(**changes)
        status, response, data = await served.call("POST", "/v2/models/simple/infer", body, **{HEADER_LENGTH: length})
        assert (status, response.content_type) == (200, "application/octet-stream")
        split = int(response.headers[HEADER_LENGTH])
        document = json.loads(data[:split])
        assert [o.get("parameters", {}).get("binary_data_size") for o in document["outputs"]] == sizes
        assert len(data) == split + sum(size or 0 for size in sizes)
        expected = SUM if changes.get("parameters") else DIFFERENCE
        assert np.frombuffer(data[split : split + 64], "<i4").tolist() == expected


@pytest.mark.parametrize(
    ("length", "extra", "text"),
    [
        ("99999", b"", "should be in range"),
        ("-1", b"", "should be in range"),
        ("abc", b"", "should be in range"),
        (None, b"xx", "unexpected additional input data for model 'simple'"),
        (None, None, "unexpected size for input 'INPUT1', expecting 4 additional bytes"),
        ("0", b"", "must only have 1 input"),
        ("3", b"", "failed to parse"),
    ],
)
async def test_binary_requests_that_do_not_fit(
    served: Served, length: str | None, extra: bytes | None, text: str
) -> None:
    body, right = binary_request()
    body = body[:-4] if extra is None else body + extra
    status, document = await served.infer("simple", body, **{HEADER_LENGTH: length or right})
    assert status == 400
    assert text in document["error"]


async def test_raw_requests(served: Served) -> None:
    elements = np.arange(4, dtype="<f4").tobytes()
    path = "/v2/models/id_FP32/infer"
    status, response, data = await served.call("POST", path, elements, **{HEADER_LENGTH: "0"})
    split = int(response.headers[HEADER_LENGTH])
    assert (status, json.loads(data[:split])["outputs"][0]["shape"], data[split:]) == (200, [1, 4], elements)
    status, document = await served.infer("id_FP32", elements + b"x", **{HEADER_LENGTH: "0"})
    assert status == 400
    assert "got 17" in document["error"]
    status, document = await served.infer("id_BYTES", b"word", **{HEADER_LENGTH: "0"})
    assert "must have input shape [1]" in document["error"]
    status, _, data = await served.call("POST", "/v2/models/word/infer", b"word", **{HEADER_LENGTH: "0"})
    assert (status, data[-8:]) == (200, pack_bytes([b"word"]))


async def test_failures(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    one = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [1]}]}
    status, response, data = await served.call("POST", "/v2/models/down/infer", one)
    assert (status, response.headers["Retry-After"]) == (503, "3")
    assert json.loads(data) == {"error": "model 'down' failed to load"}
    status, document = await served.infer("bug", one)
    assert status == 500
    assert "secret" not in document["error"]
    error_id = document["error"].split()[2].rstrip(";")
    assert error_id in caplog.text
    assert "a secret" in caplog.text
    status, document = await served.infer("nope", one)
    assert (status, document["error"]) == (404, "Request for unknown model: 'nope' is not found")
    status, document = await served.infer("simple", b"")
    assert (status, "JSON" in document["error"]) == (400, True)
    status, document = await served.infer("simple", b'{"id":"\\ud83d","inputs":[NaN]}')
    assert status == 400


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_bodies(served: Served, coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress
    plain, length = binary_request(parameters={"binary_data_output": True})
    headers = {HEADER_LENGTH: length, "Content-Encoding": coding, "Accept-Encoding": f"br, {coding}"}
    status, response, data = await served.call("POST", "/v2/models/simple/infer", pack(plain), **headers)
    assert (status, response.headers["Content-Encoding"]) == (200, coding)
    data = gzip.decompress(data) if coding == "gzip" else zlib.decompress(data)
    split = int(response.headers[HEADER_LENGTH])
    assert np.frombuffer(data[split : split + 64], "<i4").tolist() == SUM
    status, document = await served.infer("simple", pack(plain)[:-3], **{"Content-Encoding": coding})
    assert (status, "ends too early" in document["error"]) == (400, True)
    status, document = await served.infer("simple", plain, **{"Content-Encoding": coding})
    assert (status, f"not valid {coding}" in document["error"]) == (400, True)


async def test_large_compressed_bodies(served: Served) -> None:
    elements = np.random.default_rng(1).integers(0, 100, 3 * MIB, np.uint8).tobytes()
    document = {
        "inputs": [
            {"name": "IN", "datatype": "UINT8", "shape": [1, 3 * MIB], "parameters": {"binary_data_size": 3 * MIB}}
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    headers = {HEADER_LENGTH: str(len(head)), "Content-Encoding": "gzip", "Accept-Encoding": "deflate"}
    body = gzip.compress(head + elements, 1)
    status, response, data = await served.call("POST", "/v2/models/id_UINT8/infer", body, **headers)
    assert status == 200
    assert zlib.decompress(data)[int(response.headers[HEADER_LENGTH]) :] == elements


async def test_unknown_coding(served: Served) -> None:
    status, response, data = await served.call("POST", "/v2/models/simple/infer", b"x", **{"Content-Encoding": "br"})
    assert (status, response.headers["Accept-Encoding"]) == (501, "gzip, deflate")
    assert "Unsupported compression type" in json.loads(data)["error"]


async def test_repository(served: Served) -> None:
    entry = {"name": "simple", "version": "1", "state": "READY", "reason": ""}
    unloaded = {"name": "bad", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert await served.json("POST", "/v2/repository/index") == (200, [entry, {"name": "cold"}, unloaded])
    assert await served.json("POST", "/v2/repository/index", {"ready": True}) == (200, [entry])
    assert (await served.json("POST", "/v2/repository/index", {"ready": "yes"}))[0] == 400
    body = {"parameters": {"config": "{}", "file:1/model.onnx": encode_file(b"\0model"), "x": True}}
    status, _, data = await served.call("POST", "/v2/repository/models/m/load", body)
    assert (status, data) == (200, b"")
    parameters = {"config": "{}", "file:1/model.onnx": b"\0model", "x": True}
    assert (await served.call("POST", "/v2/repository/models/m/unload"))[0] == 200
    assert served.plane.calls == [("load", "m", parameters), ("unload", "m", {})]
    for parameters_sent, text in (({"foo": 1}, "'foo'"), ({"file:x": "!"}, "base64"), ({"k": []}, "invalid type")):
        status, document = await served.json("POST", "/v2/repository/models/m/load", {"parameters": parameters_sent})
        assert (status, text in document["error"]) == (400, True)
    assert (await served.json("POST", "/v2/repository/models/nope/load"))[0] == 400


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000 + b"\r\n\r\n", 431),
        (b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
async def test_malformed_http_is_answered_in_json(served: Served, request_text: bytes, status: int) -> None:
    reader, writer = await served.connect()
    writer.write(request_text)
    head, body = await read_answer(reader)
    assert head.startswith(f"HTTP/1.1 {status} ") or head.startswith(f"HTTP/1.0 {status} ")
    assert "application/json" in head
    assert json.loads(body)["error"]
    assert await reader.read() == b""
    writer.close()


async def test_body_over_the_limit_is_refused_unread() -> None:
    async with serve(max_body_bytes=1000) as served:
        reader, writer = await served.connect()
        writer.write(announcement(1001, "Expect: 100-continue\r\n"))
        head, body = await read_answer(reader)
        assert "413" in head
        assert "Connection: close" in head
        assert "limit of 1000 B" in json.loads(body)["error"]
        writer.close()
        bomb = gzip.compress(bytes(MIB // 2))
        assert len(bomb) < 1000
        assert (await served.infer("simple", bomb, **{"Content-Encoding": "gzip"}))[0] == 413
        reader, writer = await served.connect()
        writer.write(
            announcement(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"100\r\n" + b"a" * 256
        )
        writer.write((b"\r\n100\r\n" + b"a" * 256) * 4)
        head, _ = await read_answer(reader)
        assert "413" in head
        writer.close()
        assert served.plane.refusals == [Limit.TOO_LARGE] * 3


async def test_continue_is_sent_once_the_body_is_paid_for(served: Served) -> None:
    body = json.dumps(simple_request()).encode()
    reader, writer = await served.connect()
    writer.write(announcement(len(body), "Expect: 100-continue\r\n"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert served.plane.bodies.used_bytes == len(body)
    writer.write(body)
    head, _ = await read_answer(reader)
    assert "200" in head
    writer.close()


async def test_chunked_body(served: Served) -> None:
    body = json.dumps(simple_request()).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50):
            yield body[start : start + 50]
            await asyncio.sleep(0)

    url = f"http://127.0.0.1:{served.port}/v2/models/simple/infer"
    async with served.session.post(url, data=chunks()) as response:
        assert response.status == 200


async def test_half_a_request_cannot_hold_the_budget() -> None:
    async with serve(FakeDataPlane(request_timeout_s=0.05)) as served:
        reader, writer = await served.connect()
        writer.write(announcement(1000) + b"{")
        head, body = await read_answer(reader)
        assert "504" in head
        assert "did not arrive" in json.loads(body)["error"]
        assert served.plane.refusals == [Limit.RECEIVE_TIMEOUT]
        assert served.plane.bodies.used_bytes == 0
        writer.close()


async def test_client_that_vanishes_while_it_sends(served: Served) -> None:
    _, writer = await served.connect()
    writer.write(announcement(1000) + b"{")
    await until(lambda: served.plane.bodies.used_bytes == 1000)
    writer.transport.abort()
    await until(lambda: served.plane.bodies.used_bytes == 0)


async def test_client_that_vanishes_while_it_waits(served: Served) -> None:
    body = b'{"inputs":[{"name":"IN","datatype":"INT32","shape":[1],"data":[1]}]}'
    _, writer = await served.connect()
    writer.write(announcement(len(body)).replace(b"simple", b"hang") + body)
    await served.plane.started.wait()
    assert served.plane.bodies.used_bytes == len(body)
    writer.transport.abort()
    await served.plane.cancelled.wait()
    await until(lambda: served.plane.bodies.used_bytes == 0)


async def test_a_thousand_announcements_are_refused_unread() -> None:
    async with serve(FakeDataPlane(body_bytes=256 * MIB, request_timeout_s=60.0)) as served:
        writers = []
        before = psutil.Process().memory_info().rss
        for _ in range(4):
            _, writer = await served.connect()
            writer.write(announcement(64 * MIB))
            writers.append(writer)
        await until(lambda: served.plane.bodies.used_bytes == 256 * MIB)

        async def announce() -> None:
            reader, writer = await served.connect()
            writer.write(announcement(64 * MIB))
            head, body = await read_answer(reader)
            assert head.startswith("HTTP/1.1 429 ")
            assert "Retry-After: 1" in head
            assert "Connection: close" in head
            assert "256 MiB" in json.loads(body)["error"]
            writer.close()

        for _ in range(10):
            async with asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(announce())
        assert served.plane.refusals == [Limit.BODY_BUDGET] * 1000
        assert served.plane.bodies.used_bytes == 256 * MIB
        assert psutil.Process().memory_info().rss < before + 64 * MIB
        for writer in writers:
            writer.transport.abort()
        await until(lambda: served.plane.bodies.used_bytes == 0)
        assert (await served.infer("simple", simple_request()))[0] == 200


def big_request(fill: int) -> bytes:
    document = {"inputs": [], "parameters": {"size": ANSWER_BYTES, "fill": fill, "binary_data_output": True}}
    body = json.dumps(document).encode()
    return announcement(len(body)).replace(b"simple", b"big") + body


async def read_slowly() -> None:
    async with serve() as served:
        slow = []
        for fill in range(1, 5):
            reader, writer = await served.connect(receive_bytes=4096)
            writer.write(big_request(fill))
            slow.append((fill, reader, writer))

        async def others() -> None:
            for fill in range(100, 120):
                body = {"inputs": [], "parameters": {"size": ANSWER_BYTES, "fill": fill, "binary_data_output": True}}
                status, _, data = await served.call("POST", "/v2/models/big/infer", body)
                assert status == 200
                assert data.count(fill.to_bytes()) >= ANSWER_BYTES

        async def check(fill: int, reader: asyncio.StreamReader) -> None:
            _, body = await read_answer(reader)
            elements = body[-ANSWER_BYTES:]
            assert elements.count(fill.to_bytes()) == ANSWER_BYTES

        await others()
        async with asyncio.TaskGroup() as group:
            group.create_task(others())
            for fill, reader, _ in slow:
                group.create_task(check(fill, reader))
        for _, reader, writer in slow:
            # The connection is as good as before for the next answer.
            writer.write(announcement(2) + b"{}")
            head, _ = await read_answer(reader)
            assert "400" in head
            writer.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_slow_reader_gets_the_right_bytes(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    run_on(loop, read_slowly())


async def read_nothing() -> None:
    async with serve(write_timeout_s=0.2) as served:
        reader, writer = await served.connect(receive_bytes=4096)
        writer.write(big_request(7))
        await until(lambda: served.plane.bodies.used_bytes > 0)
        await until(lambda: served.plane.bodies.used_bytes == 0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await read_answer(reader)
        writer.close()
        assert (await served.infer("simple", simple_request()))[0] == 200


@pytest.mark.parametrize("loop", LOOPS)
def test_client_that_reads_nothing_is_cut_off(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    run_on(loop, read_nothing())


async def pipeline_without_reading() -> None:
    async with serve(write_timeout_s=0.2) as served:
        _, writer = await served.connect(receive_bytes=4096)
        lost = asyncio.Event()
        text = json.dumps(simple_request()).encode()

        async def flood() -> None:
            try:
                while True:
                    writer.write(announcement(len(text)) + text)
                    await writer.drain()
            except ConnectionError:
                lost.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(flood())
            await lost.wait()
        await until(lambda: served.plane.bodies.used_bytes == 0)


@pytest.mark.parametrize("loop", LOOPS)
def test_pipelining_without_reading_is_cut_off(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    run_on(loop, pipeline_without_reading())


async def test_large_body_arrives_whole(served: Served) -> None:
    elements = np.random.default_rng(2).integers(0, 255, 5 * MIB, np.uint8)
    document = {
        "inputs": [
            {"name": "IN", "datatype": "UINT8", "shape": [1, 5 * MIB], "parameters": {"binary_data_size": 5 * MIB}}
        ],
        "outputs": [{"name": "OUT", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(document).encode()
    path = "/v2/models/id_UINT8/infer"
    status, _, data = await served.call("POST", path, head + elements.tobytes(), **{HEADER_LENGTH: str(len(head))})
    assert status == 200
    assert data[-5 * MIB :] == elements.tobytes()
    assert to_array(served.plane.requests[0].inputs[0]).shape == (1, 5 * MIB)


async def test_large_json_both_ways(served: Served) -> None:
    data = [index / 8 for index in range(200_000)]
    document = {"inputs": [{"name": "IN", "datatype": "FP32", "shape": [2, 100_000], "data": data}]}
    for headers in ({}, {"Accept-Encoding": "gzip"}):
        status, _, body = await served.call("POST", "/v2/models/id_FP32/infer", document, **headers)
        answer = json.loads(gzip.decompress(body) if headers else body)
        assert status == 200
        assert answer["outputs"] == [{"name": "OUT", "datatype": "FP32", "shape": [2, 100_000], "data": data}]
    data[-1] = "x"  # type: ignore[call-overload]
    status, error = await served.infer("id_FP32", document)
    assert (status, "element 199999 is a string" in error["error"]) == (400, True)
    outputs = pack_bytes([b"\xff" * 300_000])
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "IN",
                    "datatype": "BYTES",
                    "shape": [1, 1],
                    "parameters": {"binary_data_size": len(outputs)},
                }
            ]
        }
    ).encode()
    status, error = await served.infer("id_BYTES", head + outputs, **{HEADER_LENGTH: str(len(head))})
    assert (status, "not UTF-8" in error["error"]) == (400, True)


async def test_large_files_in_a_load_call(served: Served) -> None:
    file = np.random.default_rng(3).bytes(700_001)
    for text, status in ((encode_file(file), 200), (encode_file(file[:-1]) + encode_file(file), 400)):
        assert (await served.call("POST", "/v2/repository/models/m/load", {"parameters": {"file:1/model.onnx": text}}))[
            0
        ] == status
    assert served.plane.calls == [("load", "m", {"file:1/model.onnx": file})]

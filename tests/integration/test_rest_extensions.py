from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from roost.server.restrictions import Restrictions
from roost.server.transport_options import TransportOptions

from tests.integration.rest_place import (
    HEADER_LENGTH,
    Served,
    announcement,
    read_answer,
    serve,
    simple_request,
    until,
)

JSON = "application/json"


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as server:
        yield server


async def events(served: Served, body: Any, model: str = "stream") -> list[Any]:
    """The events of a successful stream."""
    status, response, data = await served.call("POST", f"/v2/models/{model}/generate_stream", body)
    assert (status, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    texts = data.decode().split("\n\n")
    assert texts.pop() == ""
    assert all(text.startswith("data: ") for text in texts)
    return [json.loads(text[6:]) for text in texts]


async def test_kserve_calls(served: Served) -> None:
    assert await served.json("GET", "/") == (200, {"status": "alive"})
    status, document = await served.json("GET", "/v2/models")
    assert (status, document) == (200, {"models": sorted(served.plane.contracts)})


async def test_statistics(served: Served) -> None:
    status, document = await served.json("GET", "/v2/models/simple/stats")
    (row,) = document["model_stats"]
    assert (status, row["last_inference"], row["inference_count"]) == (200, 1_700_000_000_000, 3)
    assert list(row) == [
        "name",
        "version",
        "last_inference",
        "inference_count",
        "execution_count",
        "inference_stats",
        "batch_stats",
        "memory_usage",
    ]
    assert list(row["inference_stats"]) == [
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    ]
    assert row["inference_stats"]["success"] == {"count": 1, "ns": 2000}
    assert row["inference_stats"]["fail"] == {"count": 0, "ns": 0}
    assert list(row["batch_stats"][0]) == ["batch_size", "compute_input", "compute_infer", "compute_output"]
    assert await served.json("GET", "/v2/models/simple/versions/1/stats") == (200, document)
    _, document = await served.json("GET", "/v2/models/stats")
    assert [row["name"] for row in document["model_stats"]] == ["simple", "word"]
    status, document = await served.json("GET", "/v2/models/nope/stats")
    assert (status, document["error"]) == (404, "requested model 'nope' is not available")


async def test_trace_settings(served: Served) -> None:
    start = {
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "triton",
    }
    server, model = "/v2/trace/setting", "/v2/models/simple/trace/setting"
    assert await served.json("GET", server) == (200, start)
    assert await served.json("POST", model, {"trace_rate": "7", "nobody": [1]}) == (200, {**start, "trace_rate": "7"})
    assert await served.json("GET", model) == (200, {**start, "trace_rate": "7"})
    assert await served.json("POST", server) == (200, start)
    assert await served.json("POST", server, {"trace_level": ["OFF"]}) == (200, start)
    assert await served.json("POST", model, {"trace_rate": None}) == (200, start)
    for body, status, text in (
        ({"trace_rate": "x"}, 400, "trace_rate"),
        ({"trace_rate": 7}, 400, "expected a string, got an integer"),
        ({"trace_level": 7}, 400, "expected an array"),
        ({"trace_level": [7]}, 400, "an integer in it"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, 400, "OFF"),
        ({"trace_level": ["TIMESTAMPS"]}, 400, "does not trace"),
        ({"trace_file": "x"}, 501, "trace file"),
    ):
        got, document = await served.json("POST", server, body)
        assert (got, text in document["error"]) == (status, True), body
    status, document = await served.json("POST", "/v2/models/nope/trace/setting", {"trace_rate": "7"})
    assert (status, document["error"]) == (404, "Request for unknown model : nope")
    assert (await served.json("GET", "/v2/models/simple/versions/1/trace/setting"))[0] == 404


async def test_log_settings(served: Served) -> None:
    status, start = await served.json("GET", "/v2/logging")
    assert status == 200
    assert list(start) == [
        *("log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"),
    ]
    changed = {**start, "log_verbose_level": 1, "log_info": True}
    assert await served.json("POST", "/v2/logging", {"log_verbose_level": 1, "nobody": None}) == (200, changed)
    for body, status in (({"log_file": "x"}, 501), ({"log_format": "x"}, 400), ({"log_verbose_level": None}, 400)):
        assert (await served.json("POST", "/v2/logging", body))[0] == status, body


def in_region(name: str, offset: int, **more: Any) -> dict[str, Any]:
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 64, "shared_memory_offset": offset, **more}
    return {"name": name, "datatype": "INT32", "shape": [1, 16], "parameters": parameters}


async def test_shared_memory(served: Served) -> None:
    base = "/v2/systemsharedmemory"
    elements = np.arange(32, dtype="<i4")
    served.plane.shared_memory.objects["/key"] = bytearray(elements.tobytes()) + bytearray(64)
    register = f"{base}/region/r/register"
    assert (await served.call("POST", register, {"key": "/key", "offset": 0, "byte_size": 192}))[0] == 200
    row = {"name": "r", "key": "/key", "offset": 0, "byte_size": 192}
    assert await served.json("GET", f"{base}/region/r/status") == (200, [row])
    assert await served.json("GET", f"{base}/status") == (200, [row])
    outputs: list[dict[str, Any]] = [{"name": "OUTPUT0", "parameters": in_region("", 128)["parameters"]}]
    outputs.append({"name": "OUTPUT1"})
    request = {"inputs": [in_region("INPUT0", 0), in_region("INPUT1", 64)], "outputs": outputs}
    status, document = await served.infer("simple", request)
    assert (status, document["outputs"][0]) == (200, {"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 16]})
    assert document["outputs"][1]["data"] == [-16] * 16
    sums = np.frombuffer(served.plane.shared_memory.objects["/key"], "<i4")[32:]
    assert sums.tolist() == (elements[:16] + elements[16:]).tolist()
    for body, status, text in (
        ({}, 400, "no 'key' field"),
        ({"key": "/key"}, 400, "no 'byte_size' field"),
        ({"key": 1, "byte_size": 1}, 400, "'key'"),
        ({"key": "/key", "byte_size": -1}, 400, "unsigned integer, got -1"),
        ({"key": "/key", "byte_size": 1.5}, 400, "unsigned integer"),
        ({"key": "/key", "byte_size": 1 << 64}, 400, "unsigned integer"),
        ({"key": "/key", "byte_size": 64}, 409, "already in manager"),
    ):
        got, document = await served.json("POST", register, body)
        assert (got, text in document["error"]) == (status, True), body
    for path in (f"{base}/region/r/unregister", f"{base}/region/r/unregister", f"{base}/unregister"):
        assert (await served.call("POST", path, b"{}"))[0] == 200
    assert await served.json("GET", f"{base}/status") == (200, [])
    assert (await served.json("GET", f"{base}/region/r/status"))[0] == 404
    assert (await served.json("GET", register))[0] == 405


async def test_cuda_shared_memory(served: Served) -> None:
    base = "/v2/cudasharedmemory"
    assert await served.json("GET", f"{base}/status") == (200, [])
    for body in (
        {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 64},
        {"raw_handle": {"b64": "!"}, "device_id": 0, "byte_size": 64},
        {"raw_handle": "AAAA", "device_id": 0, "byte_size": 64},
        {},
    ):
        status, document = await served.json("POST", f"{base}/region/r/register", body)
        assert (status, bool(document["error"])) == (400, True), body
    assert (await served.call("POST", f"{base}/unregister"))[0] == 200


async def test_generate(served: Served) -> None:
    request = {"IN": "hi", "id": "g1", "temperature": 0.5, "parameters": {"stop": "x"}}
    status, response, data = await served.call("POST", "/v2/models/word/generate", request)
    assert (status, response.content_type) == (200, JSON)
    assert data == b'{"OUT":"hi","id":"g1","model_name":"word","model_version":"1"}'
    assert served.plane.requests[0].parameters == {"temperature": 0.5, "stop": "x"}
    status, document = await served.json("POST", "/v2/models/id_FP32/versions/1/generate", {"IN": [0.5, 1]})
    assert (status, document["OUT"]) == (200, [0.5, 1.0])
    assert served.plane.requests[1].inputs[0].shape == (1, 2)
    status, document = await served.json("POST", "/v2/models/stream/generate", {"parameters": {"IN": 5}})
    assert (status, document["OUT"]) == (200, 5)
    long = ["x" * 1000] * 300
    status, document = await served.json("POST", "/v2/models/id_BYTES/generate", {"IN": long})
    assert (status, document["OUT"]) == (200, long)


@pytest.mark.parametrize(
    ("model", "body", "status", "text"),
    [
        ("stream", {"IN": [1, 2]}, 500, "exactly 1 response, got more than one"),
        ("stream", {"IN": []}, 500, "exactly 1 response, got none"),
        ("stream", {"IN": [1], "fail_after": 0}, 500, "the model failed"),
        ("word", {"IN": 5}, 400, "element 0 is an integer"),
        ("word", {"IN": "x", "parameters": 5}, 400, "'parameters'"),
        ("word", {"IN": "x", "parameters": {"IN": "y"}}, 400, "given twice"),
        ("word", {"IN": "x", "bar": [1]}, 400, "'bar'"),
        ("word", {"IN": "x", "id": 5}, 400, "Unable to parse 'id'"),
        ("word", {}, 400, "expected 1 inputs but got 0 inputs"),
        ("word", [], 400, "expected an object"),
        ("nope", {"IN": "x"}, 404, "'nope' is not found"),
    ],
)
async def test_generate_refuses(served: Served, model: str, body: Any, status: int, text: str) -> None:
    for call in ("generate", "generate_stream") if "exactly" not in text else ("generate",):
        got, document = await served.json("POST", f"/v2/models/{model}/{call}", json.dumps(body))
        assert (got, text in document["error"]) == (status, True), document


async def test_generate_takes_no_compressed_requests(served: Served) -> None:
    for coding, status in (("identity", 200), ("gzip", 400), ("br", 400)):
        got, _ = await served.json("POST", "/v2/models/word/generate", {"IN": "x"}, Content_Encoding=coding)
        assert got == status


async def test_generate_stream(served: Served) -> None:
    expected = [{"OUT": n, "id": "s", "model_name": "stream", "model_version": "1"} for n in (5, 6)]
    for parameters in ({}, {"final_with_last": True}):
        assert await events(served, {"IN": [5, 6], "id": "s", "parameters": parameters}) == expected
    assert await events(served, {"IN": []}) == []
    assert [event["OUT"] for event in await events(served, {"IN": "x"}, "word")] == ["x"]
    failed = await events(served, {"IN": [5, 6], "fail_after": 1})
    assert [event.get("OUT", event.get("error")) for event in failed] == [5, "the model failed"]
    assert (await served.infer("simple", simple_request()))[0] == 200


def stream_request(**body: Any) -> bytes:
    text = json.dumps(body).encode()
    return announcement(len(text)).replace(b"simple/infer", b"stream/generate_stream") + text


async def test_a_client_that_vanishes_ends_its_stream(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(stream_request(IN=[1, 2], wait_after=1))
    await reader.readuntil(b"\n\n")
    await served.plane.started.wait()
    writer.transport.abort()
    await served.plane.cancelled.wait()
    await until(lambda: served.plane.bodies.used_bytes == 0)


async def test_events_come_as_they_are_made(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(stream_request(IN=[1, 2], wait_after=1))
    assert b'"OUT":1,' in await reader.readuntil(b"\n\n\r\n")
    served.plane.go.set()
    assert b'"OUT":2,' in await reader.readuntil(b"\r\n0\r\n\r\n")
    # The connection is as good as before.
    writer.write(announcement(2) + b"{}")
    head, _ = await read_answer(reader)
    assert "400" in head
    writer.close()


async def test_a_reader_that_is_too_slow_ends_its_stream() -> None:
    async with serve(write_timeout_s=0.2) as served:
        count = 100_000
        _, writer = await served.connect(receive_bytes=4096)
        writer.write(stream_request(IN=list(range(count))))
        await until(lambda: served.plane.bodies.used_bytes > 0)
        await until(lambda: served.plane.bodies.used_bytes == 0)
        assert 0 < served.plane.streamed < count
        writer.close()
        assert (await served.infer("simple", simple_request()))[0] == 200


async def test_forwarded_headers() -> None:
    options = TransportOptions(forward_headers=re.compile("^x-user"))
    async with serve(options=options) as served:
        headers = {"X-User-Name": "ann", "Y": "no"}
        body = simple_request(parameters={"a": 1, "X-User-Name": "bob"})
        assert (await served.infer("simple", body, **headers))[0] == 200
        assert (await served.json("POST", "/v2/models/word/generate", {"IN": "x"}, **headers))[0] == 200
        assert [request.parameters for request in served.plane.requests] == [
            {"a": 1, "X-User-Name": "ann"},
            {"X-User-Name": "ann"},
        ]


async def test_restricted_calls() -> None:
    options = TransportOptions(restrictions=Restrictions.parse(["inference,trace:x-key=secret"]))
    async with serve(options=options) as served:
        for method, path in (
            ("POST", "/v2/models/simple/infer"),
            ("GET", "/v2/models/simple/infer"),
            ("POST", "/v2/models/simple/versions/1/generate_stream"),
            ("GET", "/v2/trace/setting"),
        ):
            status, document = await served.json(method, path)
            assert (status, "'x-key'" in document["error"]) == (403, True), path
        status, document = await served.infer("simple", simple_request(), X_Key="wrong")
        assert status == 403
        assert (await served.infer("simple", simple_request(), X_Key="secret"))[0] == 200
        status, response, _ = await served.call("PUT", "/v2/trace/setting", X_Key="secret")
        assert (status, response.headers["Allow"]) == (405, "GET,POST")
        assert (await served.json("GET", "/v2/models/simple"))[0] == 200


async def test_statuses_of_triton() -> None:
    async with serve(options=TransportOptions(compat_triton=True)) as served:
        one = {"name": "INPUT0", "datatype": "INT32", "shape": [1, 16]}
        for body, status in (
            (b"{", 500),
            ({}, 500),
            ({"id": 5, "inputs": []}, 500),
            ({"inputs": [{**one, "data": [1]}]}, 500),
            ({"inputs": [{**one, "data": ["1"] * 16}]}, 500),
            ({"inputs": [{**one, "shape": [-1, 16], "data": [1] * 16}]}, 500),
            ({"inputs": []}, 400),
            ({"inputs": [one]}, 400),
            ({"inputs": [], "parameters": {"k": None}}, 400),
        ):
            assert (await served.infer("simple", body))[0] == status, body
        assert (await served.json("POST", "/v2/models/word/generate", {"IN": 5}))[0] == 500
        assert (await served.json("GET", "/v2/models/nope"))[0] == 404
        assert (await served.json("GET", "/v2/models/nope/stats"))[0] == 400
        assert (await served.json("GET", "/v2/models/nope/trace/setting"))[0] == 400
        assert (await served.json("POST", "/v2/logging", {"log_format": "x"}))[0] == 503
        load = "/v2/repository/models/{}/load"
        assert (await served.json("POST", load.format("nope")))[0] == 500
        assert (await served.json("POST", load.format("simple"), {"parameters": {"foo": "x"}}))[0] == 500
        served.plane.shared_memory.objects["/key"] = bytearray(8)
        body = {"key": "/key", "byte_size": 8}
        register = "/v2/systemsharedmemory/region/r/register"
        assert [(await served.call("POST", register, body))[0] for _ in range(2)] == [200, 400]


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: 2\r\n folded: x\r\n",
        "Content-Length : 2\r\n",
        f"Content-Length: 2\r\n{HEADER_LENGTH}: 2\r\n{HEADER_LENGTH}: 0\r\n",
        "Content-Length: 2\r\nContent-Encoding: identity\r\nContent-Encoding: gzip\r\n",
    ],
)
async def test_headers_with_two_meanings_are_refused(served: Served, headers: str) -> None:
    reader, writer = await served.connect()
    writer.write(f"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\n{headers}\r\n{{}}".encode())
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = await asyncio.wait_for(read_answer(reader), 10)
    assert head.split()[1] in ("400", "501"), head
    assert json.loads(body)["error"]
    assert await reader.read() == b""
    writer.close()


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    reader, writer = await served.connect()
    bodies = [json.dumps(simple_request(id=f"{n}")).encode() for n in range(5)]
    writer.write(b"".join(announcement(len(body)) + body for body in bodies))
    ids = [json.loads((await read_answer(reader))[1])["id"] for _ in bodies]
    assert ids == ["0", "1", "2", "3", "4"]
    writer.close()


async def test_only_infer_answers_are_compressed(served: Served) -> None:
    for method, path, body in (
        ("GET", "/v2/models/simple/config", None),
        ("GET", "/v2/models/stats", None),
        ("POST", "/v2/models/word/generate", {"IN": "x"}),
    ):
        _, response, _ = await served.call(method, path, body, Accept_Encoding="gzip")
        assert "Content-Encoding" not in response.headers

"""KServe's v1 protocol, asked of a real server."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from roost.core.metadata import ModelMetadata
from roost.server.restrictions import Restrictions
from roost.server.transport_options import TransportOptions

from tests.fakes import FakeDataPlane
from tests.integration.rest_place import HEADER_LENGTH, serve
from tests.models import write_dummy, write_garbage, write_identity, write_simple
from tests.server import DEADLINE_S, HOST, RoostServer, started

SUM = [[sum_] * 16 for sum_ in (5, 11)]
DIFFERENCE = [[difference] * 16 for difference in (1, -1)]
PAIRS = [{"INPUT0": [3] * 16, "INPUT1": [2] * 16}, {"INPUT0": [5] * 16, "INPUT1": [6] * 16}]
COLUMNS = {name: [row[name] for row in PAIRS] for name in ("INPUT0", "INPUT1")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("v1")
    models = folder / "models"
    write_simple(models / "simple" / "1" / "model.onnx")
    write_simple(models / "batched" / "1" / "model.onnx", batch=-1)
    (models / "batched" / "config.pbtxt").write_text("max_batch_size: 8\n")
    for datatype in ("FP32", "BYTES", "INT64"):
        write_identity(models / f"identity_{datatype}" / "1" / "model.onnx", datatype)
    write_identity(models / "words" / "1" / "model.onnx", "BYTES", (-1,))
    write_garbage(models / "broken" / "1" / "model.onnx")
    decoupled = models / "decoupled"
    write_dummy(decoupled / "1" / "model.dummy")
    (decoupled / "config.pbtxt").write_text("model_transaction_policy { decoupled: true }\n")
    with started(
        models, folder / "run", "--workers", "1", "--model-control", "explicit", "--load-model", "*"
    ) as running:
        yield running


def test_models(server: RoostServer) -> None:
    status, body = server.get("/v1/models")
    assert status == 200
    assert {"simple", "batched", "words"} <= set(body["models"])
    assert server.get("/v1/models/simple") == (200, {"name": "simple", "ready": True})
    assert server.get("/v1/models/none") == (404, {"error": "Model with name none does not exist."})
    assert server.post("/v2/repository/models/words/unload")[0] == 200
    status, body = server.get("/v1/models/words")
    assert status == 503
    assert body["error"].startswith("Model with name words is not ready.")
    assert server.post("/v1/models/words:predict", {"instances": ["a"]})[0] == 404
    assert server.post("/v2/repository/models/words/load")[0] == 200
    assert server.get("/v1/models/words")[0] == 200


@pytest.mark.parametrize(
    ("path", "document", "expected"),
    [
        (
            "batched",
            {"instances": PAIRS},
            {"predictions": [{"OUTPUT0": a, "OUTPUT1": b} for a, b in zip(SUM, DIFFERENCE, strict=True)]},
        ),
        ("batched", {"inputs": COLUMNS}, {"outputs": {"OUTPUT0": SUM, "OUTPUT1": DIFFERENCE}}),
        ("simple", {"instances": PAIRS[:1]}, {"predictions": [{"OUTPUT0": SUM[0], "OUTPUT1": DIFFERENCE[0]}]}),
        ("simple/versions/1", {"instances": PAIRS[:1], "signature_name": "serving_default"}, None),
        ("identity_FP32", {"instances": [[0.5, 1], [2, 3]]}, {"predictions": [[0.5, 1.0], [2.0, 3.0]]}),
        ("identity_FP32", {"inputs": [[0.5, 1]]}, {"outputs": [[0.5, 1.0]]}),
        ("identity_INT64", {"instances": [[2**63 - 1]]}, {"predictions": [[2**63 - 1]]}),
        ("identity_BYTES", {"instances": [["a", {"b64": "w6k="}]]}, {"predictions": [["a", "é"]]}),
        ("words", {"instances": ["foo", "bar"]}, {"predictions": ["foo", "bar"]}),
    ],
)
def test_predict(server: RoostServer, path: str, document: Any, expected: Any) -> None:
    status, body = server.post(f"/v1/models/{path}:predict", document)
    assert status == 200, body
    if expected is not None:
        assert body == expected


@pytest.mark.parametrize(
    ("path", "document", "status", "gist"),
    [
        ("simple:predict", {"instances": PAIRS}, 400, "no batch dimension"),
        ("batched:predict", {"instances": PAIRS * 5}, 400, "batch-size must be <= 8"),
        ("batched:predict", {"instances": [{"INPUT0": [1] * 16}]}, 400, "missing required input(s) ['INPUT1']"),
        ("batched:predict", {"instances": [[1] * 16]}, 400, "holds objects"),
        ("identity_FP32:predict", {"instances": [1.0]}, 400, "Expected [-1,-1], got [1]"),
        ("identity_BYTES:predict", {"instances": [[{"b64": "/w=="}]]}, 400, "not UTF-8"),
        ("identity_FP32:predict", None, 400, "failed to parse"),
        ("none:predict", {"instances": [1]}, 404, "none"),
        ("simple/versions/7:predict", {"instances": PAIRS[:1]}, 404, "7"),
        (f"simple/versions/{2**64}:predict", {"instances": PAIRS[:1]}, 400, "out of range"),
        ("broken:predict", {"instances": [1]}, 503, "broken"),
        ("decoupled:predict", {"instances": [[1, 2, 3, 4]]}, 501, "decoupled"),
        ("simple:explain", {"instances": PAIRS[:1]}, 501, "explain"),
        ("simple:classify", {"examples": []}, 404, "Not Found"),
    ],
)
def test_refused(server: RoostServer, path: str, document: Any, status: int, gist: str) -> None:
    code, body = server.post(f"/v1/models/{path}", document)
    assert (code, list(body)) == (status, ["error"])
    assert gist in body["error"]
    assert server.post("/v1/models/words:predict", {"instances": ["next"]}) == (200, {"predictions": ["next"]})


def test_other_methods_are_refused(server: RoostServer) -> None:
    assert server.get("/v1/models/simple:predict") == (405, {"error": "Method Not Allowed"})
    assert server.post("/v1/models/simple", {})[0] == 405


def _exchange(server: RoostServer, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(HOST, server.ports["http"], timeout=DEADLINE_S)
    try:
        connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_non_finite_numbers_go_both_ways(server: RoostServer) -> None:
    status, headers, body = _exchange(server, "/v1/models/identity_FP32:predict", b'{"instances": [[NaN, -Infinity]]}')
    assert (status, body, headers["content-type"]) == (200, b'{"predictions":[[NaN, -Infinity]]}', "application/json")


def test_quoted_path_and_compression(server: RoostServer) -> None:
    body = zlib.compress(json.dumps({"instances": ["a"]}).encode())
    status, headers, answer = _exchange(
        server, "/v1/models/words%3Apredict", body, Content_Encoding="deflate", Accept_Encoding="deflate"
    )
    assert (status, headers["content-encoding"]) == (200, "deflate")
    assert json.loads(zlib.decompress(answer)) == {"predictions": ["a"]}


def test_large_bodies_leave_room_for_others(server: RoostServer) -> None:
    """A million numbers both ways, in threads; small requests are answered meanwhile."""
    rows = [[float(row)] * 1000 for row in range(1000)]
    large: list[Any] = []
    thread = threading.Thread(
        target=lambda: large.append(server.post("/v1/models/identity_FP32:predict", {"instances": rows}))
    )
    thread.start()
    while thread.is_alive():
        assert server.post("/v1/models/words:predict", {"instances": ["a"]})[0] == 200
    thread.join()
    assert large == [(200, {"predictions": rows})]


class Cold(FakeDataPlane):
    """Its models take for ever to load."""

    async def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/simple:predict", {"instances": [1]}),
        ("/v2/models/simple/generate", {}),
        ("/v2/models/simple/infer", ""),
    ],
)
async def test_a_load_that_the_request_needs_does_not_outlast_it(path: str, body: Any) -> None:
    headers = {} if body else {HEADER_LENGTH: "0"}
    async with serve(Cold(request_timeout_s=0.05)) as served:
        status, document = await served.json("POST", path, body, **headers)
    assert (status, document) == (504, {"error": "Request timeout expired while its model was loading"})


async def test_restrictions_headers_and_codes_hold_for_v1() -> None:
    options = TransportOptions(True, re.compile("x-tenant"), Restrictions.parse(["inference:x-key=secret"]))
    async with serve(options=options) as served:
        assert (await served.json("POST", "/v1/models/word:predict", {"instances": [["a"]]}))[0] == 403
        assert (await served.json("POST", "/v1/models/word:explain", {}))[0] == 403
        assert (await served.json("GET", "/v1/models/word"))[0] == 200
        headers = {"x-key": "secret", "X-Tenant": "blue"}
        status, document = await served.json("POST", "/v1/models/word:predict", {"instances": [["a"]]}, **headers)
        assert (status, document) == (200, {"predictions": [["a"]]})
        assert served.plane.requests[-1].parameters == {"X-Tenant": "blue"}
        assert (await served.json("POST", "/v1/models/word:predict", {"instances": [[1]]}, **headers))[0] == 400


def test_document_and_page(server: RoostServer) -> None:
    status, document = server.get("/openapi.json")
    assert (status, document["openapi"][:3]) == (200, "3.1")
    assert "/v1/models/{model}:predict" in document["paths"]
    connection = http.client.HTTPConnection(HOST, server.ports["admin"], timeout=DEADLINE_S)
    try:
        connection.request("GET", "/docs")
        response = connection.getresponse()
        page = response.read().decode()
    finally:
        connection.close()
    assert (response.status, response.headers.get_content_type()) == (200, "text/html")
    assert "/v1/models/{model}:predict" in page

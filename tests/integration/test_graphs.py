"""Inference graphs, asked of a real server: as KServe's router over REST, and as models over both protocols."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import helper
from roost.core.errors import Code
from roost.core.tensors import Tensor, from_array, to_array

from tests.clients import TRANSPORTS, CallFailed, connect
from tests.models import tensor_info, write_dummy, write_garbage, write_graph, write_identity, write_simple
from tests.server import DEADLINE_S, HOST, RoostServer, eventually, run_to_end, started

PAIR = (-1, 2)


def _service(model: str, **fields: Any) -> dict[str, Any]:
    return {"serviceName": model, **fields}


def _graph(name: str, routing: str, *steps: dict[str, Any], timeout: int = 60, **nodes: Any) -> dict[str, Any]:
    nodes["root"] = {"routerType": routing, "steps": list(steps)}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": name},
        "spec": {"timeout": timeout, "nodes": nodes},
    }


BEHIND = {"data": "$response"}
HARD = {"dependency": "Hard"}
BOTH: dict[str, Any] = {
    "routerType": "Ensemble",
    "steps": [_service("double", name="left"), _service("floats", name="right")],
}
NEVER = {"routerType": "Switch", "steps": [_service("ints", condition="x")]}
VERSION = "/v2/models/double/versions/1/infer"
GRAPHS = [
    _graph("chain", "Sequence", _service("double"), _service("double", **BEHIND)),
    _graph("retyped", "Sequence", _service("ints"), _service("floats", **BEHIND, mapPredictionsToInstances=True)),
    _graph(
        "by-kind",
        "Switch",
        _service("ints", condition='[@this].#(kind=="number")'),
        _service("words", condition='inputs.#(datatype=="BYTES")'),
        _service("words", condition="[@this].#(parameters.words==true)"),
    ),
    _graph("both", "Ensemble", *BOTH["steps"], _service("down")),
    _graph("stack", "Sequence", {"nodeName": "both"}, _service("sum", **BEHIND), both=BOTH),
    _graph("hard", "Sequence", _service("down", **HARD), _service("double")),
    _graph("soft", "Sequence", _service("down"), _service("double")),
    _graph("starved", "Sequence", _service("down"), _service("double", **BEHIND)),
    _graph("unknown", "Ensemble", _service("double"), _service("nobody", **HARD)),
    _graph("nested", "Sequence", {"nodeName": "by"}, by=NEVER),
    _graph("guarded", "Sequence", _service("floats"), _service("double", **BEHIND, condition="predictions.#(0>1)")),
    _graph("split", "Splitter", _service("words", weight=0), {"serviceUrl": VERSION, "weight": 100}),
    _graph("late", "Ensemble", _service("slow", **HARD), _service("double"), timeout=1),
    _graph("echoed", "Sequence", _service("echo", **HARD), _service("echo", **BEHIND)),
    _graph("endless", "Sequence", _service("slow")),
    _graph("broken-one", "Sequence", _service("broken", **HARD)),
    _graph("several", "Sequence", _service("simple"), _service("simple")),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("graphs")
    models = folder / "models"
    write_simple(models / "simple" / "1" / "model.onnx", batch=-1)
    for name, datatype in (("ints", "INT64"), ("floats", "FP32"), ("words", "BYTES")):
        write_identity(models / name / "1" / "model.onnx", datatype, (-1,) if name == "words" else (-1, -1))
    two = [tensor_info("INPUT0", "FP32", PAIR)], [tensor_info("OUTPUT0", "FP32", PAIR)]
    write_graph(models / "double" / "1" / "model.onnx", [helper.make_node("Add", ["INPUT0"] * 2, ["OUTPUT0"])], *two)
    write_graph(
        models / "sum" / "1" / "model.onnx",
        [helper.make_node("Add", ["left", "right"], ["total"])],
        [tensor_info("left", "FP32", PAIR), tensor_info("right", "FP32", PAIR)],
        [tensor_info("total", "FP32", PAIR)],
    )
    row = ("INPUT0", "FP32", PAIR), ("OUTPUT0", "FP32", PAIR)
    write_dummy(models / "down" / "1" / "model.dummy", row[:1], row[1:], fail="it is down", fail_code="UNAVAILABLE")
    write_dummy(models / "echo" / "1" / "model.dummy", row[:1], row[1:])
    write_dummy(models / "slow" / "1" / "model.dummy", row[:1], row[1:], run_s=60, begun=str(folder / "begun"))
    write_garbage(models / "broken" / "1" / "model.onnx")
    (folder / "graphs.yaml").write_text(yaml.safe_dump_all(GRAPHS, sort_keys=False))
    flags = ["--workers", "1", "--graphs", str(folder / "graphs.yaml"), "--http-header-forward-pattern", "^fail$"]
    with started(models, folder / "run", *flags) as running:
        yield running


def ask(server: RoostServer, graph: str, document: Any) -> tuple[int, Any]:
    return server.post(f"/graphs/{graph}", document)


def v2(data: list[Any], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    shape = list(np.shape(data))
    return {"inputs": [{"name": "INPUT0", "datatype": datatype, "shape": shape, "data": data}], **more}


ROW = {"instances": [[1, 2.5]]}
DOUBLE = {"predictions": [[2.0, 5.0]]}
DOWN = {"error": "it is down"}


@pytest.mark.parametrize(
    ("graph", "document", "expected"),
    [
        ("chain", ROW, {"predictions": [[4.0, 10.0]]}),
        ("chain", {"inputs": [[1, 2.5], [0, 1]]}, {"outputs": [[4.0, 10.0], [0.0, 4.0]]}),
        ("chain", {"predictions": [[1, 2.5]]}, {"predictions": [[4.0, 10.0]]}),
        ("retyped", {"instances": [[1, 2]]}, {"predictions": [[1.0, 2.0]]}),
        ("by-kind", {"instances": [[7]], "kind": "number"}, {"predictions": [[7]]}),
        ("by-kind", {"instances": ["a"], "parameters": {"words": True}}, {"predictions": ["a"]}),
        ("both", ROW, {"left": DOUBLE, "right": {"predictions": [[1.0, 2.5]]}, "2": DOWN}),
        ("stack", ROW, {"predictions": [[3.0, 7.5]]}),
        ("soft", ROW, DOUBLE),
        ("guarded", ROW, {"predictions": [[1.0, 2.5]]}),
        ("guarded", {"instances": [[2, 0]]}, {"predictions": [[4.0, 0.0]]}),
        ("split", ROW, DOUBLE),
        (
            "several",
            {"instances": [{"INPUT0": [3] * 16, "INPUT1": [2] * 16}]},
            {"predictions": [{"OUTPUT0": [5] * 16, "OUTPUT1": [1] * 16}]},
        ),
    ],
)
def test_graphs_answer_as_in_kserve(server: RoostServer, graph: str, document: Any, expected: Any) -> None:
    assert ask(server, graph, document) == (200, expected)


def test_v2_goes_through_graphs_as_it_is(server: RoostServer) -> None:
    status, body = ask(server, "chain", v2([[1, 2.5]], id="7"))
    output = {"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 2], "data": [4.0, 10.0]}
    assert (status, body) == (200, {"id": "7", "model_name": "double", "model_version": "1", "outputs": [output]})
    expected = {"id": "7", "model_name": "chain", "model_version": "1", "outputs": [output]}
    assert server.post("/v2/models/chain/infer", v2([[1, 2.5]], id="7")) == (200, expected)
    status, body = ask(server, "both", v2([[1, 2.5]], id="7"))
    assert (status, list(body)) == (200, ["left", "right", "2"])
    assert (body["left"]["id"], body["left"]["outputs"][0]["data"], body["2"]) == ("7", [2.0, 5.0], DOWN)
    status, body = ask(server, "by-kind", v2(["a"], "BYTES"))
    assert body["outputs"][0]["data"] == ["a"]
    assert ask(server, "retyped", v2([[1]], "INT64"))[0] == 400  # v2 has datatypes, and keeps them


@pytest.mark.parametrize(
    ("graph", "document", "status", "gist"),
    [
        ("hard", ROW, 503, "it is down"),
        ("starved", ROW, 400, "there is no input for model 'double', the step before has failed: it is down"),
        ("unknown", ROW, 404, "nobody"),
        ("broken-one", v2([[1.0]]), 503, "broken"),
        ("late", ROW, 504, "timeout"),
        ("chain", {"instances": [["a", "b"]]}, 400, "expects"),
        ("chain", {}, 400, "this one has neither"),
        ("chain", [1], 400, "expected an object, got an array"),
        ("chain", None, 400, "failed to parse"),
        ("nobody", ROW, 404, "there is no graph 'nobody'"),
    ],
)
def test_failures_are_those_of_the_step(server: RoostServer, graph: str, document: Any, status: int, gist: str) -> None:
    code, body = ask(server, graph, document)
    assert (code, list(body)) == (status, ["error"])
    assert gist in body["error"]
    assert ask(server, "split", ROW) == (200, DOUBLE)


def test_what_graphs_fail_with_themselves(server: RoostServer) -> None:
    cause = "None of the routes matched with the switch condition"
    error = {"error": "Failed to process request", "cause": cause}
    assert ask(server, "by-kind", ROW) == (404, error)
    assert ask(server, "nested", ROW) == (500, {**error, "cause": f"{cause} of node 'by'"})


def test_lists_and_readiness(server: RoostServer) -> None:
    assert server.get("/graphs") == (200, {"graphs": sorted(graph["metadata"]["name"] for graph in GRAPHS)})
    assert server.get("/graphs/chain/ready") == (200, {"name": "chain", "ready": True})
    status, body = server.get("/graphs/unknown/ready")
    assert (status, body["error"]) == (503, "graph 'unknown' is not ready, since these models are not: nobody")
    assert server.get("/graphs/nobody/ready")[0] == 404
    assert server.get("/v2/models/chain/ready") == (200, {"name": "chain", "ready": True})
    assert server.get("/v2/models/unknown/ready")[0] == 400
    assert [server.get(f"/v2/models/chain{what}")[0] for what in ("", "/config")] == [501, 501]
    assert server.get("/graphs/chain")[0] == 405


def _post(server: RoostServer, graph: str, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(HOST, server.ports["http"], timeout=DEADLINE_S)
    try:
        connection.request("POST", f"/graphs/{graph}", json.dumps(ROW), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_headers_go_to_the_models_if_the_operator_says_so(server: RoostServer) -> None:
    assert _post(server, "echoed") == (200, {"predictions": [[1.0, 2.5]]})
    assert _post(server, "echoed", fail="as it was told") == (500, {"error": "as it was told"})


def test_large_answers_and_binary_bodies(server: RoostServer) -> None:
    rows = [[float(row), 0.5] for row in range(50_000)]
    assert ask(server, "chain", {"instances": rows}) == (200, {"predictions": [[4 * a, 4 * b] for a, b in rows]})
    status, body = _post(server, "chain", **{"Inference-Header-Content-Length": "28"})
    assert (status, body["error"]) == (400, "graphs take JSON here; with binary tensors ask /v2/models/chain/infer")


def _pair(name: str = "INPUT0") -> list[Tensor]:
    return [from_array(name, "FP32", np.array([[1, 2.5]], np.float32))]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_graphs_are_models_with_tensors(server: RoostServer, transport: str) -> None:
    async with connect(server, transport) as client:
        assert await client.is_ready("stack")
        answer = await client.infer("stack", _pair(), outputs=["total"])
        assert (answer.model_name, answer.model_version) == ("stack", "1")
        assert [(t.name, to_array(t).tolist()) for t in answer.outputs] == [("total", [[3.0, 7.5]])]
        answer = await client.infer("both", _pair(), version="1")
        assert {t.name: to_array(t).tolist() for t in answer.outputs} == {"left": [[2.0, 5.0]], "right": [[1.0, 2.5]]}
        words = [from_array("INPUT0", "BYTES", np.array(["é".encode()], object))]
        answer = await client.infer("by-kind", words)
        assert [bytes(t.data) for t in answer.outputs] == [b"\2\0\0\0\xc3\xa9"]
        refused: list[tuple[str, list[Tensor], dict[str, Any], Code]] = [
            ("by-kind", _pair(), {}, Code.NOT_FOUND),
            ("hard", _pair(), {}, Code.UNAVAILABLE),
            ("stack", _pair(), {"outputs": ["OUTPUT0"]}, Code.INVALID_ARGUMENT),
            ("stack", _pair(), {"version": "2"}, Code.NOT_FOUND),
            ("by-kind", [Tensor("INPUT0", "FP32", (1, 2), b"123")], {}, Code.INVALID_ARGUMENT),
        ]
        for graph, inputs, more, code in refused:
            with pytest.raises(CallFailed) as caught:
                await client.infer(graph, inputs, **more)
            assert caught.value.means(code), caught.value


def _runs(server: RoostServer, model: str) -> int:
    status, body = server.get(f"/v2/models/{model}/stats")
    assert status == 200
    return int(body["model_stats"][0]["inference_count"])


def test_each_step_counts_as_a_request_to_its_model(server: RoostServer) -> None:
    before = _runs(server, "double")
    assert ask(server, "chain", ROW)[0] == 200
    assert _runs(server, "double") == before + 2


def test_graphs_have_counters_of_their_own(server: RoostServer) -> None:
    def count(graph: str, code: str) -> float:
        return server.metric("roost_graph_requests_total", graph=graph, code=code)

    before = count("hard", "UNAVAILABLE"), count("soft", "OK"), count("nested", "INTERNAL")
    for graph in ("hard", "soft", "soft", "nested"):
        ask(server, graph, ROW)
    after = count("hard", "UNAVAILABLE"), count("soft", "OK"), count("nested", "INTERNAL")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 2, 1]
    assert server.metric("roost_graph_seconds_total", graph="soft") > 0


async def test_who_goes_away_cancels_the_steps(server: RoostServer) -> None:
    begun = server.folder.parent / "begun"
    before = begun.stat().st_size if begun.exists() else 0
    async with connect(server, "rest") as client:
        asking = asyncio.create_task(client.infer("endless", _pair()))
        await eventually(lambda: begun.exists() and begun.stat().st_size > before, "the slow step")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await eventually(lambda: server.in_flight() == 0, "the end of the slow step")


def test_a_file_with_a_mistake_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "graphs.yaml").write_text(yaml.safe_dump(_graph("g", "Splitter", _service("a", weight=99))))
    code, said = run_to_end(tmp_path / "models", tmp_path / "run", "--graphs", str(tmp_path / "graphs.yaml"))
    assert code == 2
    assert "must add up to 100, these come to 99" in said

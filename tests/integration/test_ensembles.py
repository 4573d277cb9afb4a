"""Ensembles on a real server: answers, batches inside of steps, streams, loads and unloads, and too little memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from roost.core.errors import Code
from roost.core.tensors import Tensor, from_array, to_array
from roost.proto import model_config_pb2 as mc

from tests.clients import TRANSPORTS, CallFailed, connect
from tests.ensembles import ensemble, step
from tests.graphs import one, write_text
from tests.models import write_dummy, write_policy
from tests.server import RoostServer, eventually, started

ROW = ("FP32", [4])
MIB = 1 << 20
LARGE = 50_000
"""Elements of a tensor that travels in shared memory."""


def write_models(folder: Path) -> None:
    """``whole`` gives twice x plus one, and twice that; ``wide`` takes rows of any size; ``numbers`` streams."""
    write_text(folder / "twice" / "1" / "model.onnx", one("y = Add(x, x)"))
    write_text(folder / "plus" / "1" / "model.onnx", one("y = Add(x, one)", weights="float[1] one = {1}"))
    for name in ("twice", "plus"):
        (folder / name / "config.pbtxt").write_text("max_batch_size: 8\ndynamic_batching { }\n")
    write_text(folder / "any" / "1" / "model.onnx", one("y = Add(x, x)", "float[N]", "float[N]"))
    steps = [
        step("plus", {"x": "t"}, {"y": "y"}),
        step("twice", {"x": "t"}, {"y": "z"}),
        step("twice", {"x": "x"}, {"y": "t"}),
    ]
    labels = 'label_filename: "labels.txt"'
    own = (folder / "twice" / "config.pbtxt").read_text() + f'output {{ name: "y" {labels} }}'
    (folder / "twice" / "config.pbtxt").write_text(own)
    (folder / "twice" / "labels.txt").write_text("A\nB\nC\nD\n")
    text = ensemble({"x": ROW}, {"y": ROW, "z": ROW}, *steps, more="max_batch_size: 8")
    write(folder, "whole", text.replace('name: "y"', f'name: "y" {labels}'))
    (folder / "whole" / "labels.txt").write_text("a\nb\nc\nd\n")
    wide = ("FP32", [-1])
    steps = [step("any", {"x": "x"}, {"y": "t"}), step("any", {"x": "t"}, {"y": "y"})]
    write(folder, "wide", ensemble({"x": wide}, {"y": wide}, *steps))
    x, number = ("x", "UINT8", (-1,)), ("sequence", "INT64", (1,))
    write_dummy(folder / "stream" / "1" / "model.dummy", [x], [number], stream_from_input=True)
    (folder / "stream" / "config.pbtxt").write_text("model_transaction_policy { decoupled: true }")
    write_dummy(folder / "echo" / "1" / "model.dummy", [("n", "INT64", (1,))], [("m", "INT64", (1,))])
    steps = [step("stream", {"x": "x"}, {"sequence": "s"}), step("echo", {"n": "s"}, {"m": "m"})]
    write(folder, "numbers", ensemble({"x": ("UINT8", [-1])}, {"m": ("INT64", [1])}, *steps))
    nobody = ensemble({"x": ROW}, {"y": ROW}, step("nobody", {"x": "x"}, {"y": "y"}), more="max_batch_size: 8")
    write(folder, "broken", nobody)
    for name, other in (("ring", "gnir"), ("gnir", "ring")):
        write(folder, name, ensemble({"x": ROW}, {"y": ROW}, step(other, {"x": "x"}, {"y": "y"})))


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensembles") / "models"
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    with started(folder, tmp_path_factory.mktemp("run"), "--workers", "2") as server:
        yield server


def rows(*values: float) -> list[Tensor]:
    return [from_array("x", "FP32", np.array([[value] * 4 for value in values], np.float32))]


def statistics(server: RoostServer, model: str) -> dict[str, Any]:
    code, body = server.get(f"/v2/models/{model}/stats")
    assert code == 200
    found: dict[str, Any] = body["model_stats"][0]
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_ensemble_is_asked_like_any_model(server: RoostServer, transport: str) -> None:
    async with connect(server, transport) as client:
        assert await client.is_ready("whole")
        assert not await client.is_ready("broken")
        assert await client.metadata("whole") == ["x"]
        response = await client.infer("whole", rows(1, 2))
        assert {t.name: to_array(t)[:, 0].tolist() for t in response.outputs} == {"y": [3, 5], "z": [4, 8]}
        (output,) = (await client.infer("whole", rows(1), outputs=["z"])).outputs
        assert to_array(output).tolist() == [[4] * 4]
        values = np.arange(LARGE, dtype=np.float32)
        for _ in range(3):  # places for outputs are found by what like runs have answered
            (output,) = (await client.infer("wide", [from_array("x", "FP32", values)])).outputs
            np.testing.assert_array_equal(to_array(output), values * 4)
        with pytest.raises(CallFailed, match=r"Expected \[-1,4\], got \[1,3\]") as caught:
            await client.infer("whole", [from_array("x", "FP32", np.zeros((1, 3), np.float32))])
        assert caught.value.means(Code.INVALID_ARGUMENT)
        with pytest.raises(CallFailed, match=r"in ensemble 'broken', step 0 \(model 'nobody'\): ") as caught:
            await client.infer("broken", rows(1))
        assert caught.value.means(Code.UNAVAILABLE)
        with pytest.raises(CallFailed, match="decoupled transaction policy"):
            await client.infer("numbers", [from_array("x", "UINT8", np.ones(1, np.uint8))])
        state, reason = (await client.index())["broken", "1"]
        assert (state, reason) == ("UNAVAILABLE", "ensemble 'broken' depends on 'nobody' which has no loaded version")


def test_what_is_shown_of_it(server: RoostServer) -> None:
    code, metadata = server.get("/v2/models/whole")
    assert (code, metadata["platform"], metadata["versions"]) == (200, "ensemble", ["1"])
    assert [(row["name"], row["shape"]) for row in metadata["outputs"]] == [("y", [-1, 4]), ("z", [-1, 4])]
    code, config = server.get("/v2/models/whole/config")
    assert (code, config["platform"], config["backend"]) == (200, "ensemble", "")
    assert [part["model_name"] for part in config["ensemble_scheduling"]["step"]] == ["plus", "twice", "twice"]
    assert config["ensemble_scheduling"]["step"][0]["input_map"] == {"x": "t"}
    names = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 3, 2, 1]}]}
    asked = {"outputs": [{"name": name, "parameters": {"classification": 2}} for name in ("y", "z")]}
    code, answer = server.post("/v2/models/whole/infer", {**names, **asked})
    assert [row["data"] for row in answer["outputs"]] == [
        ["7.000000:1:b", "5.000000:2:c"],
        ["12.000000:1:B", "8.000000:2:C"],  # what its model calls them
    ]


async def test_steps_are_batched_and_counted_for_themselves(server: RoostServer) -> None:
    before = {name: statistics(server, name) for name in ("whole", "twice", "plus")}
    async with connect(server, "grpc") as client:
        answers = await asyncio.gather(*(client.infer("whole", rows(value)) for value in range(64)))
    assert [to_array(answer.outputs[0])[0, 0] for answer in answers] == [2 * value + 1 for value in range(64)]
    after = {name: statistics(server, name) for name in before}
    counts = {name: after[name]["inference_count"] - before[name]["inference_count"] for name in before}
    assert counts == {"whole": 64, "twice": 128, "plus": 64}
    runs = {name: after[name]["execution_count"] - before[name]["execution_count"] for name in before}
    assert runs["whole"] == 64
    assert runs["twice"] < 128
    success = after["whole"]["inference_stats"]["success"]
    parts = sum(after["whole"]["inference_stats"][part]["ns"] for part in ("queue", "compute_input", "compute_infer"))
    assert 0 < parts < success["ns"]
    assert f'nv_inference_request_success{{model="whole",version="1"}} {success["count"]}' in server.metrics()


def test_a_stream_goes_through_the_steps_behind(server: RoostServer) -> None:
    events = server.events("numbers", {"x": [3]})
    assert [event["m"] for event in events] == [0, 1, 2]
    code, config = server.get("/v2/models/numbers/config")
    assert (code, config["model_transaction_policy"]) == (200, {"decoupled": True})


async def test_steps_that_do_not_fit_together(folder: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("one", "two"):
        write_dummy(models / name / "1" / "model.dummy", [("a", "FP32", (4,))], [("b", "FP32", (4,))])
        write_policy(models / name, memory_bytes=6 * MIB)
    steps = [step("one", {"a": "x"}, {"b": "t"}), step("two", {"a": "t"}, {"b": "y"})]
    write(models, "whole", ensemble({"x": ROW}, {"y": ROW}, *steps))
    with started(models, tmp_path / "run", "--workers", "1", "--memory-budget", "8MiB") as server:
        async with connect(server, "rest") as client:
            for value in range(3):
                row = from_array("x", "FP32", np.full(4, value, np.float32))
                (output,) = (await client.infer("whole", [row])).outputs
                assert to_array(output).tolist() == [value] * 4
        assert len(server.resident()) == 1


async def test_steps_are_loaded_and_unloaded_with_their_ensemble(folder: Path, tmp_path: Path) -> None:
    with started(folder, tmp_path / "run", "--workers", "1", "--model-control", "explicit") as server:
        async with connect(server, "rest") as client:
            await client.load("twice")
            await client.load("whole")
            assert server.resident() == {"twice", "plus"}
            assert await client.is_ready("whole")
            assert (await client.index())["plus", "1"] == ("READY", "")
            with pytest.raises(CallFailed, match="load failed for model 'broken': its step 'nobody': failed to load"):
                await client.load("broken")
            rings = await asyncio.gather(client.load("ring"), client.load("gnir"), return_exceptions=True)
            assert all("circular dependency between ensembles: " in str(error) for error in rings)
            await client.unload("plus")
            assert not await client.is_ready("whole")
            assert (await client.index())["whole", "1"][0] == "UNAVAILABLE"
            with pytest.raises(
                CallFailed, match=r"in ensemble 'whole', step 0 \(model 'plus'\): .* no available versions"
            ):
                await client.infer("whole", rows(1))
            await client.load("whole")
            assert await client.is_ready("whole")
            other = ensemble({"x": ROW}, {"y": ROW}, step("plus", {"x": "x"}, {"y": "y"}), more="max_batch_size: 16")
            override = {"config": json.dumps(as_json(other))}
            with pytest.raises(CallFailed, match="maximum batch size of 16, but the model one of 8"):
                await client.load("whole", override)
            assert to_array((await client.infer("whole", rows(1))).outputs[0])[0, 0] == 3, "what was served stays"
            await client.load("plus", {"config": json.dumps({"max_batch_size": 4})})
            for call in (client.load("whole"), client.infer("whole", rows(1))):
                with pytest.raises(CallFailed, match="maximum batch size of 8, but the model one of 4"):
                    await call
            await client.unload("plus")
            await client.load("whole")
            code, _ = server.post("/v2/repository/models/whole/unload", {"parameters": {"unload_dependents": True}})
            assert code == 200
            await eventually(lambda: server.resident() == {"twice"}, "the end of what only the ensemble needed")
            with pytest.raises(CallFailed, match="no available versions"):
                await client.infer("whole", rows(1))


async def test_where_loading_is_explicit_a_step_may_be_a_route(folder: Path, tmp_path: Path) -> None:
    routes = tmp_path / "routes.yaml"
    routes.write_text("routes: [{name: sum, targets: [{model: plus}]}]")
    other = ensemble({"x": ROW}, {"y": ROW}, step("sum", {"x": "x"}, {"y": "y"}), more="max_batch_size: 8")
    flags = ("--workers", "1", "--model-control", "explicit", "--routes", str(routes))
    with started(folder, tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            await client.load("whole")
            await client.load("whole", {"config": json.dumps(as_json(other))})
            assert to_array((await client.infer("whole", rows(1))).outputs[0])[0, 0] == 2
            code, _ = server.post("/v2/repository/models/whole/unload", {"parameters": {"unload_dependents": True}})
            assert code == 200
            await eventually(lambda: server.resident() == {"twice"}, "the end of what only the ensemble needed")


def as_json(text: str) -> Any:
    """A configuration in the form that load calls take."""
    config = text_format.Parse(text, mc.ModelConfig())
    return json_format.MessageToDict(config, preserving_proto_field_name=True)

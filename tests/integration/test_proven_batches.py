"""A model that says nothing of batches is tried in the background and batched from then on, with the same answers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import psutil
import pytest
from roost.core.tensors import Tensor, from_array, to_array

from tests.clients import connect
from tests.graphs import write_text
from tests.models import write_mlp, write_simple
from tests.server import RoostServer, eventually, started
from tests.unit.test_proof_graph import DYNAMIC

LAYERS = (64, 256, 8)
FLAGS = ("--workers", "1", "--log-level", "debug")


def batching(server: RoostServer, model: str) -> str:
    """What the configuration of a model shows of it."""
    code, config = server.get(f"/v2/models/{model}/config")
    assert code == 200, config
    assert config["max_batch_size"] == 0
    return str(config["parameters"]["roost.batching"]["string_value"])


async def settled(server: RoostServer, model: str) -> str:
    """The same once it has been found out."""

    def look() -> str:
        found = batching(server, model)
        return "" if found == "pending" else found

    return await eventually(look, f"what is found out about {model}")


def counted(server: RoostServer, model: str) -> tuple[int, int]:
    """How many requests were answered by how many runs."""
    _, document = server.get(f"/v2/models/{model}/stats")
    (row,) = document["model_stats"]
    return row["inference_count"], row["execution_count"]


def preparers(server: RoostServer) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.pid).children():
        with contextlib.suppress(psutil.Error):  # it ends just now
            if "roost.runtimes.preparer" in child.cmdline():
                found.append(child)
    return found


def rows(count: int, seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, LAYERS[0]), dtype=np.float32)


def inputs(array: npt.NDArray[Any]) -> list[Tensor]:
    return [from_array("x", "FP32", array)]


@pytest.fixture
def repository(repository: Path) -> Path:
    write_mlp(repository / "mlp" / "1" / "model.onnx", LAYERS)
    write_simple(repository / "fixed" / "1" / "model.onnx", 1)
    write_text(repository / "dynamic" / "1" / "model.onnx", DYNAMIC)
    return repository


@pytest.mark.parametrize("transport", ["rest", "grpc"])
async def test_a_proven_model_is_batched_and_answers_as_before(
    tmp_path: Path, repository: Path, transport: str
) -> None:
    session = ort.InferenceSession(str(repository / "mlp" / "1" / "model.onnx"))
    requests = [rows(1 + seed % 3, seed) for seed in range(200)]
    with started(repository, tmp_path / "run", *FLAGS) as server:
        async with connect(server, transport) as client:
            await client.infer("mlp", inputs(requests[0]))
            assert await settled(server, "mlp") == "proven: up to 32 rows"
            before = counted(server, "mlp")
            responses = await asyncio.gather(*(client.infer("mlp", inputs(array)) for array in requests))
            large = await client.infer("mlp", inputs(rows(100, 1)))
            after = counted(server, "mlp")
    for array, response in zip([*requests, rows(100, 1)], [*responses, large], strict=True):
        (expected,) = session.run(None, {"x": array})
        np.testing.assert_allclose(to_array(response.outputs[0]), expected, rtol=1e-4, atol=1e-4)
    assert after[1] - before[1] < len(requests)


async def test_others_say_why_not(tmp_path: Path, repository: Path) -> None:
    with started(repository, tmp_path / "run", *FLAGS) as server:
        async with connect(server, "rest") as client:
            await client.infer("dynamic", inputs(np.ones((1, 4), np.float32)))
            assert (await settled(server, "dynamic")).startswith(
                "not proven: operator DynamicQuantizeLinear mixes rows"
            )
            await client.metadata("fixed")
            assert batching(server, "fixed") == "not proven: input 'INPUT0' has a fixed first dimension"
        await eventually(lambda: not preparers(server), "the end of the preparer")


async def test_what_was_found_out_outlives_a_restart(tmp_path: Path, repository: Path) -> None:
    for attempt in range(2):
        with started(repository, tmp_path / "run", *FLAGS) as server:
            async with connect(server, "rest") as client:
                await client.infer("mlp", inputs(rows(1, 0)))
                assert await settled(server, "mlp") == "proven: up to 32 rows"
                if attempt:
                    assert "the preparer is process" not in server.log.split("serves")[-1]
        server.log_file.write_text("")


@pytest.mark.parametrize(
    ("mode", "shown"),
    [("declared", "not tried: --batching declared"), ("symbolic", "symbolic: up to 32 rows")],
)
async def test_servers_that_try_nothing(tmp_path: Path, repository: Path, mode: str, shown: str) -> None:
    with started(repository, tmp_path / "run", *FLAGS, "--batching", mode) as server:
        async with connect(server, "rest") as client:
            await client.infer("mlp", inputs(rows(1, 0)))
        assert batching(server, "mlp") == shown
        assert not preparers(server)


async def test_a_server_that_stops_meanwhile(tmp_path: Path, repository: Path) -> None:
    with started(repository, tmp_path / "run", *FLAGS) as server:
        async with connect(server, "rest") as client:
            await client.infer("mlp", inputs(rows(1, 0)))
        await eventually(lambda: preparers(server), "the preparer")
        server.stop()
        assert not server.processes()

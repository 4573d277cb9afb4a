"""Dynamic batching, end to end: real workers, real ONNX Runtime, requests that come together."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from roost.core.errors import Code
from roost.core.requests import InferResponse
from roost.core.tensors import Tensor, from_array, to_array

from tests.clients import TRANSPORTS, CallFailed, Client, connect
from tests.models import write_dummy, write_identity, write_mlp, write_simple
from tests.server import RoostServer, eventually, started

ROWS = (1, 1, 1, 2, 3, 1, 5, 1) * 8


def write_config(model: Path, max_batch_size: int, inputs: str, outputs: str, more: str = "") -> None:
    """A config.pbtxt; tensors are written as ``name:TYPE_X:dims``."""

    def tensors(field: str, text: str) -> str:
        rows = [item.split(":") for item in text.split()]
        return "".join(f'{field} {{ name: "{n}" data_type: {t} dims: [ {d} ] }}\n' for n, t, d in rows)

    (model / "config.pbtxt").write_text(
        f"max_batch_size: {max_batch_size}\n{tensors('input', inputs)}{tensors('output', outputs)}{more}"
    )


def requests_per_batch(server: RoostServer, model: str) -> float:
    """So far."""
    done = server.metric("roost_requests_total", model=model, code="OK")
    return done / max(1.0, server.metric("roost_executions_total", model=model))


async def together(client: Client, model: str, inputs: Sequence[Sequence[Tensor]]) -> list[InferResponse]:
    return await asyncio.gather(*(client.infer(model, one) for one in inputs))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_batched_answers_are_those_of_the_model_alone(tmp_path: Path, repository: Path, transport: str) -> None:
    """Integers bit for bit; floats to a few units in the last place, as sums are made in another order."""
    simple = write_simple(repository / "simple" / "1" / "model.onnx", batch=-1)
    write_config(
        repository / "simple",
        16,
        "INPUT0:TYPE_INT32:16 INPUT1:TYPE_INT32:16",
        "OUTPUT0:TYPE_INT32:16 OUTPUT1:TYPE_INT32:16",
    )
    mlp = write_mlp(repository / "mlp" / "1" / "model.onnx", (64, 256, 10))
    write_config(repository / "mlp", 16, "x:TYPE_FP32:64", "y:TYPE_FP32:10")
    draw = np.random.default_rng(1)
    pairs = [[draw.integers(-(2**31), 2**31, (rows, 16)).astype(np.int32) for _ in range(2)] for rows in ROWS]
    vectors = [draw.standard_normal((rows, 64)).astype(np.float32) for rows in ROWS]
    alone, other = onnxruntime.InferenceSession(simple), onnxruntime.InferenceSession(mlp)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            for _ in range(5):
                answers = await together(client, "simple", [_tensors(INPUT0=a, INPUT1=b) for a, b in pairs])
                for (a, b), answer in zip(pairs, answers, strict=True):
                    _assert_same(answer, alone.run(None, {"INPUT0": a, "INPUT1": b}), exact=True)
                answers = await together(client, "mlp", [_tensors(x=vector) for vector in vectors])
                for vector, answer in zip(vectors, answers, strict=True):
                    _assert_same(answer, other.run(None, {"x": vector}), exact=False)
            assert requests_per_batch(server, "simple") > 1.5
            assert requests_per_batch(server, "mlp") > 1.5


def _tensors(**arrays: npt.NDArray[np.int32] | npt.NDArray[np.float32]) -> list[Tensor]:
    types = {np.dtype(np.int32): "INT32", np.dtype(np.float32): "FP32"}
    return [from_array(name, types[array.dtype], array) for name, array in arrays.items()]


def _assert_same(
    answer: InferResponse, expected: Sequence[npt.NDArray[np.int32] | npt.NDArray[np.float32]], *, exact: bool
) -> None:
    for tensor, array in zip(answer.outputs, expected, strict=True):
        assert tensor.shape == array.shape
        if exact:
            assert np.array_equal(to_array(tensor), array)
        else:
            np.testing.assert_allclose(to_array(tensor), array, rtol=1e-5, atol=1e-5 * np.abs(array).max())


async def test_strings_and_large_tensors_are_batched_too(tmp_path: Path, repository: Path) -> None:
    for name, datatype, dims in (("text", "BYTES", (-1, -1)), ("image", "FP32", (-1, 40_000))):
        write_identity(repository / name / "1" / "model.onnx", datatype, dims)
    write_config(repository / "text", 8, "INPUT0:TYPE_STRING:-1", "OUTPUT0:TYPE_STRING:-1")
    write_config(repository / "image", 8, "INPUT0:TYPE_FP32:40000", "OUTPUT0:TYPE_FP32:40000")
    words = [np.array([[f"{n}-{i}".encode() * i for i in range(3)]] * (1 + n % 3), dtype=object) for n in range(24)]
    images = [np.full((1 + n % 2, 40_000), n, np.float32) for n in range(24)]
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            for _ in range(3):
                answers = await together(client, "text", [[from_array("INPUT0", "BYTES", array)] for array in words])
                for array, answer in zip(words, answers, strict=True):
                    assert to_array(answer.outputs[0]).tolist() == array.tolist()
                answers = await together(client, "image", [[from_array("INPUT0", "FP32", array)] for array in images])
                for array, answer in zip(images, answers, strict=True):
                    assert np.array_equal(to_array(answer.outputs[0]), array)
            assert requests_per_batch(server, "text") > 1
            assert requests_per_batch(server, "image") > 1


def one_row(value: float = 1.0) -> list[Tensor]:
    return [from_array("INPUT0", "FP32", np.full((1, 4), value, np.float32))]


def write_slow(repository: Path, run_s: float) -> None:
    """A model that batches and takes its time."""
    outputs = (("OUTPUT0", "FP32", (-1, 4)), ("batch", "INT64", (-1, 1)), ("pid", "INT64", (-1, 1)))
    write_dummy(repository / "slow" / "1" / "model.dummy", outputs=outputs, run_s=run_s)
    write_config(
        repository / "slow",
        8,
        "INPUT0:TYPE_FP32:4",
        "OUTPUT0:TYPE_FP32:4 batch:TYPE_INT64:1 pid:TYPE_INT64:1",
        'backend: "dummy"\n',
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_goes_and_a_deadline_leave_the_rest_of_their_batch_alone(
    tmp_path: Path, repository: Path, transport: str
) -> None:
    write_slow(repository, 0.5)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            first = asyncio.create_task(client.infer("slow", one_row()))
            await eventually(lambda: server.in_flight() == 1, "the first runs")
            calls = [asyncio.create_task(client.infer("slow", one_row(value))) for value in range(5)]
            hurried = asyncio.create_task(client.infer("slow", one_row(), parameters={"timeout": 800_000}))
            await eventually(lambda: server.status()["queued"] == 6, "the others wait")
            await first
            await eventually(lambda: server.in_flight() == 1, "they run")
            calls[2].cancel()
            for value, call in enumerate(calls):
                if value != 2:
                    answer = await call
                    assert to_array(answer.outputs[0]).tolist() == [[value] * 4]
            with pytest.raises(CallFailed) as failed:
                await hurried
            assert failed.value.means(Code.DEADLINE_EXCEEDED)
            assert server.metric("roost_executions_total", model="slow") == 2


async def test_a_worker_killed_in_the_middle_of_a_batch_fails_that_batch_alone(
    tmp_path: Path, repository: Path
) -> None:
    write_slow(repository, 1.0)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            before = int(to_array((await client.infer("slow", one_row())).outputs[2])[0, 0])
            running = [asyncio.create_task(client.infer("slow", one_row())) for _ in range(3)]
            await eventually(lambda: server.in_flight() == 1, "a batch runs")
            waiting = [asyncio.create_task(client.infer("slow", one_row())) for _ in range(5)]
            await eventually(lambda: server.status()["queued"] >= 5, "others wait")
            os.kill(before, signal.SIGKILL)
            outcomes = await asyncio.gather(*running, *waiting, return_exceptions=True)
            failed = [outcome for outcome in outcomes if isinstance(outcome, CallFailed)]
            assert 1 <= len(failed) <= 3
            assert all(error.means(Code.UNAVAILABLE) for error in failed)
            assert sum(isinstance(outcome, InferResponse) for outcome in outcomes) == 8 - len(failed)
        assert server.metric("roost_queued_requests") == 0

"""Real models with tritonclient's four clients: the answers are those of ONNX Runtime itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from roost.runtimes.proof.prove import Verdict, prove
from roost.runtimes.protocol import LoadSpec
from roost.server.demo.repository import MAGIKA, SILERO, build_repository
from roost.server.demo.vad_client import CHUNK_SAMPLES, CONTEXT_SAMPLES, first_state

from tests.conformance.triton import MODULES, triton
from tests.server import RoostServer, started

every_client = pytest.mark.parametrize("kind", tuple(MODULES))


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("real")
    build_repository(folder / "models")
    with started(folder / "models", folder / "run", "--workers", "1") as running:
        yield running


def _session(server: RoostServer, model: str) -> onnxruntime.InferenceSession:
    path: Path = server.repository / model / "1" / "model.onnx"
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _feeds(model: str) -> dict[str, Any]:
    """Inputs that mean something to the model: rows of bytes, or a chunk of sound."""
    rng = np.random.default_rng(5)
    if model == MAGIKA:
        return {"bytes": rng.integers(0, 257, (3, 2048), dtype=np.int32)}
    sound = rng.standard_normal((1, CONTEXT_SAMPLES + CHUNK_SAMPLES)).astype(np.float32) / 10
    return {"input": sound, "state": first_state(), "sr": np.array(16_000, np.int64)}


@every_client
@pytest.mark.parametrize("model", [MAGIKA, SILERO])
async def test_real_models(real_server: RoostServer, kind: str, model: str) -> None:
    feeds = _feeds(model)
    names = [output.name for output in _session(real_server, model).get_outputs()]
    expected = _session(real_server, model).run(names, feeds)
    datatypes = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
    async with triton(real_server, kind) as client:
        inputs = [client.input(name, array, datatypes[str(array.dtype)]) for name, array in feeds.items()]
        result = await client.infer(model, inputs)
        for name, array in zip(names, expected, strict=True):
            np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "verdict"),
    [(MAGIKA, Verdict(32)), (SILERO, Verdict(0, "input 'state' has a fixed first dimension"))],
)
def test_which_of_them_may_be_batched(real_server: RoostServer, model: str, verdict: Verdict) -> None:
    path = real_server.repository / model / "1" / "model.onnx"
    assert prove(LoadSpec(str(path), str(path.parent)), max_rows=32, budget_s=120) == verdict


@every_client
async def test_classes_of_a_real_model(real_server: RoostServer, kind: str) -> None:
    feeds = _feeds(MAGIKA)
    (scores,) = _session(real_server, MAGIKA).run(None, feeds)
    labels = (real_server.repository / MAGIKA / "labels.txt").read_text(encoding="utf-8").splitlines()
    async with triton(real_server, kind) as client:
        inputs = [client.input("bytes", feeds["bytes"], "INT32")]
        result = await client.infer(MAGIKA, inputs, outputs=[client.output("target_label", class_count=2)])
    found = result.as_numpy("target_label")
    assert found.shape == (3, 2)
    for row, classes in zip(scores, found, strict=True):
        value, index, label = classes[0].decode().split(":")
        assert (int(index), label) == (int(row.argmax()), labels[row.argmax()])
        assert float(value) == pytest.approx(float(row.max()), abs=1e-5)

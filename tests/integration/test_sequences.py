"""Models that know of sequences behind a real server, over both transports."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from roost.core.errors import Code
from roost.core.tensors import from_array, to_array
from roost.server.demo.clip import read_clip
from roost.server.demo.vad_client import speech_probabilities

from tests.clients import TRANSPORTS, CallFailed, Client, connect
from tests.models import tensor_info, write_graph
from tests.python_models import ONE_TO_ONE, write_python
from tests.server import RoostServer, eventually, started

EXAMPLES = Path(__file__).parents[2] / "examples"

SUMS = """
backend: "onnxruntime"
max_batch_size: 4
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 8 }
  state {
    input_name: "sum" output_name: "next" data_type: TYPE_FP32 dims: [ 2 ]
    initial_state { name: "hundreds" data_type: TYPE_FP32 dims: [ 2 ] data_file: "hundreds" }
  }
}
"""
ROWS = """
backend: "onnxruntime"
max_batch_size: 4
sequence_batching {
  direct { max_queue_delay_microseconds: 100000 minimum_slot_utilization: 0.75 }
  max_sequence_idle_microseconds: 60000000
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 100 ] } }
  control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } }
}
"""
REMEMBERS = """
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 8 }
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } }
}
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { count: 2 kind: KIND_CPU }
"""
REMEMBERING = """
    import os
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            self.sums = {}

        def execute(self, requests):
            (request,) = requests
            of = lambda name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            x, id_ = of("x"), of("ID")[0].decode()
            assert id_ == str(request.correlation_id())
            assert request.parameters() == "{}"
            starts = request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
            assert bool(starts) == bool(of("START")[0])
            if x[0] < 0:
                os._exit(1)
            self.sums[id_] = x + (0 if starts else self.sums[id_])
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", self.sums[id_])])]
"""


PIPELINE = """
platform: "ensemble"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "total" data_type: TYPE_FP32 dims: [ 2 ] }
ensemble_scheduling {
  step {
    model_name: "sums" model_version: -1
    input_map { key: "x" value: "x" }
    output_map { key: "y" value: "total" }
  }
}
"""
ASKING = """
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            (request,) = requests
            x = pb_utils.get_input_tensor_by_name(request, "x")
            flags = (
                pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
                0,
                pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
            )
            for flag in flags:
                other = pb_utils.InferenceRequest(
                    model_name="remembers", correlation_id=77, requested_output_names=["y"], inputs=[x], flags=flag
                )
                answer = other.exec()
                if answer.has_error():
                    return [pb_utils.InferenceResponse(error=answer.error())]
            y = pb_utils.get_output_tensor_by_name(answer, "y").as_numpy()
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)])]
"""


def write_models(repository: Path) -> None:
    row, one = ("batch", 2), ("batch", 1)
    write_graph(
        repository / "sums" / "1" / "model.onnx",
        [helper.make_node("Add", ["x", "sum"], ["next"]), helper.make_node("Identity", ["next"], ["y"])],
        [tensor_info(name, "FP32", row) for name in ("x", "sum")],
        [tensor_info(name, "FP32", row) for name in ("y", "next")],
    )
    (repository / "sums" / "config.pbtxt").write_text(SUMS)
    (repository / "sums" / "initial_state").mkdir()
    (repository / "sums" / "initial_state" / "hundreds").write_bytes(np.array([100, 200], np.float32).tobytes())
    write_graph(
        repository / "rows" / "1" / "model.onnx",
        [helper.make_node("Add", ["x", "START"], ["sum"]), helper.make_node("Mul", ["sum", "READY"], ["y"])],
        [tensor_info(name, "FP32", one) for name in ("x", "START", "READY")],
        [tensor_info("y", "FP32", one)],
    )
    (repository / "rows" / "config.pbtxt").write_text(ROWS)
    write_python(repository / "remembers", REMEMBERING, REMEMBERS)
    write_python(repository / "asks", ASKING, ONE_TO_ONE)
    (repository / "pipeline").mkdir()
    (repository / "pipeline" / "config.pbtxt").write_text(PIPELINE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("sequences")
    write_models(folder / "models")
    with started(folder / "models", folder / "run", "--workers", "1", "--allow-code") as server:
        yield server


async def ask(client: Client, model: str, id_: int | str | None, *x: float, flags: str = "") -> list[float]:
    """``s`` in the flags begins a sequence, ``e`` ends it."""
    parameters: dict[str, Any] = {"sequence_start": "s" in flags, "sequence_end": "e" in flags}
    if id_ is not None:
        parameters["sequence_id"] = id_
    shape = (len(x),) if model == "remembers" else (1, len(x))
    inputs = [from_array("x", "FP32", np.array(x, np.float32).reshape(shape))]
    (output,) = (await client.infer(model, inputs, parameters=parameters)).outputs
    found: list[float] = to_array(output).reshape(-1).tolist()
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_state_that_the_server_keeps(server: RoostServer, transport: str) -> None:
    async with connect(server, transport) as client:
        assert await client.metadata("sums") == ["x"]
        ids: list[int | str] = [1, 2**63 - 1, "one", "1"]
        first = await asyncio.gather(*(ask(client, "sums", id_, i, 0, flags="s") for i, id_ in enumerate(ids)))
        assert first == [[100 + i, 200] for i in range(len(ids))]
        again = await asyncio.gather(*(ask(client, "sums", id_, 0, 10) for id_ in ids))
        assert again == [[100 + i, 210] for i in range(len(ids))]
        os.kill(server.worker_of("sums")["pid"], signal.SIGKILL)
        last = await asyncio.gather(*(ask(client, "sums", id_, 1, 0, flags="e") for id_ in ids))
        assert last == [[101 + i, 210] for i in range(len(ids))]
        for id_, text in (
            (1, "inference request for sequence 1 to model 'sums' must specify the START flag on the first request of"),
            (0, "inference request to model 'sums' must specify a non-zero or non-empty correlation ID"),
            (None, "inference request to model 'sums' must specify a non-zero or non-empty correlation ID"),
            ("", "inference request to model 'sums' must specify a non-zero or non-empty correlation ID"),
        ):
            with pytest.raises(CallFailed) as refused:
                await ask(client, "sums", id_, 1, 0)
            assert refused.value.means(Code.INVALID_ARGUMENT)
            assert refused.value.message.startswith(text)


async def test_a_step_of_a_pipeline(server: RoostServer) -> None:
    async with connect(server, "rest") as client:
        assert await ask(client, "pipeline", 9, 1, 0, flags="s") == [101, 200]
        assert await ask(client, "sums", 9, 1, 0) == [102, 200]  # it is the sequence of the step's model
        assert await ask(client, "pipeline", 9, 1, 0, flags="e") == [103, 200]
        with pytest.raises(CallFailed, match=r"in ensemble 'pipeline'.*must specify the START flag"):
            await ask(client, "pipeline", 9, 1, 0)


async def test_rows_of_their_own(server: RoostServer) -> None:
    async with connect(server, "grpc") as client:
        first = await asyncio.gather(*(ask(client, "rows", id_, id_, flags="s") for id_ in (1, 2, 3)))
        assert first == [[101], [102], [103]]
        both = await asyncio.gather(ask(client, "rows", 3, 30), ask(client, "rows", 1, 10))
        assert list(both) == [[30], [10]]
        assert await ask(client, "rows", 2, 20, flags="e") == [20]
        assert await asyncio.gather(ask(client, "rows", 3, 3, flags="e"), ask(client, "rows", 1, 1, flags="e"))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_model_that_remembers(server: RoostServer, transport: str) -> None:
    async with connect(server, transport) as client:
        for id_ in (5, "five"):
            assert await ask(client, "remembers", id_, 1, flags="s") == [1]
        for id_ in ("five", 5):
            assert await ask(client, "remembers", id_, 2) == [3]
        with pytest.raises(CallFailed) as lost:
            await ask(client, "remembers", 5, -1)
        assert lost.value.means(Code.UNAVAILABLE)
        assert await ask(client, "remembers", 6, 1, flags="s") == [1]  # of the next process
        with pytest.raises(CallFailed) as unknown:
            await ask(client, "remembers", "five", 1)
        assert "what it knew of the sequence" in unknown.value.message
        for id_ in (5, "five"):
            with pytest.raises(CallFailed) as ended:
                await ask(client, "remembers", id_, 1)
            assert ended.value.means(Code.ABORTED)
            assert "it has to be begun anew" in ended.value.message
        assert await ask(client, "remembers", 6, 1, flags="e") == [2]


async def test_a_model_that_asks_one_that_remembers(server: RoostServer) -> None:
    async with connect(server, "grpc") as client:
        (output,) = (await client.infer("asks", [from_array("x", "FP32", np.array([2], np.float32))])).outputs
        assert to_array(output).tolist() == [6]


def test_what_the_server_says_of_it(server: RoostServer) -> None:
    assert "sequence" in server.get("/v2")[1]["extensions"]
    status, config = server.get("/v2/models/sums/config")
    assert status == 200
    assert config["sequence_batching"]["oldest"]["max_candidate_sequences"] == 8
    assert [row["name"] for row in config["input"]] == ["x"]
    assert config["parameters"]["roost.batching"]["string_value"] == "config"


async def test_sequences_end_with_the_version_that_they_began_with(tmp_path: Path) -> None:
    file = write_python(tmp_path / "models" / "remembers", REMEMBERING, REMEMBERS)
    flags = ("--workers", "1", "--allow-code", "--model-control", "explicit", "--load-model", "remembers")
    with started(tmp_path / "models", tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            assert await ask(client, "remembers", 1, 1, flags="s") == [1]
            file.write_text(file.read_text().replace("x + (0", "x + (100"))
            await client.load("remembers")
            assert await ask(client, "remembers", 2, 1, flags="s") == [101]
            assert await ask(client, "remembers", 1, 1) == [2]
            assert await ask(client, "remembers", 1, 1, flags="e") == [3]
            assert await ask(client, "remembers", 1, 1, flags="s") == [101]
            await eventually(lambda: len(server.instances()) == 1, "the end of what was replaced")
            await client.unload("remembers")
            await eventually(lambda: not server.instances(), "the end of what was unloaded")


def test_speech_chunk_by_chunk(tmp_path: Path) -> None:
    """The example as its page says, and silero-vad asked directly."""
    try:
        path = Path(str(distribution("silero-vad").locate_file("silero_vad/data/silero_vad.onnx")))
    except PackageNotFoundError:
        pytest.skip("silero-vad is not installed")
    subprocess.run([sys.executable, EXAMPLES / "assemble.py", tmp_path / "models", "speech"], check=True)
    clip = Path(str(resources.files("roost.server.demo") / "data" / "speech.wav"))
    with started(tmp_path / "models", tmp_path / "run", "--workers", "1") as server:
        line = [sys.executable, str(EXAMPLES / "speech_client.py"), str(clip), "--url", server.grpc]
        said = [
            subprocess.Popen([*line, "--sequence-id", str(id_)], stdout=subprocess.PIPE, text=True) for id_ in (1, 2)
        ]
        answers = [client.communicate(timeout=60)[0] for client in said]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    known = speech_probabilities(
        read_clip(clip), lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))
    )
    assert max(known) > 0.9
    for answer in answers:
        found = [float(line.split()[2]) for line in answer.splitlines()]
        np.testing.assert_allclose(found, known, atol=1e-3)

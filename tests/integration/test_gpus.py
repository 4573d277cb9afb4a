"""Models on GPUs that there are not: NVML is a fake, and what is placed on a GPU runs on the CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import fake_nvml
from tests.fake_nvml import GIB, gpu
from tests.models import write_identity
from tests.python_models import write_python
from tests.server import RoostServer, started, wait_for

# A Python model of Triton's kind that says where it is.
WHERE = """
    import os
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            self.where = [args["model_instance_kind"], args["model_instance_device_id"]]

        def execute(self, requests):
            words = [*self.where, os.environ.get("CUDA_VISIBLE_DEVICES", "not set")]
            answer = pb_utils.Tensor("where", np.array(words, dtype=object))
            return [pb_utils.InferenceResponse([answer]) for _ in requests]
"""
WHERE_CONFIG = """
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "where" data_type: TYPE_STRING dims: [ 3 ] }
"""


def write_model(repository: Path, name: str, group: str, gpu_memory: str = "3GiB") -> None:
    write_identity(repository / name / "1" / "model.onnx", "FP32")
    parameter = f'{{ key: "roost.gpu_memory_bytes" value {{ string_value: "{gpu_memory}" }} }}'
    (repository / name / "config.pbtxt").write_text(f"instance_group {{ {group} }}\nparameters {parameter}\n")


def ask(server: RoostServer, model: str) -> list[Any]:
    status, document = post(server, model)
    assert status == 200, document
    data: list[Any] = document["outputs"][0]["data"]
    return data


def post(server: RoostServer, model: str) -> tuple[int, Any]:
    is_onnx = model not in ("where", "stays")
    shape, name = ([1, 1], "INPUT0") if is_onnx else ([1], "x")
    tensor = {"name": name, "datatype": "FP32", "shape": shape, "data": [1.5]}
    return server.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})


def environment(folder: Path, gpus: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes a server see these GPUs."""
    path, file = fake_nvml.import_path(folder / "path"), fake_nvml.write(folder, gpus)
    return ["env", f"PYTHONPATH={path}", f"{fake_nvml.FILE}={file}"]


@contextmanager
def with_gpus(repository: Path, folder: Path, gpus: Sequence[Mapping[str, Any]], *flags: str) -> Iterator[RoostServer]:
    flags = ("--workers", "1", "--memory-budget", "1GiB", "--allow-code", *flags)
    with started(repository, folder, *flags, within=environment(folder.parent, gpus)) as server:
        yield server


def test_models_have_the_memory_of_their_gpu(repository: Path, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        write_model(repository, name, "kind: KIND_GPU gpus: 0")
    write_model(repository, "elsewhere", "gpus: 1", "1GiB")
    write_model(repository, "on-cpu", "kind: KIND_CPU")
    write_model(repository, "large", "kind: KIND_GPU", "9GiB")
    write_python(repository / "where", WHERE, WHERE_CONFIG + "instance_group { gpus: 0 }")
    write_python(repository / "stays", WHERE, WHERE_CONFIG + "instance_group { kind: KIND_CPU }")
    gpus = [gpu("GPU-a", used=GIB // 4, busy=42, milliwatts=99_000), gpu("GPU-b", parts=[gpu("MIG-1", 2 * GIB)])]
    with with_gpus(repository, tmp_path / "server", gpus, "--fake-gpus") as server:
        for model in ("first", "second", "on-cpu", "elsewhere", "third"):
            assert ask(server, model) == [1.5]
        assert server.resident() == {"second", "third", "on-cpu", "elsewhere"}
        places = {m: server.worker_of(m) for m in ("second", "third", "on-cpu", "elsewhere")}
        assert {m: (w["kind"], w["device"]) for m, w in places.items()} == {
            "second": ("onnx-gpu", "cuda:0"),
            "third": ("onnx-gpu", "cuda:0"),
            "on-cpu": ("onnx", "cpu"),
            "elsewhere": ("onnx-gpu", "cuda:1"),
        }
        assert (ask(server, "where")[2], ask(server, "stays")[2]) == ("GPU-a", "")
        status, document = post(server, "large")
        assert (status, "of a GPU's memory" in document["error"]) == (429, True)
        config = server.get("/v2/models/elsewhere/config")[1]
        assert [(g["kind"], g["gpus"]) for g in config["instance_group"]] == [("KIND_GPU", [1])]

        cpu, first, part = server.status()["devices"]
        assert (cpu["name"], first["name"], part["name"]) == ("cpu", "cuda:0", "cuda:1")
        assert first["used_bytes"] > 6 * GIB
        assert (first["uuid"], first["utilization"], part["utilization"]) == ("GPU-a", 0.42, None)
        assert server.metric("nv_gpu_memory_total_bytes", gpu_uuid="MIG-1") == 2 * GIB
        assert server.metric("nv_gpu_utilization") == 0.42
        assert server.metric("nv_gpu_power_usage", gpu_uuid="GPU-a") == 99
        assert server.metric("roost_device_used_bytes", device="cuda:1") == GIB

        fake_nvml.write(tmp_path, [gpu("GPU-a", used=8 * GIB), gpu("GPU-b", parts=gpus[1]["parts"])])
        wait_for(lambda: "second" not in server.resident(), "the end of what no longer fits")
        assert {"on-cpu", "elsewhere"} <= server.resident()
        assert ask(server, "elsewhere") == [1.5]


def test_what_can_not_use_a_gpu_runs_on_the_cpu_aloud(repository: Path, tmp_path: Path) -> None:
    write_model(repository, "model", "kind: KIND_GPU")
    write_python(repository / "where", WHERE, WHERE_CONFIG)
    with with_gpus(repository, tmp_path / "server", [gpu("GPU-a"), gpu("GPU-b")], "--devices", "cuda:1") as server:
        assert ask(server, "model") == [1.5]
        assert server.worker_of("model")["device"] == "cpu"
        assert ask(server, "where") == ["GPU", "0", "GPU-b"]  # what it does with it is up to it
        assert "none of the frameworks that are installed was built for GPUs" in server.log
        assert "asks for a GPU, and backend 'onnxruntime' can't use one here: it runs on the CPU" in server.log


def test_frameworks_say_why_they_can_not_use_one_and_move_models_to_where_they_can(torch_models: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_frameworks", str(torch_models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr

"""What a configuration may ask for besides its model's answers: warm-up, kept answers, resources, threads."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import write_dummy, write_mlp, write_policy
from tests.python_models import ONE_TO_ONE, write_python
from tests.server import RoostServer, started

X = "inputs { key: 'x' value { data_type: TYPE_FP32 dims: 4 random_data: true } }"
FILE = "input_data_file: 'row'"
COUNTED: dict[str, Any] = {"outputs": [("OUTPUT0", "FP32", (-1, 4)), ("count", "INT64", (1,))], "state": True}
WARM = "inputs { key: 'INPUT0' value { data_type: TYPE_FP32 dims: [2, 4] random_data: true } }"
THREADS = """
    import os
    from roost.runtimes import Model

    class Threads(Model):
        runs = 0

        def predict(self, request):
            self.runs += 1
            return {"y": [self.runs, self.threads, float(os.environ["OMP_NUM_THREADS"])]}
"""

HANGS = """
    from roost.runtimes import Model

    class Hangs(Model):
        def predict(self, request):
            while True:
                pass
"""


def in_group(**resources: int) -> str:
    listed = ", ".join(f"{{ name: '{name}' count: {count} }}" for name, count in resources.items())
    return f"instance_group {{ rate_limiter {{ resources: [ {listed} ] priority: 2 }} }}"


def write_models(repository: Path) -> None:
    write_dummy(repository / "warm" / "1" / "model.dummy", **COUNTED)
    write_policy(repository / "warm", f"model_warmup {{ name: 'w' count: 3 {WARM} }}")
    write_dummy(repository / "broken" / "1" / "model.dummy", fail="no good")
    write_policy(repository / "broken", f"model_warmup {{ name: 'first' {WARM} }}")
    write_mlp(repository / "net" / "1" / "model.onnx", (4, 3))
    write_policy(
        repository / "net",
        "max_batch_size: 8 response_cache { enable: true }\n"
        f"model_warmup {{ name: 'made up' batch_size: 8 {X} }}\n"
        f"model_warmup {{ name: 'real' {X.replace('random_data: true', FILE)} }}",
        threads=2,
    )
    (repository / "net" / "warmup").mkdir()
    (repository / "net" / "warmup" / "row").write_bytes(np.ones(4, np.float32).tobytes())
    warmup = "model_warmup { name: 'w' inputs { key: 'x' value { data_type: TYPE_FP32 dims: 1 zero_data: true } } }"
    threads = 'parameters { key: "roost.threads" value { string_value: "2" } }'
    write_python(repository / "threads", THREADS, f"{ONE_TO_ONE} {warmup} {threads} instance_group {{ count: 2 }}")
    timeout = 'parameters { key: "roost.load_timeout_s" value { string_value: "0.5" } }'
    write_python(repository / "hangs", HANGS, f"{ONE_TO_ONE} {warmup} {timeout}")
    write_dummy(repository / "kept" / "1" / "model.dummy", **COUNTED)
    write_policy(repository / "kept", f"response_cache {{ enable: true }} {in_group(R=2)}")
    write_dummy(repository / "greedy" / "1" / "model.dummy")
    write_policy(repository / "greedy", in_group(R=3))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("features")
    (folder / "models").mkdir()
    write_models(folder / "models")
    flags = ("--workers", "1", "--allow-code", "--rate-limit", "execution_count", "--rate-limit-resource", "R:2")
    with started(folder / "models", folder / "server", *flags) as server:
        yield server


def infer(server: RoostServer, model: str, name: str, shape: list[int], **more: Any) -> tuple[int, Any]:
    values = list(range(int(np.prod(shape))))
    tensor = {"name": name, "datatype": "FP32", "shape": shape, "data": values}
    return server.post(f"/v2/models/{model}/infer", {"inputs": [tensor], **more})


def output(answer: tuple[int, Any], name: str) -> list[float]:
    status, document = answer
    assert status == 200, document
    return next(list(item["data"]) for item in document["outputs"] if item["name"] == name)


def test_an_instance_is_warmed_up_before_it_answers(server: RoostServer) -> None:
    assert output(infer(server, "warm", "INPUT0", [1, 4]), "count") == [4]
    _, document = server.get("/v2/models/warm/stats")
    (shown,) = document["model_stats"]
    assert (shown["execution_count"], shown["inference_stats"]["success"]["count"]) == (1, 1), "nobody asked for them"
    _, config = server.get("/v2/models/warm/config")
    assert [(sample["name"], sample["count"]) for sample in config["model_warmup"]] == [("w", 3)]


def test_a_model_whose_warm_up_fails_is_not_served(server: RoostServer) -> None:
    status, document = infer(server, "broken", "INPUT0", [1, 4])
    assert status == 503
    assert "warmup sample 'first' failed: no good" in document["error"]


def test_onnx_warms_up_with_rows_and_keeps_answers(server: RoostServer) -> None:
    first, again = (output(infer(server, "net", "x", [2, 4]), "y") for _ in range(2))
    assert first == again
    assert len(first) == 6
    _, document = server.get("/v2/models/net/stats")
    steps = document["model_stats"][0]["inference_stats"]
    counts = {name: steps[name]["count"] for name in ("success", "queue", "compute_infer", "cache_hit", "cache_miss")}
    assert counts == {"success": 2, "queue": 2, "compute_infer": 1, "cache_hit": 1, "cache_miss": 1}
    assert steps["cache_hit"]["ns"] > 0
    assert 'nv_cache_num_hits_per_model{model="net",version="1"} 1\n' in server.metrics()
    assert server.metric("roost_response_cache_bytes") > 0
    _, config = server.get("/v2/models/net/config")
    assert config["response_cache"] == {"enable": True}
    assert config["parameters"]["roost.threads"]["string_value"] == "2"


def test_kept_answers_are_those_of_the_same_request(server: RoostServer) -> None:
    counts = [output(infer(server, "kept", "INPUT0", [rows, 4]), "count") for rows in (1, 2, 1, 2)]
    assert counts == [[1], [2], [1], [2]]
    chosen = {"outputs": [{"name": "count"}]}
    only = infer(server, "kept", "INPUT0", [1, 4], **chosen)
    assert [item["name"] for item in only[1]["outputs"]] == ["count"]
    assert output(only, "count") == [3], "which is another request"
    assert output(infer(server, "kept", "INPUT0", [1, 4], parameters={"p": 1}), "count") == [4]


def test_every_process_of_a_python_model_is_warmed_up_and_has_its_threads(server: RoostServer) -> None:
    threads = min(2, os.cpu_count() or 1)
    for _ in range(2):
        assert output(infer(server, "threads", "x", [1]), "y") == [2, threads, threads]
    status, document = infer(server, "hangs", "x", [1])
    assert (status, "it did not load within 0.5 s" in document["error"]) == (503, True)
    assert output(infer(server, "threads", "x", [1]), "y") == [3, threads, threads], "its process is still the same"


def test_resources_that_there_are_not(server: RoostServer) -> None:
    status, document = infer(server, "greedy", "INPUT0", [1, 4])
    assert status == 503
    assert 'Resource count for "R" is limited to 2' in document["error"]
    _, config = server.get("/v2/models/kept/config")
    (group,) = config["instance_group"]
    assert group["rate_limiter"] == {"resources": [{"name": "R", "global": False, "count": 2}], "priority": 2}


APART = """
import threading
from roost.runtimes.pytorch.runtime import use_threads
import torch

counts, both = {}, threading.Barrier(2)

def run(count):
    use_threads(count)
    both.wait()
    counts[count] = torch.get_num_threads()

threads = [threading.Thread(target=run, args=(count,)) for count in (1, 2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert counts == {1: 1, 2: 2}, counts
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_models_of_pytorch_in_one_process_have_threads_of_their_own() -> None:
    done = subprocess.run([sys.executable, "-c", APART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

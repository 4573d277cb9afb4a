"""Models in Python behind a real server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.python_models import DECOUPLED, ONE_TO_ONE, write_python
from tests.server import RoostServer, started

HELLO = Path(__file__).parents[2] / "examples" / "hello"
MIB = 1 << 20

COUNTS = """
    import os
    from roost.runtimes import Model

    class Counts(Model):
        def predict(self, request):
            if request["x"][0] < 0:
                yield {"y": [0]}
                os._exit(1)
            for i in range(int(request["x"][0])):
                yield {"y": [i]}
"""


def ask(server: RoostServer, model: str, name: str, datatype: str, *values: Any) -> tuple[int, Any]:
    tensor = {"name": name, "datatype": datatype, "shape": [len(values)], "data": values}
    return server.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})


def test_models_that_are_programs(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(HELLO, repository / "hello")
    write_python(repository / "counts", COUNTS, ONE_TO_ONE + DECOUPLED)
    flags = ("--workers", "1", "--memory-budget", "1GiB")
    with started(repository, tmp_path / "refusing", *flags) as server:
        status, document = ask(server, "hello", "name", "BYTES", "Ada")
        assert status >= 400
        assert "--allow-code" in document["error"]
    with started(repository, tmp_path / "allowing", *flags, "--allow-code") as server:
        status, document = ask(server, "hello", "name", "BYTES", "Ada", "Alan")
        assert (status, document["outputs"][0]["data"]) == (200, ["Hello, Ada!", "Hello, Alan!"])
        (instance,) = server.instances()
        assert 5 * MIB < instance["bytes"] < 200 * MIB  # its own process, not an estimate from the file
        assert [event["y"] for event in server.events("counts", {"x": [3]})] == [0, 1, 2]
        _, failure = server.events("counts", {"x": [-1]})
        assert "the model's process ended with exit code 1" in failure["error"]
        assert [event["y"] for event in server.events("counts", {"x": [1]})] == [0]
        assert ask(server, "hello", "name", "BYTES", "Ada")[0] == 200
        (worker,) = (worker for worker in server.status()["workers"] if worker["kind"] == "python")
        assert worker["restarts"] == 0


ASKS = """
    import json
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        {kind} execute(self, requests):
            answers = []
            for request in requests:
                asked = json.loads(request.parameters())
                assert asked.keys() <= {{"other", "count"}}
                assert request.request_id() == "r7"
                other = pb_utils.InferenceRequest(
                    model_name=asked.get("other", "hello"),
                    requested_output_names=["greeting"],
                    inputs=[pb_utils.Tensor("name", np.array([b"Ada"] * int(asked.get("count", 1)), object))],
                )
                answer = {call}
                if answer.has_error():
                    answers.append(pb_utils.InferenceResponse(error=answer.error()))
                    continue
                said = pb_utils.get_output_tensor_by_name(answer, "greeting").as_numpy()
                y = np.array([len(said), len(said[0])], np.float32)
                answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
            return answers
"""


def test_models_that_ask_others(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(HELLO, repository / "hello")
    write_python(repository / "asks", ASKS.format(kind="def", call="other.exec()"))
    write_python(repository / "waits", ASKS.format(kind="async def", call="await other.async_exec()"))
    with started(repository, tmp_path / "server", "--workers", "1", "--allow-code") as server:

        def answer(model: str, **parameters: Any) -> tuple[int, Any]:
            inputs = [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]
            return server.post(f"/v2/models/{model}/infer", {"id": "r7", "inputs": inputs, "parameters": parameters})

        for model in ("asks", "waits"):
            for count in (1, 100_000):
                status, document = answer(model, count=count)
                assert (status, document["outputs"][0]["data"]) == (200, [count, len("Hello, Ada!")])
            status, document = answer(model, other="nobody")
            assert (status, "'nobody' is not found" in document["error"]) == (404, True)
        status, document = answer("asks", other="asks")
        assert status == 400  # unlike what it takes
        (stats,) = server.get("/v2/models/hello/stats")[1]["model_stats"]
        assert stats["inference_stats"]["success"]["count"] == 4


def test_a_model_that_takes_more_than_the_budget(repository: Path, tmp_path: Path) -> None:
    greedy = """
        from roost.runtimes import Model

        class Greedy(Model):
            def load(self):
                self.hoard = bytearray(b"x") * (96 << 20)

            def predict(self, request):
                return {"y": request["x"]}
    """
    grows = """
        import time
        from roost.runtimes import Model

        class Grows(Model):
            def predict(self, request):
                self.hoard = bytearray(b"x") * (256 << 20)
                time.sleep(60)
    """
    write_python(repository / "greedy", greedy)
    write_python(repository / "grows", grows)
    shutil.copytree(HELLO, repository / "hello")
    with started(
        repository, tmp_path / "server", "--workers", "1", "--memory-budget", "64MiB", "--allow-code"
    ) as server:
        assert ask(server, "hello", "name", "BYTES", "Ada")[0] == 200
        for _ in range(2):  # the second time without a load
            status, document = ask(server, "greedy", "x", "FP32", 1)
            assert (status, "the memory budget has for it" in document["error"]) == (429, True), document
        assert server.resident() == {"hello"}
        status, document = ask(server, "grows", "x", "FP32", 1)
        assert (status, "more than the 128 MiB" in document["error"]) == (429, True), document
        assert ask(server, "hello", "name", "BYTES", "Ada")[0] == 200


def test_a_model_that_leaks_loses_its_process_and_no_more(repository: Path, tmp_path: Path) -> None:
    leaks = """
        import os
        import time
        from roost.runtimes import Model

        class Leaks(Model):
            def load(self):
                self.hoard = []

            def predict(self, request):
                self.hoard.append(bytearray(b"x") * (16 << 20))
                time.sleep(0.1)
                return {"y": [os.getpid()]}
    """
    write_python(repository / "leaks", leaks)
    shutil.copytree(HELLO, repository / "hello")
    flags = ("--workers", "1", "--memory-budget", "64MiB", "--allow-code")
    with started(repository, tmp_path / "server", *flags) as server:
        processes = set()
        for _ in range(40):
            status, document = ask(server, "leaks", "x", "FP32", 1)
            if status == 200:
                processes.add(document["outputs"][0]["data"][0])
            else:
                assert (status, "more than the 128 MiB" in document["error"]) == (429, True), document
            assert ask(server, "hello", "name", "BYTES", "Ada")[0] == 200
        assert len(processes) > 1

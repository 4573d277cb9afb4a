"""mosec with one route and one worker process for each model; it reads and writes the protocol's JSON."""

import json
import os
from typing import Any

import numpy as np
import onnxruntime
import orjson
from mosec import Runtime, Server, Worker

TYPES = {"INT32": np.int32, "UINT8": np.uint8, "FP32": np.float32}


def models() -> dict[str, Any]:
    """What ``models.json`` says of each model."""
    with open(os.environ["BENCH_MODELS"], encoding="utf-8") as file:
        return json.load(file)


class OnnxWorker(Worker):
    """Runs the model that ``BENCH_MODEL`` names, a batch in one run."""

    def __init__(self) -> None:
        model = models()[os.environ["BENCH_MODEL"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model["file"], options, providers=["CPUExecutionProvider"])
        self._name = os.environ["BENCH_MODEL"]
        self._outputs = [tensor["name"] for tensor in model["outputs"]]
        self._datatypes = [tensor["datatype"] for tensor in model["outputs"]]

    def deserialize(self, data: bytes) -> dict[str, Any]:
        """JSON to arrays."""
        return {
            tensor["name"]: np.array(tensor["data"], TYPES[tensor["datatype"]]).reshape(tensor["shape"])
            for tensor in orjson.loads(data)["inputs"]
        }

    def forward(self, data: Any) -> Any:
        """One run for all requests of a batch (a list), or for the one request of a model that does not batch."""
        if isinstance(data, dict):
            return self._session.run(self._outputs, data)
        if len(data) == 1:
            return [self._session.run(self._outputs, data[0])]
        values = self._session.run(
            self._outputs, {name: np.concatenate([row[name] for row in data]) for name in data[0]}
        )
        answers, first = [], 0
        for row in data:
            last = first + len(next(iter(row.values())))
            answers.append([value[first:last] for value in values])
            first = last
        return answers

    def serialize(self, data: Any) -> bytes:
        """Arrays to JSON."""
        outputs = [
            {"name": name, "datatype": datatype, "shape": value.shape, "data": value.ravel()}
            for name, datatype, value in zip(self._outputs, self._datatypes, data, strict=True)
        ]
        return orjson.dumps({"model_name": self._name, "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    server = Server()
    server.register_runtime(
        {
            f"/v2/models/{name}/infer": [
                Runtime(
                    OnnxWorker,
                    max_batch_size=max(model["max_batch_size"], 1),
                    max_wait_time=1,  # ms, the least it takes; its default is 10
                    env=[{"BENCH_MODEL": name}],
                )
            ]
            for name, model in models().items()
        }
    )
    server.run()

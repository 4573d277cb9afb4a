"""A model of Triton's Python backend that runs ``model.onnx`` beside it: the requests of a batch in one run."""

import json
import os
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What the backend asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model, with one thread."""
        config = json.loads(args["model_config"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._batches = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers a batch of requests."""
        if len(requests) == 1 or not self._batches:
            return [self._answer(self._run(self._arrays(request))) for request in requests]
        each = [self._arrays(request) for request in requests]
        values = self._run([np.concatenate(arrays) for arrays in zip(*each, strict=True)])
        answers, first = [], 0
        for arrays in each:
            last = first + len(arrays[0])
            answers.append(self._answer([value[first:last] for value in values]))
            first = last
        return answers

    def _arrays(self, request: Any) -> list[Any]:
        return [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]

    def _run(self, arrays: list[Any]) -> list[Any]:
        return self._session.run(self._outputs, dict(zip(self._inputs, arrays, strict=True)))

    def _answer(self, values: list[Any]) -> Any:
        tensors = [pb_utils.Tensor(name, value) for name, value in zip(self._outputs, values, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)

"""What the runtimes do with GPUs on a machine without any: run as a program, since tests do not import PyTorch.

``python -m tests.gpu_frameworks FOLDER`` takes models that ``tests.torch_models`` has left there, and fails if a
runtime takes this machine for one with a GPU, or if a model answers otherwise elsewhere than on the CPU. For PyTorch
the first CPU is another device than the CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from roost.core.tensors import from_array, to_array
from roost.runtimes.onnx import OnnxRuntime
from roost.runtimes.protocol import GpuRuntime, LoadSpec, NoGpu, RunHandle
from roost.runtimes.pytorch.runtime import PytorchRuntime
from roost.runtimes.tensorflow.adapter import TensorflowRuntime

ELSEWHERE = torch.device("cpu", 0)


def main(folder: Path) -> None:
    assert refusal(OnnxRuntime()) == "this ONNX Runtime was built without CUDA: install onnxruntime-gpu instead"
    assert refusal(PytorchRuntime()) == "this PyTorch was built without CUDA"
    assert "TensorFlow finds none" in refusal(TensorflowRuntime())
    rows = json.dumps([["x", "FP32", [-1, 3, 16, 16]]]), json.dumps([["y", "FP32", [-1, 10]]])
    declared = {"roost.inputs": rows[0], "roost.outputs": rows[1], "roost.max_batch_size": "8"}
    compare(folder / "conv.pt", declared)
    compare(folder / "conv.pt2", declared)
    compare(folder / "both.pt2")


def refusal(runtime: GpuRuntime) -> str:
    """Why a runtime can't use a GPU."""
    try:
        runtime.use_gpu()
    except NoGpu as error:
        return str(error)
    raise AssertionError(f"{runtime} has found a GPU")


def compare(path: Path, options: dict[str, str] | None = None) -> None:
    """Loads a model elsewhere and asks it what PyTorch was asked."""
    with np.load(path.with_suffix(".npz")) as found:
        arrays = dict(found)
    model = PytorchRuntime(ELSEWHERE).load(LoadSpec(str(path), str(path.parent), options=options or {}))
    inputs = [from_array(spec.name, spec.datatype, arrays[spec.name]) for spec in model.signature.inputs]
    outputs = model.run(inputs, (), RunHandle())
    assert len(outputs) == len(model.signature.outputs)
    for output in outputs:
        np.testing.assert_allclose(to_array(output), arrays[output.name], rtol=1e-5, atol=1e-6)
    model.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

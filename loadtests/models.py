"""The models of the benches, written as a repository in Triton's layout, with inputs to ask them about.

Every server is given the same ``model.onnx``; how a server is told to run it is its adapter's business. Run alone, it
writes the models and prints what they cost here: ``python -m loadtests.models FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper, numpy_helper

from loadtests.many_models import model_file, sample_inputs
from tests.models import tensor_info, write_graph, write_identity, write_mlp, write_simple

Arrays = dict[str, npt.NDArray[Any]]

TYPES = {"INT32": np.int32, "UINT8": np.uint8, "FP32": np.float32}
IMAGE_SIDE = 224


@dataclass(frozen=True, slots=True)
class TensorDecl:
    """An input or output as config.pbtxt declares it: without the batch dimension where the model batches."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model that was written.

    Attributes:
        name: Its folder in the repository.
        file: The ``model.onnx``.
        max_batch_size: How many rows a batch may have; 0 for a model that does not batch.
        inputs: What it takes.
        outputs: What it gives.
        draw: Makes the input arrays for a number of rows (elements for a model that does not batch); they depend on
            nothing else, so that two calls agree.
    """

    name: str
    file: Path
    max_batch_size: int
    inputs: tuple[TensorDecl, ...]
    outputs: tuple[TensorDecl, ...]
    draw: Callable[[int], Arrays]

    def config(self, backend: str = "onnxruntime", more: str = "") -> str:
        """Its config.pbtxt: dynamic batching where it can, one instance on the CPU, one thread for each operator."""
        lines = [f'name: "{self.name}"', f'backend: "{backend}"', f"max_batch_size: {self.max_batch_size}"]
        for field, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                dims = ", ".join(map(str, tensor.dims))
                lines.append(
                    f'{field} [ {{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: [ {dims} ] }} ]'
                )
        lines.append("instance_group [ { count: 1 kind: KIND_CPU } ]")
        if self.max_batch_size:
            lines.append("dynamic_batching { }")
        threads = ("intra_op_thread_count", "inter_op_thread_count")
        lines += [f'parameters {{ key: "{key}" value: {{ string_value: "1" }} }}' for key in threads]
        return "\n".join((*lines, more, ""))


def session(file: Path) -> Any:
    """ONNX Runtime itself, with one thread, as all servers run the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def expected(model: BenchModel, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """What ONNX Runtime itself answers."""
    values = session(model.file).run([tensor.name for tensor in model.outputs], dict(inputs))
    return {tensor.name: value for tensor, value in zip(model.outputs, values, strict=True)}


def simple(folder: Path) -> BenchModel:
    """Sum and difference of two INT32 ``[rows, 16]``: nothing to compute, so that the way there and back is all."""
    return BenchModel(
        "simple",
        write_simple(folder / "simple" / "1" / "model.onnx", batch=-1),
        8,
        (TensorDecl("INPUT0", "INT32", (16,)), TensorDecl("INPUT1", "INT32", (16,))),
        (TensorDecl("OUTPUT0", "INT32", (16,)), TensorDecl("OUTPUT1", "INT32", (16,))),
        lambda rows: {
            "INPUT0": np.arange(rows * 16, dtype=np.int32).reshape(rows, 16),
            "INPUT1": np.ones((rows, 16), np.int32),
        },
    )


def mlp(folder: Path) -> BenchModel:
    """Three dense layers over FP32 ``[rows, 784]``: about 0.1 ms for one row, less for each of many."""
    return BenchModel(
        "mlp",
        write_mlp(folder / "mlp" / "1" / "model.onnx"),
        32,
        (TensorDecl("x", "FP32", (784,)),),
        (TensorDecl("y", "FP32", (10,)),),
        # Four digits, as pixels have them; all the digits of a float would only make every JSON parser slower.
        lambda rows: {"x": np.random.default_rng(rows).random((rows, 784), np.float32).round(4)},
    )


def magika(folder: Path) -> BenchModel:
    """The file type model of the package ``magika``: INT32 ``[rows, 2048]``, several milliseconds."""
    file = folder / "magika" / "1" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.symlink_to(model_file())
    samples = sample_inputs()
    labels = session(file).get_outputs()[0].shape[-1]
    return BenchModel(
        "magika",
        file,
        16,
        (TensorDecl("bytes", "INT32", (2048,)),),
        (TensorDecl("target_label", "FP32", (labels,)),),
        lambda rows: {"bytes": np.concatenate([samples[row % len(samples)] for row in range(rows)])},
    )


def convnet(folder: Path) -> BenchModel:
    """A small convolutional net over FP32 ``[rows, 3, 224, 224]``: 0.6 MB a row and about a millisecond."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "image", 3
    for index, out in enumerate((8, 16, 32)):
        kernel = rng.standard_normal((out, channels, 3, 3), dtype=np.float32) * (2 / (channels * 9)) ** 0.5
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"k{index}"))
        nodes.append(helper.make_node("Conv", [last, f"k{index}"], [f"c{index}"], strides=[4, 4], kernel_shape=[3, 3]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, channels = f"r{index}", out
    dense = rng.standard_normal((channels, 10), dtype=np.float32)
    weights.append(numpy_helper.from_array(dense, "dense"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], axis=1))
    nodes.append(helper.make_node("MatMul", ["flat", "dense"], ["scores"]))
    dims = (3, IMAGE_SIDE, IMAGE_SIDE)
    file = write_graph(
        folder / "convnet" / "1" / "model.onnx",
        nodes,
        [tensor_info("image", "FP32", ["batch", *dims])],
        [tensor_info("scores", "FP32", ["batch", 10])],
        weights,
    )
    return BenchModel(
        "convnet",
        file,
        16,
        (TensorDecl("image", "FP32", dims),),
        (TensorDecl("scores", "FP32", (10,)),),
        lambda rows: {"image": np.random.default_rng(rows).standard_normal((rows, *dims), np.float32)},
    )


def identity(folder: Path) -> BenchModel:
    """Gives back FP32 ``[elements]`` of any number: what it costs to carry bytes."""
    return BenchModel(
        "identity",
        write_identity(folder / "identity" / "1" / "model.onnx", "FP32", (-1,)),
        0,
        (TensorDecl("INPUT0", "FP32", (-1,)),),
        (TensorDecl("OUTPUT0", "FP32", (-1,)),),
        lambda elements: {"INPUT0": np.random.default_rng(elements).random(elements, np.float32)},
    )


MODELS: dict[str, Callable[[Path], BenchModel]] = {
    "simple": simple,
    "mlp": mlp,
    "magika": magika,
    "convnet": convnet,
    "identity": identity,
}


def write_models(folder: Path, names: Iterable[str] = MODELS) -> dict[str, BenchModel]:
    """Writes models and their config.pbtxt as Roost is given them."""
    models = {name: MODELS[name](folder) for name in names}
    for model in models.values():
        write_config(model)
    return models


def write_config(model: BenchModel) -> None:
    """Writes the config.pbtxt beside the model's versions."""
    (model.file.parent.parent / "config.pbtxt").write_text(model.config(), encoding="utf-8")


def main() -> int:
    """Writes all models into the folder of the command line and prints what those that take time cost."""
    from loadtests.work_models import write_work_models

    folder = Path(sys.argv[1])
    write_models(folder)
    for work in write_work_models(folder):
        print(work.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

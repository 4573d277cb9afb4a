"""Small models for tests, written as files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}


def write_graph(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Any] = (),
    **save: Any,
) -> Path:
    """Writes any graph; old enough versions are declared that every supported ONNX Runtime loads it."""
    graph = helper.make_graph(list(nodes), path.parent.name or "graph", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path), **save)
    return path


def tensor_info(name: str, datatype: str, shape: Sequence[int | str | None] | None) -> Any:
    """Declares an input or output; -1 is written as an unknown dimension."""
    dims = None if shape is None else [None if dim == -1 else dim for dim in shape]
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], dims)


def write_simple(path: Path, batch: int = 1) -> Path:
    """INPUT0 and INPUT1, INT32 [batch, 16], give their sum OUTPUT0 and difference OUTPUT1; -1 leaves the batch open."""
    shape = (batch, 16)
    return write_graph(
        path,
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        [tensor_info("INPUT0", "INT32", shape), tensor_info("INPUT1", "INT32", shape)],
        [tensor_info("OUTPUT0", "INT32", shape), tensor_info("OUTPUT1", "INT32", shape)],
    )


def write_identity(path: Path, datatype: str, shape: Sequence[int | str | None] = (-1, -1)) -> Path:
    """INPUT0 comes back as OUTPUT0."""
    return write_graph(
        path,
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        [tensor_info("INPUT0", datatype, shape)],
        [tensor_info("OUTPUT0", datatype, shape)],
    )


def write_mlp(path: Path, layers: Sequence[int] = (784, 1024, 1024, 10), seed: int = 0, **save: Any) -> Path:
    """``x`` FP32 [batch, layers[0]] goes through dense layers with ReLU to ``y`` FP32 [batch, layers[-1]]."""
    rng = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(layers)):
        weights.append(numpy_helper.from_array(rng.random((rows, columns), dtype=np.float32) - 0.5, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"h{index}"]))
        last = f"h{index}"
        if index < len(layers) - 2:
            nodes.append(helper.make_node("Relu", [last], [f"a{index}"]))
            last = f"a{index}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    inputs = [tensor_info("x", "FP32", ["batch", layers[0]])]
    return write_graph(path, nodes, inputs, [tensor_info("y", "FP32", ["batch", layers[-1]])], weights, **save)


def write_loop(path: Path) -> Path:
    """Counts to ``n`` INT64 [] one by one and gives ``total`` FP32 []: a run that lasts as long as one likes."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["sum", "one"], ["next"])],
        "body",
        [tensor_info("i", "INT64", []), tensor_info("go", "BOOL", []), tensor_info("sum", "FP32", [])],
        [tensor_info("go_on", "BOOL", []), tensor_info("next", "FP32", [])],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    return write_graph(
        path,
        [helper.make_node("Loop", ["n", "", "zero"], ["total"], body=body)],
        [tensor_info("n", "INT64", [])],
        [tensor_info("total", "FP32", [])],
        [numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )


def write_garbage(path: Path) -> Path:
    """A file that is no model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no model " * 64)
    return path


def write_dummy(
    path: Path,
    inputs: Sequence[Sequence[Any]] = (("INPUT0", "FP32", (-1, 4)),),
    outputs: Sequence[Sequence[Any]] = (("OUTPUT0", "FP32", (-1, 4)),),
    **behaviour: Any,
) -> Path:
    """A model of the dummy runtime (``model.dummy``); the rest is how it behaves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"inputs": inputs, "outputs": outputs, **behaviour}))
    return path


def write_policy(model: Path, config: str = "", **policy: str | int | bool) -> None:
    """Writes a model's ``config.pbtxt``: what its owner asks for as ``roost.*`` parameters, behind other lines."""
    lines = [f'parameters {{ key: "roost.{key}" value {{ string_value: "{policy[key]}" }} }}' for key in policy]
    (model / "config.pbtxt").write_text("\n".join([config, *lines, ""]))

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from roost.core.tensors import DATATYPES

from tests.models import tensor_info, write_dummy, write_garbage, write_graph, write_identity, write_simple
from tests.server import RoostServer, started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what another transport of gRPC makes no difference to."""
    items[:] = [item for item in items if not (_transport_of(item) == "grpcio" and "grpc" not in _kind_of(item))]


def _transport_of(item: pytest.Item) -> str:
    return (
        str(item.callspec.params.get("server", ""))
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else ""
    )


def _kind_of(item: pytest.Item) -> str:
    assert isinstance(item, pytest.Function)
    return str(item.callspec.params.get("kind", "grpc"))


@pytest.fixture(scope="session", params=["native", "grpcio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    """A server with many models, once for each transport of gRPC.

    ``simple`` in two versions, ``batched``, a model for each datatype that echoes its input, ``columns`` (two INT32
    columns come back), ``broken``, ``slow``, ``simple_string``, ``simple_identity``, ``labelled`` (FP32 comes back, its
    classes have labels), and the decoupled ``many`` (three responses, or what the parameter ``stream`` says).
    """
    folder = tmp_path_factory.mktemp("conformance")
    models = folder / "models"
    for version in ("1", "3"):
        write_simple(models / "simple" / version / "model.onnx")
    (models / "simple" / "config.pbtxt").write_text("version_policy { all {} }\n")
    write_simple(models / "batched" / "1" / "model.onnx", batch=-1)
    (models / "batched" / "config.pbtxt").write_text("max_batch_size: 8\n")
    for datatype in DATATYPES:
        write_identity(models / f"identity_{datatype}" / "1" / "model.onnx", datatype)
    for datatype in ("BF16", "BYTES"):  # a runtime that never looks at the elements
        echo = (("INPUT0", datatype, (-1, -1)),), (("OUTPUT0", datatype, (-1, -1)),)
        write_dummy(models / f"echo_{datatype}" / "1" / "model.dummy", *echo)
    column = ("INT32", (-1, 1))
    write_dummy(
        models / "columns" / "1" / "model.dummy",
        [("INPUT0", *column), ("INPUT1", *column)],
        [("OUTPUT0", *column), ("OUTPUT1", *column)],
    )
    write_garbage(models / "broken" / "1" / "model.onnx")
    write_dummy(models / "slow" / "1" / "model.dummy", run_s=60)
    write_simple_string(models / "simple_string" / "1" / "model.onnx")
    write_identity(models / "simple_identity" / "1" / "model.onnx", "BYTES", (-1, 16))
    write_many(models / "many")
    write_labelled(models / "labelled")
    flags = ("--workers", "1", "--server-name", "conforming", "--allow-client-shm", "--grpc-transport", request.param)
    with started(models, folder / "run", *flags) as running:
        yield running


@pytest.fixture(scope="session")
def explicit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    """A server whose models are loaded by calls."""
    folder = tmp_path_factory.mktemp("explicit")
    write_simple(folder / "models" / "simple" / "1" / "model.onnx")
    with started(folder / "models", folder / "run", "--workers", "1", "--model-control", "explicit") as running:
        yield running


def write_many(folder: Path) -> None:
    """A decoupled model: FP32 [-1, 4] comes back several times, each with its number."""
    outputs = (("OUTPUT0", "FP32", (-1, 4)), ("sequence", "INT64", (1,)))
    write_dummy(folder / "1" / "model.dummy", outputs=outputs, stream=3)
    (folder / "config.pbtxt").write_text("model_transaction_policy { decoupled: true }\n")


def write_labelled(folder: Path) -> None:
    """Gives FP32 [-1, 4] back, whose four columns have labels."""
    write_identity(folder / "1" / "model.onnx", "FP32", (-1, 4))
    output = 'output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" }'
    (folder / "config.pbtxt").write_text(f"max_batch_size: 8\n{output}\n")
    (folder / "labels.txt").write_text("cat\ndog\nfish\nbird\n")


def write_simple_string(path: Path) -> None:
    """Sum and difference of integers that are written out, as in Triton's example of that name."""
    shape = (-1, 16)
    nodes = [helper.make_node("Cast", [f"INPUT{i}"], [f"number{i}"], to=TensorProto.INT32) for i in range(2)]
    for index, operation in enumerate(("Add", "Sub")):
        nodes.append(helper.make_node(operation, ["number0", "number1"], [f"result{index}"]))
        nodes.append(helper.make_node("Cast", [f"result{index}"], [f"OUTPUT{index}"], to=TensorProto.STRING))
    inputs = [tensor_info(f"INPUT{i}", "BYTES", shape) for i in range(2)]
    write_graph(path, nodes, inputs, [tensor_info(f"OUTPUT{i}", "BYTES", shape) for i in range(2)])

from __future__ import annotations

from collections.abc import Iterator

import pytest
from roost.core.tensors import DATATYPES

from tests.models import write_dummy, write_identity, write_simple
from tests.server import RoostServer, started


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    """A server with ``simple`` in two versions, ``batched``, and a model for each datatype that echoes its input."""
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
    with started(models, folder / "run", "--workers", "1", "--server-name", "conforming") as running:
        yield running


@pytest.fixture(scope="session")
def explicit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    """A server whose models are loaded by calls."""
    folder = tmp_path_factory.mktemp("explicit")
    write_simple(folder / "models" / "simple" / "1" / "model.onnx")
    with started(folder / "models", folder / "run", "--workers", "1", "--model-control", "explicit") as running:
        yield running

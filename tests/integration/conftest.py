from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from tests.integration import grpc_place
from tests.unit.grpc_fakes import FakeDataPlane


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty model repository."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def torch_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models of PyTorch and what it answers, made once for all tests that need them."""
    return _made("tests.torch_models", tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="session")
def tabular_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise, of scikit-learn, XGBoost and LightGBM."""
    return _made("tests.tabular_models", tmp_path_factory.mktemp("tabular"))


def _made(program: str, folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", program, str(folder)], check=True, timeout=100)
    return folder


@pytest.fixture
async def plane() -> FakeDataPlane:
    """What is behind ``served``."""
    return FakeDataPlane()


@pytest.fixture(params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What serves gRPC in ``grpc_place``."""
    name: str = request.param
    monkeypatch.setattr(grpc_place, "TRANSPORT", name)
    return name


@pytest.fixture
async def served(plane: FakeDataPlane, transport: str) -> AsyncIterator[tuple[int, grpc.aio.Channel]]:
    """The port of a gRPC server, and a channel to it."""
    async with grpc_place.serving(plane) as place:
        yield place

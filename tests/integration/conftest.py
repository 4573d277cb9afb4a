from __future__ import annotations

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

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from tests.integration.grpc_place import serving
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


@pytest.fixture
async def served(plane: FakeDataPlane) -> AsyncIterator[tuple[int, grpc.aio.Channel]]:
    """The port of a gRPC server, and a channel to it."""
    async with serving(plane) as place:
        yield place

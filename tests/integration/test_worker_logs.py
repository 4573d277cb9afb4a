"""The log of a server and its workers is one: one format, one level, and each line says who wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients import connect, four
from tests.models import write_dummy, write_garbage
from tests.server import RoostServer, started


async def _fail(server: RoostServer) -> None:
    async with connect(server, "grpc") as client:
        for model in ("broken", "garbage"):
            with pytest.raises(Exception, match=model if model == "garbage" else "error [0-9a-f]{8}"):
                await client.infer(model, four())


def _lines(server: RoostServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


@pytest.fixture
def repository(repository: Path) -> Path:
    """Models that fail: one unexpectedly when it runs, one when it is loaded."""
    write_dummy(repository / "broken" / "1" / "model.dummy", run_s="no number")
    write_garbage(repository / "garbage" / "1" / "model.onnx")
    return repository


async def test_every_line_is_json(tmp_path: Path, repository: Path) -> None:
    with started(repository, tmp_path / "run", "--workers", "2", "--log-format", "json") as server:
        await _fail(server)
        lines = _lines(server)
        server.log_file.write_text("")  # there is a traceback, and it is meant to be there
    assert _lines(server), "what it says at the end is JSON as well"
    (failure,) = [line for line in lines if line["logger"].startswith("roost.runtimes")]
    assert failure["level"] == "error"
    assert failure["worker"] in (0, 1)
    assert "could not convert string to float" in failure["exception"]


async def test_lines_for_people_name_the_worker(tmp_path: Path, repository: Path) -> None:
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        await _fail(server)
        (line,) = [line for line in server.log.splitlines() if " runtimes." in line]
        assert line.endswith(" worker=0")
        assert "ERROR" in line
        server.log_file.write_text("")

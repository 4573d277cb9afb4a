"""A server that is restarted has what was in use before it, without a request."""

from __future__ import annotations

import asyncio
from pathlib import Path

from roost.core.requests import InferResponse

from tests.clients import connect, four
from tests.models import write_dummy
from tests.server import RoostServer, eventually, started

MIB = 1 << 20
MODELS = "abcde"
LAST_USED = ["d", "e", "a"]
FLAGS = ("--workers", "2", "--memory-budget", "13MiB")  # three of them


def _write_models(repository: Path) -> None:
    for name in MODELS:
        write_dummy(repository / name / "1" / "model.dummy")
        (repository / name / "config.pbtxt").write_text(
            f'parameters {{ key: "roost.memory_bytes" value {{ string_value: "{4 * MIB}" }} }}\n'
        )


async def _ask(server: RoostServer, *names: str) -> list[InferResponse]:
    async with connect(server, "rest") as client:
        return [await client.infer(name, four()) for name in names]


async def _has_them_again(server: RoostServer) -> None:
    await eventually(lambda: server.resident() == set(LAST_USED), "the models that were used last")
    await eventually(lambda: "loaded 3 models again" in server.log, "the line in the log")
    assert server.metric("roost_loads_total") == 3
    assert server.metric("roost_evictions_total") == 0


async def test_what_was_used_last_is_resident_again_after_a_restart(tmp_path: Path, repository: Path) -> None:
    _write_models(repository)
    with started(repository, tmp_path / "stopped", *FLAGS) as server:
        await _ask(server, *MODELS, "a")
    state = ("--state-dir", str(tmp_path / "stopped" / "state"))
    with started(repository, tmp_path / "killed", *FLAGS, *state) as server:
        await _has_them_again(server)
        server.kill()
    with started(repository, tmp_path / "again", *FLAGS, *state) as server:
        await _has_them_again(server)
        await _ask(server, *LAST_USED)
        assert server.metric("roost_loads_total") == 3, "requests found them loaded"
        await _ask(server, "b")
        assert "b" in server.resident()
    with started(repository, tmp_path / "off", *FLAGS, *state, "--no-preload") as server:
        await _ask(server, "c")
        assert server.resident() == {"c"}


async def test_requests_at_once_after_a_restart_are_answered(tmp_path: Path, repository: Path) -> None:
    _write_models(repository)
    with started(repository, tmp_path / "run", *FLAGS) as server:
        await _ask(server, *MODELS)
    with started(repository, tmp_path / "run", *FLAGS) as server:
        answers = await asyncio.gather(*(_ask(server, *MODELS, *reversed(MODELS)) for _ in range(4)))
        assert all(len(answer) == 2 * len(MODELS) for answer in answers)

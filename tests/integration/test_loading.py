"""Loads that take long: a model's own timeout, and requests that can't wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.scenario_place import MIB, books_are_right, write_model
from tests.server import RoostServer, eventually, started

ROW = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}


def ask(server: RoostServer, model: str, timeout_s: float = 30.0) -> tuple[int, Any]:
    """Status and text of the answer to a request that may take so long."""
    document = {"inputs": [ROW], "parameters": {"timeout": round(timeout_s * 1e6)}}
    return server.post(f"/v2/models/{model}/infer", document)


async def test_a_model_may_have_a_load_timeout_of_its_own_and_others_do_not_suffer(
    tmp_path: Path, repository: Path
) -> None:
    write_model(repository, "slow", load_s=600.0, policy={"load_timeout_s": "300ms"})
    write_model(repository, "other")
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        assert ask(server, "other")[0] == 200
        (before,) = server.status()["workers"]
        status, text = ask(server, "slow")
        assert status == 503
        assert "it did not load within 0.3 s" in str(text)
        assert ask(server, "other")[0] == 200
        (after,) = server.status()["workers"]
        assert (after["pid"], after["epoch"]) == (before["pid"], before["epoch"])
        assert server.metric("roost_loads_total", model="other") == 1
        await eventually(lambda: books_are_right(server), "peace")


async def test_who_can_not_wait_for_a_load_is_told_when_to_come_back(tmp_path: Path, repository: Path) -> None:
    for name in ("slow", "other"):
        write_model(repository, name, 4 * MIB, load_s=1.0)
    with started(repository, tmp_path / "run", "--workers", "1", "--memory-budget", str(5 * MIB)) as server:
        assert ask(server, "slow")[0] == 200, "nobody knows how long it takes"
        assert ask(server, "other")[0] == 200
        status, text = ask(server, "slow", timeout_s=0.5)
        assert status == 429
        assert "not loaded" in str(text)
        await eventually(lambda: server.resident() == {"slow"}, "the load, for whoever comes back")
        assert ask(server, "slow")[0] == 200
        assert server.metric("roost_refusals_total", reason="load_wait") == 1
        await eventually(lambda: books_are_right(server), "peace")

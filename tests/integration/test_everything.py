"""One server with models of every framework and kind at the same time, with memory for all of them and then too little.

The answers are those of the frameworks, which were asked directly.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
from pathlib import Path

import pytest

from tests.checks import Check
from tests.clients import TRANSPORTS, Client, connect, four
from tests.everything import build
from tests.models import write_dummy, write_policy
from tests.server import RoostServer, started

FRAMEWORKS = ("onnxruntime", "torch", "tensorflow", "sklearn", "xgboost", "lightgbm", "magika", "basic_pitch")
OF_EVERY_KIND = ("magika", "conv_script", "notes", "forest", "hello")

ENSEMBLE = "classes"
STEPS = {"halves", "conv_script", "best"}
"""An ensemble has no instance of its own, its steps do."""

MIB = 1 << 20
BUDGET = 1024 * MIB
LEFT = 64 * MIB
"""For all others beside the ballast, a pinned model that says that it takes the rest."""

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in FRAMEWORKS), reason="not all frameworks are installed"
)


@pytest.mark.timeout(240)
async def test_all_at_the_same_time_and_then_under_pressure(
    repository: Path, tmp_path: Path, torch_models: Path, tabular_models: Path
) -> None:
    checks = build(repository, torch_models, tabular_models)
    write_dummy(repository / "ballast" / "1" / "model.dummy")
    write_policy(repository / "ballast", memory_bytes=BUDGET - LEFT, pin="true")
    flags = ("--workers", "1", "--allow-code", "--memory-budget", str(BUDGET))
    with started(repository, tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as grpc:
            clients = dict(zip(TRANSPORTS, (rest, grpc), strict=True))
            await all_fit(server, clients, checks)
            await rest.infer("ballast", four())
            await some_fit(server, clients, checks)
        assert "ballast" in server.resident()
        assert all(worker["restarts"] == 0 for worker in server.status()["workers"])


async def all_fit(server: RoostServer, clients: dict[str, Client], checks: list[Check]) -> None:
    """Asks all at once over one transport, then over the other."""
    for client in clients.values():
        await asyncio.gather(*(check.run(server, client) for check in checks))
    assert server.resident() == {check.model for check in checks} - {ENSEMBLE} | STEPS
    kinds = {worker["kind"] for worker in server.status()["workers"]}
    assert kinds == {"onnx", "torch", "tensorflow", "sklearn", "python"}
    assert server.metric("roost_evictions_total") == 0


async def some_fit(server: RoostServer, clients: dict[str, Client], checks: list[Check]) -> None:
    """Both clients ask in orders of their own, so victims are of every kind."""

    async def ask(client: Client, seed: int) -> None:
        for check in random.Random(seed).sample(checks, len(checks)):
            await check.run(server, client)

    await asyncio.gather(*(ask(client, seed) for seed, client in enumerate(clients.values())))
    for model in OF_EVERY_KIND:
        assert server.metric("roost_evictions_total", model=model) > 0, model
    assert server.metric("roost_load_failures_total") == 0

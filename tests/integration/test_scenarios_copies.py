"""Scenarios 12, 15 and 20, as far as they are about copies: how many there are, where, and what that is good for."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from roost.core.errors import Code

from tests.clients import TRANSPORTS, CallFailed, connect, four, sixteen
from tests.integration.scenario_place import MIB, Watched, books_are_right, watched, write_model
from tests.models import write_policy, write_simple
from tests.server import RoostServer, eventually, started


def _copies(server: RoostServer, model: str) -> list[int]:
    """The workers that have a copy which takes requests."""
    return [
        worker["id"]
        for worker in server.status()["workers"]
        for instance in worker["instances"]
        if instance["model"] == model and instance["state"] == "ready"
    ]


async def test_scenario_12_kill_9_of_one_of_two_copies(tmp_path: Path, repository: Path) -> None:
    """One of three workers is killed under traffic on models with two copies: no request fails, and both are back."""
    names = [f"hot-{number}" for number in range(4)]
    for name in names:
        write_simple(repository / name / "1" / "model.onnx")
        write_policy(repository / name, min_copies=2)
    outcomes: Counter[str] = Counter()
    done = asyncio.Event()

    async def call(transport: str, name: str) -> None:
        async with connect(server, transport) as client:
            while not done.is_set():
                try:
                    await client.infer(name, sixteen())
                    outcomes["answered"] += 1
                except CallFailed as error:
                    outcomes[str(error)] += 1

    with started(repository, tmp_path / "run", "--workers", "3") as server:
        await eventually(lambda: all(len(set(_copies(server, name))) == 2 for name in names), "two copies of each")
        async with asyncio.TaskGroup() as group:
            for name in names:
                for transport in TRANSPORTS:
                    group.create_task(call(transport, name))
            for _ in range(2):
                goal = outcomes["answered"] + 200
                os.kill(server.worker_of(names[0])["pid"], signal.SIGKILL)
                await eventually(lambda goal=goal: outcomes["answered"] >= goal, "more answers")  # type: ignore[misc]
                await eventually(lambda: all(len(set(_copies(server, name))) == 2 for name in names), "both again")
            done.set()
        assert set(outcomes) == {"answered"}, outcomes


@asynccontextmanager
async def _load_on(server: RoostServer, model: str, clients: int) -> AsyncIterator[Watched]:
    """So many clients ask the model without a pause; what is seen of the mesh meanwhile."""
    done = asyncio.Event()

    async def call(transport: str) -> None:
        async with connect(server, transport) as client:
            while not done.is_set():
                await client.infer(model, four())

    with watched(server) as seen:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(call(TRANSPORTS[number % 2]))
            try:
                yield seen
            finally:
                done.set()


async def test_scenario_15_copies_follow_load(tmp_path: Path, repository: Path) -> None:
    """More comes than one copy can run: others come within seconds, as many as allowed, and no load changes that."""
    write_model(repository, "hot", run_s=0.03, policy={"max_copies": 2})
    write_model(repository, "alone", run_s=0.03, policy={"max_copies": 1})
    with started(repository, tmp_path / "run", "--workers", "3") as server:
        async with connect(server, "grpc") as client:
            await asyncio.gather(*(client.infer("hot", four()) for _ in range(20)))
            assert len(_copies(server, "hot")) == 1, "one burst needs no copy"
        async with _load_on(server, "hot", 16) as seen, _load_on(server, "alone", 16):
            await eventually(lambda: len(set(_copies(server, "hot"))) == 2, "a second copy on another worker")
            answered = server.metric("roost_requests_total", model="alone")
            await eventually(lambda: server.metric("roost_requests_total", model="alone") > answered + 200, "more")
        assert seen.copies["hot"] == 2
        assert seen.copies["alone"] == 1
        assert server.metric("roost_loads_total") == 3, "none came and went"


async def test_scenario_15_and_20_the_least_number_of_copies(tmp_path: Path, repository: Path) -> None:
    """Two copies are asked for: they are there without a request, and there again after a loss or in want of memory."""
    write_model(repository, "kept", 4 * MIB, policy={"min_copies": 2})
    others = [f"other-{number}" for number in range(4)]
    for name in others:
        write_model(repository, name, 4 * MIB)
    with started(repository, tmp_path / "run", "--workers", "2", "--memory-budget", str(13 * MIB)) as server:
        await eventually(lambda: set(_copies(server, "kept")) == {0, 1}, "a copy on each worker")
        async with connect(server, "rest") as client:
            for name in others * 2:  # there is room for one of them beside the two copies
                await client.infer(name, four())
        await eventually(lambda: set(_copies(server, "kept")) == {0, 1}, "both copies")
        os.kill(server.status()["workers"][0]["pid"], signal.SIGKILL)
        await eventually(lambda: len(set(_copies(server, "kept"))) < 2, "the loss")
        await eventually(lambda: set(_copies(server, "kept")) == {0, 1}, "both copies again")
        await eventually(lambda: books_are_right(server), "peace")


async def test_scenario_20_labels_that_no_worker_has(tmp_path: Path, repository: Path) -> None:
    """A model goes where the labels are that it requires; where nobody has them, the error names them."""
    write_model(repository, "fast", policy={"required_labels": "disk=ssd"})
    write_model(repository, "nowhere", policy={"required_labels": "disk=tape"})
    flags = ("--workers", "2", "--worker-labels", "1:disk=ssd")
    with started(repository, tmp_path / "run", *flags) as server:
        for transport in TRANSPORTS * 2:
            async with connect(server, transport) as client:
                await client.infer("fast", four())
                with pytest.raises(CallFailed) as error:
                    await client.infer("nowhere", four())
                assert error.value.means(Code.FAILED_PRECONDITION)
                assert "disk=tape" in error.value.message
        assert _copies(server, "fast") == [1]
        assert server.metric("roost_load_failures_total") == 0

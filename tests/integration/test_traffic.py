"""Routes, versions, and many models that want the memory of few."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from roost.core.errors import Code

from tests.clients import PROBE_OUTPUTS, TRANSPORTS, CallFailed, connect, four
from tests.models import write_dummy
from tests.server import RoostServer, eventually, started

MIB = 1 << 20
REQUESTS = 600


def _sized(repository: Path, name: str, memory_bytes: int, **behaviour: Any) -> None:
    write_dummy(repository / name / "1" / "model.dummy", **behaviour)
    (repository / name / "config.pbtxt").write_text(
        f'parameters {{ key: "roost.memory_bytes" value {{ string_value: "{memory_bytes}" }} }}\n'
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_route_splits_traffic_by_weight(tmp_path: Path, repository: Path, transport: str) -> None:
    for version in ("1", "2", "3"):
        write_dummy(repository / "a" / version / "model.dummy")
    (repository / "a" / "config.pbtxt").write_text("version_policy { all {} }\n")
    routes = tmp_path / "routes.yaml"
    routes.write_text(
        "routes:\n"
        "- name: front\n"
        "  targets:\n"
        "  - {model: a, version: '1', weight: 75}\n"
        "  - {model: a, version: '2', weight: 25}\n"
        "  - {model: a, version: '3', weight: 0}\n"
    )
    with started(repository, tmp_path / "run", "--workers", "1", "--routes", str(routes)) as server:
        async with connect(server, transport) as client:
            answers = await asyncio.gather(*(client.infer("front", four()) for _ in range(REQUESTS)))
            counts = Counter(answer.model_version for answer in answers)
            assert set(counts) == {"1", "2"}
            assert 0.6 < counts["1"] / REQUESTS < 0.9  # more than eight standard deviations to each side
            assert {answer.model_name for answer in answers} == {"front"}
            assert (await client.infer("front", four(), version="3")).model_version == "3"
            assert (await client.infer("a", four())).model_version == "3"
            assert (await client.infer("a", four(), version="1")).model_version == "1"
            assert await client.is_ready("front")
            assert await client.metadata("front") == ["INPUT0"]
            with pytest.raises(CallFailed) as error:
                await client.infer("front", four(), version="4")
            assert error.value.means(Code.NOT_FOUND)


def _used_and_budget(server: RoostServer) -> tuple[int, int]:
    device = server.status()["devices"][0]
    return device["used_bytes"], device["budget_bytes"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cold_model_gets_its_turn_beside_constant_traffic(
    tmp_path: Path, repository: Path, transport: str
) -> None:
    for name in ("hot", "cold"):
        _sized(repository, name, 10 * MIB, run_s=0.005)
    done = asyncio.Event()

    async def keep_busy() -> int:
        answers = 0
        async with connect(server, transport) as client:
            while not done.is_set():
                await client.infer("hot", four())
                answers += 1
        return answers

    with started(repository, tmp_path / "run", "--workers", "1", "--memory-budget", "15MiB") as server:
        async with asyncio.TaskGroup() as group, connect(server, transport) as client:
            busy = [group.create_task(keep_busy()) for _ in range(6)]
            await eventually(lambda: server.resident() == {"hot"}, "the hot model")
            for _ in range(2):
                await client.infer("cold", four())
                assert _used_and_budget(server)[0] <= 15 * MIB
                await eventually(lambda: server.resident() == {"hot"}, "the hot model again")
            done.set()
        assert all(task.result() for task in busy)
        assert server.metric("roost_requests_total", model="hot", code="OK") == sum(t.result() for t in busy)
        assert server.metric("roost_requests_total", model="cold", code="OK") == 2
        assert server.metric("roost_evictions_total", model="hot") == 2


@pytest.mark.parametrize("workers", [1, 2])
async def test_models_come_and_go_under_traffic(tmp_path: Path, repository: Path, workers: int) -> None:
    draw = random.Random(workers)
    names = [f"model-{number}" for number in range(12)]
    for name in names:
        _sized(repository, name, draw.randrange(1, 6) * MIB, load_s=0.002, run_s=0.001)
    flags = ("--workers", str(workers), "--memory-budget", "12MiB")

    async def call(transport: str, count: int) -> None:
        async with connect(server, transport) as client:
            for _ in range(count):
                await client.infer(draw.choice(names), four())

    with started(repository, tmp_path / "run", *flags) as server:
        calls = asyncio.gather(*(call(transport, 60) for transport in TRANSPORTS * 4))
        while not calls.done():
            used, budget = await asyncio.to_thread(_used_and_budget, server)
            assert used <= budget == 12 * MIB
        await calls
        assert server.metric("roost_requests_total", code="OK") == 480
        loads, evictions = server.metric("roost_loads_total"), server.metric("roost_evictions_total")
        assert loads >= len(names)
        assert loads - evictions == len(server.instances())


async def test_the_least_recently_used_model_goes(tmp_path: Path, repository: Path) -> None:
    for name in "abcd":
        _sized(repository, name, 4 * MIB)
    with started(repository, tmp_path / "run", "--workers", "2", "--memory-budget", "12MiB") as server:
        async with connect(server, "rest") as client:
            for name in "abca":
                await client.infer(name, four())
            await client.infer("d", four())
            await eventually(lambda: server.resident() == {"a", "c", "d"}, "b gone")
            assert server.metric("roost_evictions_total") == server.metric("roost_evictions_total", model="b") == 1
            # What is evicted may still be asked for, and is no failure.
            assert await client.is_ready("b")
            await client.infer("b", four())


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_load_is_shared_by_all_who_want_it(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", outputs=PROBE_OUTPUTS, load_s=0.3)
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with connect(server, transport) as client:
            tasks = [asyncio.create_task(client.infer("a", four())) for _ in range(40)]
            await eventually(lambda: any(i["state"] == "loading" for i in server.instances()), "the load")
            for task in tasks[:20]:
                task.cancel()
            await asyncio.gather(*tasks[20:])
            await asyncio.gather(*tasks[:20], return_exceptions=True)
        assert server.metric("roost_loads_total", model="a") == 1

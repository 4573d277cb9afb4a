"""Scenarios 7 to 10: whose load goes first, who shares one, and what becomes of loads that fail."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from roost.core.errors import Code

from tests.clients import CallFailed, connect, four
from tests.integration.scenario_place import books_are_right, loads_begun, write_model
from tests.models import write_policy
from tests.server import RoostServer, eventually, started

SIGNATURE = """
input [ { name: "INPUT0", data_type: TYPE_FP32, dims: [ -1, 4 ] } ]
output [ { name: "OUTPUT0", data_type: TYPE_FP32, dims: [ -1, 4 ] } ]
"""
"""Known without a load, so that requests are checked and queued at once."""

JSON = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


async def test_scenario_7_priority_overtaking(tmp_path: Path, repository: Path) -> None:
    """Twenty models are loaded because somebody looks at them; what a request asks for meanwhile goes first."""
    begun = tmp_path / "begun"
    looked_at = [f"looked-at-{number:02}" for number in range(20)]
    for name in (*looked_at, "asked-for"):
        write_model(repository, name, load_s=0.15, load_begun=str(begun))
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client, asyncio.TaskGroup() as group:
            looks = [group.create_task(client.metadata(name)) for name in looked_at]
            await eventually(lambda: len(loads_begun(begun)) >= 2, "the first loads")
            waiting = [name for name in looked_at if name not in {model for _, model in loads_begun(begun)}]
            asked = ("asked-for", waiting[-1])
            await asyncio.gather(*(client.infer(name, four()) for name in asked))
            order = [model for _, model in loads_begun(begun)]
            assert all(not look.done() for look in looks[-4:-1]), "most of the others wait"
        places = sorted(order.index(name) for name in asked)
        # Each of the slots may have taken another load between the look at the file and the requests.
        assert places[-1] < len(looked_at) - len(waiting) + 2 + 2 * 2
        assert len({model for _, model in loads_begun(begun)}) == len(looked_at) + 1


async def test_scenario_8_coalesced_cold_load(tmp_path: Path, repository: Path) -> None:
    """Two hundred requests through three doors make one load, whoever leaves; if all leave, nothing stays behind."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    for name in ("wanted", "left"):
        write_model(repository, name, load_after=str(go), load_begun=str(begun))
        write_policy(repository / name, SIGNATURE)
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as grpc:
            requests = [asyncio.create_task(door.infer("wanted", four())) for door in (rest, grpc) for _ in range(80)]
            async with aiohttp.ClientSession() as session:
                v1 = [asyncio.create_task(_predict(server, session, "wanted")) for _ in range(40)]
                await eventually(lambda: server.status()["queued"] == 200, "all that wait")
                await eventually(lambda: bool(loads_begun(begun)), "the load")
                assert [model for _, model in loads_begun(begun)] == ["wanted"]
                go.touch()
                for leaver in (requests[0], requests[-1]):
                    leaver.cancel()
                await asyncio.gather(*requests[1:-1])
                assert await asyncio.gather(*v1) == [200] * 40
            assert server.metric("roost_loads_total", model="wanted") == 1

            go.unlink()
            leavers = [asyncio.create_task(door.infer("left", four())) for door in (rest, grpc) for _ in range(10)]
            await eventually(lambda: any(i["model"] == "left" for i in server.instances()), "the load")
            for leaver in leavers:
                leaver.cancel()
            await asyncio.gather(*leavers, return_exceptions=True)
            go.touch()
            await eventually(lambda: books_are_right(server), "peace")
            await asyncio.gather(rest.infer("left", four()), grpc.infer("left", four()))
            assert len(loads_begun(begun)) <= 3, "the one that nobody waited for may have been given up"


async def _predict(server: RoostServer, session: aiohttp.ClientSession, model: str) -> int:
    document = {"instances": [[1.0, 2.0, 3.0, 4.0]]}
    async with session.post(f"http://{server.http}/v1/models/{model}:predict", json=document) as answer:
        return answer.status


async def test_scenario_9_failure_fan_out_and_expiry(tmp_path: Path, repository: Path) -> None:
    """A model that no worker can load is tried on each once, then answered from memory, and tried again later."""
    begun, able = tmp_path / "begun", tmp_path / "able"
    able.touch()
    write_model(repository, "unlucky", loads_in=str(able), load_begun=str(begun))
    write_model(repository, "broken", fail_load="no weights", load_begun=str(begun))
    with started(repository, tmp_path / "run", "--workers", "5") as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as grpc:
            for _ in range(10):
                for door in (rest, grpc):
                    with pytest.raises(CallFailed) as error:
                        await door.infer("broken", four())
                    assert error.value.means(Code.UNAVAILABLE)
                    assert "no weights" in error.value.message
            assert 1 <= len(loads_begun(begun)) <= 3, "a broken file is broken everywhere"
            begun.unlink()

            failures = await asyncio.gather(*(rest.infer("unlucky", four()) for _ in range(20)), return_exceptions=True)
            assert all(isinstance(e, CallFailed) and "can't load it" in e.message for e in failures)
            pids = [pid for pid, _ in loads_begun(begun)]
            assert len(pids) == len(set(pids)) <= 5, "a fault of a worker is looked for once on each"
            assert server.get("/v2/models/unlucky/ready")[0] == 400
            able.write_text(" ".join(str(worker["pid"]) for worker in server.status()["workers"]))
            await eventually(lambda: server.post("/v2/models/unlucky/infer", JSON)[0] == 200, "another try")
            assert len(loads_begun(begun)) == len(pids) + 1
            await grpc.infer("unlucky", four())


async def test_scenario_10_one_good_worker(tmp_path: Path, repository: Path) -> None:
    """Four of five workers can't load a model: the request that asked for it is answered by the fifth."""
    begun, able = tmp_path / "begun", tmp_path / "able"
    write_model(repository, "lucky", loads_in=str(able), load_begun=str(begun))
    with started(repository, tmp_path / "run", "--workers", "5") as server:
        good = server.status()["workers"][-1]
        able.write_text(str(good["pid"]))
        async with connect(server, "grpc") as client:
            await client.infer("lucky", four())
        assert server.worker_of("lucky")["id"] == good["id"]
        pids = [pid for pid, _ in loads_begun(begun)]
        assert len(pids) == len(set(pids))
        assert pids[-1] == good["pid"]
        await eventually(lambda: books_are_right(server), "peace")

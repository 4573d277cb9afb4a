"""Scenarios 1 to 6: more models than memory. Who has to go, how fast, and that nobody goes in vain."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from onnx import helper, numpy_helper
from roost.core.errors import Code
from roost.core.tensors import from_array

from tests.clients import CallFailed, connect, four
from tests.integration.scenario_place import MIB, SLACK_BYTES, books_are_right, private_bytes, watched, write_model
from tests.models import tensor_info, write_graph
from tests.server import RoostServer, eventually, started

BULKY_ROWS = 5 * 1024


def _evictions(server: RoostServer) -> int:
    return int(server.metric("roost_evictions_total"))


def _used_bytes(server: RoostServer) -> int:
    used: int = server.status()["devices"][0]["used_bytes"]
    return used


async def test_scenario_1_exact_concurrent_eviction(tmp_path: Path, repository: Path) -> None:
    """A worker is full of twenty models; ten others are loaded at once: the ten that were used longest ago go."""
    size_bytes, fits, more = 8 * MIB, 20, 10
    budget_bytes = fits * size_bytes + size_bytes // 2
    names = [f"model-{number:02}" for number in range(fits + more)]
    for name in names:
        write_model(repository, name, size_bytes, load_s=0.01)
    old, new = names[:fits], names[fits:]
    random.Random(1).shuffle(old)
    flags = ("--workers", "1", "--memory-budget", str(budget_bytes), "--model-control", "explicit")
    with started(repository, tmp_path / "run", *flags) as server:
        idle_bytes = private_bytes(server.status())
        async with connect(server, "grpc") as client:
            await asyncio.gather(*(client.load(name) for name in old))
            for name in old:
                await client.infer(name, four())
            assert (_used_bytes(server), _evictions(server)) == (fits * size_bytes, 0)
            with watched(server) as seen:
                await asyncio.gather(*(client.load(name) for name in new))
                await eventually(lambda: books_are_right(server), "peace")
        assert server.resident() == {*old[more:], *new}
        assert _evictions(server) == more
        assert _used_bytes(server) == fits * size_bytes
        assert seen.samples > 2
        assert seen.used_bytes <= budget_bytes
        assert seen.private_bytes <= idle_bytes + budget_bytes + SLACK_BYTES
        assert max(seen.copies.values()) == 1


async def test_scenario_2_no_cascade(tmp_path: Path, repository: Path) -> None:
    """A large model evicts as many small ones as it takes and no more; one larger than everything evicts none."""
    names = [f"small-{number:02}" for number in range(50)]
    for name in names:
        write_model(repository, name)
    write_model(repository, "large", 15 * MIB)
    write_model(repository, "huge", 51 * MIB)
    flags = ("--workers", "1", "--memory-budget", str(50 * MIB + MIB // 2))
    with started(repository, tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            for name in names:
                await client.infer(name, four())
            for _ in range(3):
                with pytest.raises(CallFailed) as error:
                    await client.infer("huge", four())
                assert error.value.means(Code.RESOURCE_EXHAUSTED)
                assert "huge" in error.value.message
            assert (_evictions(server), server.resident()) == (0, set(names))
            await client.infer("large", four())
            await eventually(lambda: books_are_right(server), "peace")
        assert _evictions(server) == 15
        assert server.resident() == {*names[15:], "large"}


async def test_scenario_3_unload_pacing(tmp_path: Path, repository: Path) -> None:
    """Unloads take long: what fits is loaded meanwhile, the others wait, and real memory stays within the budget."""
    go = tmp_path / "go"
    size_bytes = 16 * MIB
    budget_bytes = 4 * size_bytes + size_bytes // 2
    for name in ("old-0", "old-1"):
        write_model(repository, name, size_bytes, unload_after=str(go))
    new = [f"new-{number}" for number in range(4)]
    for name in new:
        write_model(repository, name, size_bytes)
    with started(repository, tmp_path / "run", "--workers", "1", "--memory-budget", str(budget_bytes)) as server:
        idle_bytes = private_bytes(server.status())
        async with connect(server, "grpc") as client:
            for name in ("old-0", "old-1"):
                await client.infer(name, four())
            with watched(server) as seen:
                requests = {asyncio.create_task(client.infer(name, four())) for name in new}
                answered, waiting = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
                while len(answered) < 2:
                    more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    answered |= more
                there = {instance["model"] for instance in server.instances()}
                assert {"old-0", "old-1"} <= there, "two were loaded while nothing was gone"
                assert len(waiting) == 2
                go.touch()
                await asyncio.gather(*requests)
                await eventually(lambda: books_are_right(server), "peace")
        assert server.resident() == set(new)
        assert seen.used_bytes <= budget_bytes
        assert seen.private_bytes <= idle_bytes + budget_bytes + SLACK_BYTES


def _write_bulky(path: Path) -> None:
    """A model that takes 20 MiB of memory, which its small file does not tell: one row of weights is repeated."""
    rows, columns = BULKY_ROWS, 1024
    write_graph(
        path,
        [helper.make_node("Expand", ["row", "shape"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tensor_info("x", "FP32", [1, rows])],
        [tensor_info("y", "FP32", [1, columns])],
        [
            numpy_helper.from_array(np.ones((1, columns), np.float32), "row"),
            numpy_helper.from_array(np.array([rows, columns], np.int64), "shape"),
        ],
    )


def _bytes_of(server: RoostServer, model: str) -> int:
    return sum(instance["bytes"] for instance in server.instances() if instance["model"] == model)


async def test_scenario_4_under_predicted_size(tmp_path: Path, repository: Path) -> None:
    """A model takes five times what its file lets expect: that is found out, accounted, and known from then on."""
    _write_bulky(repository / "bulky" / "1" / "model.onnx")
    others = [f"other-{number}" for number in range(5)]
    for name in others:
        write_model(repository, name, 10 * MIB)
    ones = [from_array("x", "FP32", np.ones((1, BULKY_ROWS), np.float32))]
    state = ("--workers", "2", "--no-preload", "--state-dir", str(tmp_path / "state"))
    with started(repository, tmp_path / "first", *state, "--memory-budget", "1GiB", "--measure-models") as server:
        async with connect(server, "grpc") as client:
            await client.infer("bulky", ones)
            assert _bytes_of(server, "bulky") < 10 * MIB, "the estimate is too low"
            await eventually(lambda: _bytes_of(server, "bulky") >= 20 * MIB, "what it takes")
            await eventually(lambda: _used_bytes(server) == _bytes_of(server, "bulky"), "the end of the measuring")
            os.kill(server.worker_of("bulky")["pid"], signal.SIGKILL)
            await client.infer("bulky", ones)
            assert _bytes_of(server, "bulky") >= 20 * MIB, "also on another worker"
    with started(repository, tmp_path / "second", *state, "--memory-budget", str(64 * MIB)) as server:
        async with connect(server, "rest") as client:
            for name in others:
                await client.infer(name, four())
            await client.infer("bulky", ones)
            await eventually(lambda: books_are_right(server), "peace")
        assert _bytes_of(server, "bulky") >= 20 * MIB, "also after a restart"
        assert _used_bytes(server) <= 64 * MIB
        resident = server.resident()
        assert "bulky" in resident
        kept = [name for name in others if name in resident]
        assert kept == others[len(others) - len(kept) :], "those used last stay"
        assert 0 < len(kept) < len(others), "as many went as its load took"


async def test_scenario_5_recency_not_insertion(tmp_path: Path, repository: Path) -> None:
    """What is used again stays when others come; what nobody has asked for takes nobody's place, restart or not."""
    for name in "abcdefgh":
        write_model(repository, name, 4 * MIB)
    fits_five = ("--workers", "2", "--memory-budget", str(22 * MIB))
    with started(repository, tmp_path / "run", *fits_five) as server:
        async with connect(server, "rest") as client:
            for name in "abcdeab":  # a and b came first, and are used again
                await client.infer(name, four())
            for name in "fg":
                await client.infer(name, four())
            assert server.resident() == set("eabfg")
            evictions = _evictions(server)
            with pytest.raises(CallFailed) as error:  # a look at a model is no use of it
                await client.metadata("h")
            assert error.value.means(Code.RESOURCE_EXHAUSTED)
            assert (server.resident(), _evictions(server)) == (set("eabfg"), evictions)
    fits_two = ("--workers", "2", "--memory-budget", str(9 * MIB))
    with started(repository, tmp_path / "run", *fits_two) as server:
        async with connect(server, "rest") as client:
            await eventually(lambda: server.resident() == set("fg"), "what was used last")
            await client.infer("h", four())
            await client.infer("g", four())
            assert server.resident() == set("gh")


async def test_scenario_6_churn_refusal(tmp_path: Path, repository: Path) -> None:
    """All memory is in hot use: who can't wait for it is refused at once, who can gets it, and hot models go on."""
    hot = ("hot-0", "hot-1")
    for name in hot:
        write_model(repository, name, 4 * MIB, load_s=1.0, run_s=0.02)
    write_model(repository, "cold", 4 * MIB)
    done = asyncio.Event()
    answers = 0

    async def keep_hot(transport: str, name: str) -> None:
        nonlocal answers
        async with connect(server, transport) as client:
            while not done.is_set():
                await client.infer(name, four())
                answers += 1

    flags = ("--workers", "1", "--memory-budget", str(9 * MIB))
    with started(repository, tmp_path / "run", *flags) as server:
        async with connect(server, "grpc") as client, aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for name in hot:
                for transport in ("rest", "grpc") * 4:
                    group.create_task(keep_hot(transport, name))
            await eventually(lambda: answers > 50, "hot models")
            status, after, text = await _impatient(session, server, "cold", 100_000)
            assert (status, bool(after)) == (429, True), text
            assert "not loaded" in text
            assert (server.resident(), _evictions(server)) == (set(hot), 0)
            goal = answers + 50
            await eventually(lambda: answers > goal, "more answers")
            await client.infer("cold", four(), parameters={"timeout": 60_000_000})
            done.set()
        assert server.metric("roost_requests_total", code="RESOURCE_EXHAUSTED") == 1


async def _impatient(
    session: aiohttp.ClientSession, server: RoostServer, model: str, timeout_us: int
) -> tuple[int, str, str]:
    """Status, Retry-After and text of the answer to a request that does not wait for long."""
    row = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    document = {"inputs": [row], "parameters": {"timeout": timeout_us}}
    async with session.post(f"http://{server.http}/v2/models/{model}/infer", json=document) as answer:
        return answer.status, answer.headers.get("Retry-After", ""), await answer.text()

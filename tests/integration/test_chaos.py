"""Everything at once, and afterwards the books must be right."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

from roost.core.errors import Code

from tests.clients import TRANSPORTS, CallFailed, connect, four
from tests.integration.scenario_place import books_are_right
from tests.models import write_dummy
from tests.server import RoostServer, eventually, started

MIB = 1 << 20
NAMES = tuple(f"model-{number}" for number in range(8))


def _write_models(repository: Path, draw: random.Random) -> None:
    for name in NAMES:
        model = repository / name / "1" / "model.dummy"
        write_dummy(model, load_s=draw.choice((0.0, 0.01, 0.03)), run_s=draw.choice((0.0, 0.002, 0.01)))
        (repository / name / "config.pbtxt").write_text(
            f'parameters {{ key: "roost.memory_bytes" value {{ string_value: "{draw.randrange(1, 5) * MIB}" }} }}\n'
        )


async def _all_serve(server: RoostServer) -> None:
    await eventually(lambda: books_are_right(server), "peace")
    for transport in TRANSPORTS:
        async with connect(server, transport) as client:
            for name in NAMES:
                await client.infer(name, four())
    await eventually(lambda: books_are_right(server), "peace")


async def test_workers_die_while_models_come_and_go(tmp_path: Path, repository: Path) -> None:
    draw = random.Random(1)
    _write_models(repository, draw)
    outcomes: Counter[str] = Counter()
    done = asyncio.Event()

    async def call(transport: str) -> None:
        async with connect(server, transport) as client:
            while not done.is_set():
                try:
                    await client.infer(draw.choice(NAMES), four())
                    outcomes["answered"] += 1
                except CallFailed as error:
                    outcomes["lost" if error.means(Code.UNAVAILABLE) else str(error)] += 1

    with started(repository, tmp_path / "run", "--workers", "2", "--memory-budget", "10MiB") as server:
        async with asyncio.TaskGroup() as group:
            for transport in TRANSPORTS * 4:
                group.create_task(call(transport))
            for _ in range(6):
                goal = outcomes["answered"] + 40
                await eventually(lambda goal=goal: outcomes["answered"] >= goal, "more answers")  # type: ignore[misc]
                pids = [worker["pid"] for worker in server.status()["workers"] if worker["state"] == "up"]
                os.kill(draw.choice(pids), signal.SIGKILL)
            done.set()
        print(outcomes)
        assert set(outcomes) <= {"answered", "lost"}
        await _all_serve(server)


async def test_clients_leave_whenever_they_like(tmp_path: Path, repository: Path) -> None:
    draw = random.Random(2)
    _write_models(repository, draw)
    outcomes: Counter[str] = Counter()

    async def call(transport: str) -> None:
        async with connect(server, transport) as client:
            for _ in range(40):
                patience_s = draw.choice((0.0, 0.001, 0.005, 0.02, 10.0))
                parameters = {"timeout": draw.choice((1, 1000, 10_000, 10_000_000))}
                try:
                    async with asyncio.timeout(patience_s):
                        await client.infer(draw.choice(NAMES), four(), parameters=parameters)
                    outcomes["answered"] += 1
                except TimeoutError:
                    outcomes["left"] += 1
                except CallFailed as error:
                    # One that can't wait for the load of its model is refused at once.
                    can_not_wait = error.means(Code.RESOURCE_EXHAUSTED) and "may wait" in str(error)
                    outcomes["late" if can_not_wait or error.means(Code.DEADLINE_EXCEEDED) else str(error)] += 1

    with started(repository, tmp_path / "run", "--workers", "2", "--memory-budget", "10MiB") as server:
        await asyncio.gather(*(call(transport) for transport in TRANSPORTS * 4))
        print(outcomes)
        assert set(outcomes) == {"answered", "left", "late"}
        await _all_serve(server)


async def test_load_and_unload_calls_cross(tmp_path: Path, repository: Path) -> None:
    draw = random.Random(3)
    _write_models(repository, draw)
    outcomes: Counter[str] = Counter()

    async def call(transport: str) -> None:
        async with connect(server, transport) as client:
            for _ in range(30):
                name, action = draw.choice(NAMES[:3]), draw.choice(("load", "unload", "infer", "infer", "index"))
                try:
                    if action == "infer":
                        await client.infer(name, four())
                    elif action == "index":
                        await client.index()
                    else:
                        await (client.load if action == "load" else client.unload)(name)
                    outcomes[action] += 1
                except CallFailed as error:
                    # A model that was just unloaded is not there; a load may lose against an unload.
                    known = error.means(Code.NOT_FOUND) if action == "infer" else action == "load"
                    outcomes[f"no {action}" if known else f"{action}: {error}"] += 1

    flags = ("--workers", "2", "--memory-budget", "10MiB", "--model-control", "explicit")
    with started(repository, tmp_path / "run", *flags) as server:
        await asyncio.gather(*(call(transport) for transport in TRANSPORTS * 4))
        print(outcomes)
        assert set(outcomes) <= {"load", "unload", "infer", "index", "no infer", "no load"}, outcomes
        async with connect(server, "grpc") as client:
            for name in NAMES:
                await client.load(name)
        await _all_serve(server)
        async with connect(server, "grpc") as client:
            for name in NAMES:
                await client.unload(name)
        await eventually(lambda: not server.instances(), "all memory back")
        assert server.status()["devices"][0]["used_bytes"] == 0

"""Scenarios 11 to 13, and what else breaks: workers, the store, the disk, memory. Requests do not notice, or hardly."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from roost.core.errors import Code
from roost.core.tensors import from_array, to_array

from tests.clients import PROBE_OUTPUTS, TRANSPORTS, CallFailed, Client, connect, four, number, sixteen
from tests.integration.scenario_place import MIB, books_are_right, write_model
from tests.models import write_mlp, write_simple
from tests.server import eventually, started


async def _ask(client: Client, model: str, **parameters: int) -> None:
    """Asks ``simple`` or a copy of it, and checks the answer."""
    answer = await client.infer(model, sixteen(a=5, b=3), parameters=parameters)
    outputs = {tensor.name: to_array(tensor) for tensor in answer.outputs}
    assert (outputs["OUTPUT0"] == 8).all()
    assert (outputs["OUTPUT1"] == 2).all()


async def test_scenario_11_runtime_amnesia(tmp_path: Path, repository: Path) -> None:
    """A worker is replaced and has nothing of what it had: all is there again when it is asked for."""
    names = [f"model-{number}" for number in range(10)]
    for name in names:
        write_model(repository, name, outputs=PROBE_OUTPUTS)
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as grpc:
            ran_in = {name: number(await rest.infer(name, four()), "pid") for name in names}
            forgetful = ran_in[names[0]]
            kept = {name for name in names if ran_in[name] != forgetful}
            assert 0 < len(kept) < len(names), "the models are on both workers"
            os.kill(forgetful, signal.SIGKILL)
            answers = await asyncio.gather(*(door.infer(name, four()) for name in names for door in (rest, grpc)))
            assert forgetful not in {number(answer, "pid") for answer in answers}
            for name, answer in zip([name for name in names for _ in range(2)], answers, strict=True):
                assert name not in kept or number(answer, "pid") == ran_in[name], "what was there served"
        await eventually(lambda: books_are_right(server), "peace")
        assert server.metric("roost_requests_total", code="NOT_FOUND") == 0
        for name in names:
            assert server.metric("roost_loads_total", model=name) == (1 if name in kept else 2)


async def test_scenario_12_kill_9(tmp_path: Path, repository: Path) -> None:
    """One of three workers is killed under traffic on sixty models: no more fails than it had in hand."""
    names = [f"model-{number:02}" for number in range(60)]
    for name in names:
        write_simple(repository / name / "1" / "model.onnx")
    clients = 12
    draw = random.Random(12)
    outcomes: Counter[str] = Counter()
    done = asyncio.Event()

    async def call(transport: str) -> None:
        async with connect(server, transport) as client:
            while not done.is_set():
                try:
                    await _ask(client, names[min(int(draw.expovariate(0.1)), len(names) - 1)])
                    outcomes["answered"] += 1
                except CallFailed as error:
                    outcomes["lost" if error.means(Code.UNAVAILABLE) else str(error)] += 1

    with started(repository, tmp_path / "run", "--workers", "3") as server:
        async with asyncio.TaskGroup() as group:
            for transport in TRANSPORTS * (clients // 2):
                group.create_task(call(transport))
            await eventually(lambda: len(server.resident()) > len(names) // 2, "most models in memory")
            for worker in server.status()["workers"][:2]:
                goal = outcomes["answered"] + 200
                os.kill(worker["pid"], signal.SIGKILL)
                await eventually(lambda goal=goal: outcomes["answered"] >= goal, "more answers")  # type: ignore[misc]
                await eventually(lambda: all(w["state"] == "up" for w in server.status()["workers"]), "all workers")
            done.set()
        print(outcomes)
        assert set(outcomes) <= {"answered", "lost"}
        assert outcomes["lost"] <= 2 * clients
        async with connect(server, "rest") as client:
            await asyncio.gather(*(_ask(client, name) for name in names))
        await eventually(lambda: books_are_right(server), "peace")
        assert server.resident() == set(names)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Somebody else writes into the store all the time."""
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_scenario_13_control_store_outage(tmp_path: Path, repository: Path) -> None:
    """The store can't be written, is then lost, then empty: everything is served, and nothing goes for that."""
    names = [f"model-{number}" for number in range(12)]
    for name in names:
        write_simple(repository / name / "1" / "model.onnx")
    store = tmp_path / "run" / "state" / "roost.sqlite"
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as grpc:
            await asyncio.gather(*(_ask(rest, name) for name in names[:4]))
            with _locked(store):
                asked = [_ask(door, name, timeout=4_000_000) for name in names[:8] for door in (rest, grpc)]
                await asyncio.gather(*asked)
                assert server.resident() == set(names[:8])
            for path in store.parent.glob("roost.sqlite*"):
                path.unlink()
            await asyncio.gather(*(_ask(door, name) for name in names for door in (rest, grpc)))
        assert server.resident() == set(names)
        assert server.metric("roost_evictions_total") == 0
        assert server.metric("roost_loads_total") == len(names)
        assert server.log.count("the store") <= 1, "complaints are not repeated"
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "grpc") as client:
            await asyncio.gather(*(_ask(client, name) for name in names))
        assert server.metric("roost_loads_total") == len(names)


async def test_no_memory_in_a_worker_fails_what_wanted_it_alone(tmp_path: Path, repository: Path) -> None:
    """The kernel gives a worker no more memory: the load or run is refused, and all else goes on in that worker."""
    write_model(repository, "good", outputs=PROBE_OUTPUTS)
    write_model(repository, "large", 700 * MIB)
    write_model(repository, "leaks", outputs=PROBE_OUTPUTS)
    with started(repository, tmp_path / "run", "--workers", "1", "--memory-budget", "1GiB") as server:
        async with connect(server, "rest") as client:
            pid = number(await client.infer("good", four()), "pid")
            await client.infer("leaks", four())
            limit_bytes = psutil.Process(pid).memory_info().vms + 300 * MIB
            resource.prlimit(pid, resource.RLIMIT_AS, (limit_bytes, limit_bytes))
            for model, parameters in (("large", {}), ("leaks", {"leak_bytes": 700 * MIB})):
                with pytest.raises(CallFailed) as error:
                    await client.infer(model, four(), parameters=parameters)
                print(error.value)
                assert error.value.means(Code.RESOURCE_EXHAUSTED) or error.value.means(Code.UNAVAILABLE)
                assert "memory" in error.value.message
                assert number(await client.infer("good", four()), "pid") == pid
            await client.infer("leaks", four())
        await eventually(lambda: books_are_right(server), "peace")
        assert server.metric("roost_worker_restarts_total") == 0


async def test_a_worker_that_is_stopped_takes_no_model_with_it(tmp_path: Path, repository: Path) -> None:
    """One of two workers is stopped in its tracks: what the other has is served, and what it had is soon again."""
    names = [f"model-{number}" for number in range(6)]
    for name in names:
        write_model(repository, name, outputs=PROBE_OUTPUTS)
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with connect(server, "grpc") as client:
            ran_in = {name: number(await client.infer(name, four()), "pid") for name in names}
            stopped = ran_in[names[0]]
            os.kill(stopped, signal.SIGSTOP)
            served = [name for name in names if ran_in[name] != stopped]
            assert served
            requests = [asyncio.create_task(client.infer(name, four())) for name in names]
            for name in served:
                assert number(await client.infer(name, four()), "pid") == ran_in[name]
            pids = {number(answer, "pid") for answer in await asyncio.gather(*requests)}
            assert stopped not in pids
        await eventually(lambda: books_are_right(server), "peace")
        assert stopped not in server.processes()


class TestPreparedCopies:
    """The folder of prepared copies is nobody's to rely on: it may fill up, or go at any moment."""

    LAYERS = (512, 2048, 2048, 10)

    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        """A model for which a copy is worth it."""
        write_mlp(tmp_path / "repository" / "mlp" / "1" / "model.onnx", self.LAYERS)
        return tmp_path / "repository"

    def flags(self, cache: Path) -> tuple[str, ...]:
        return ("--workers", "1", "--cache-dir", str(cache), "--model-control", "explicit")

    async def ask(self, client: Client) -> float:
        ones = from_array("x", "FP32", np.ones((1, self.LAYERS[0]), np.float32))
        answer = await client.infer("mlp", [ones])
        return float(to_array(answer.outputs[0])[0, 0])

    async def test_the_disk_is_full_while_a_copy_is_made(self, tmp_path: Path, repository: Path) -> None:
        cache = tmp_path / "cache"
        with started(repository, tmp_path / "run", *self.flags(cache)) as server:
            # What the server and whatever it starts from now on may write into a file.
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))
            async with connect(server, "grpc") as client:
                await client.load("mlp")
                first = await self.ask(client)
                await eventually(lambda: server.metric("roost_prepared_failures_total") == 1, "the failure")
                assert not [*cache.rglob("*.onnx"), *cache.rglob("*.data")]
                await client.unload("mlp")
                await client.load("mlp")
                assert await self.ask(client) == first
            assert server.metric("roost_prepared_made_total") == 0

    async def test_the_cache_is_wiped_whenever_copies_are_loaded(self, tmp_path: Path, repository: Path) -> None:
        cache, kept = tmp_path / "cache", tmp_path / "kept"
        command = [sys.executable, "-m", "roost.server.cli", "prepare", "--model-repository", str(repository)]
        await asyncio.to_thread(subprocess.run, [*command, "--cache-dir", str(kept)], check=True, timeout=60)
        shutil.copytree(kept, cache)
        done = threading.Event()

        def wipe() -> None:
            (made,) = (path for path in kept.iterdir() if path.is_dir())
            while not done.wait(0.02):
                shutil.rmtree(cache, ignore_errors=True)
                shutil.copytree(made, tmp_path / "fresh")
                with suppress(OSError):  # the server has it made anew, or begins to
                    cache.mkdir(exist_ok=True)
                    (tmp_path / "fresh").rename(cache / made.name)
                shutil.rmtree(tmp_path / "fresh", ignore_errors=True)

        with started(repository, tmp_path / "run", *self.flags(cache)) as server:
            async with connect(server, "rest") as client:
                await client.load("mlp")
                first = await self.ask(client)
                wiping = asyncio.create_task(asyncio.to_thread(wipe))
                for _ in range(8):
                    await client.unload("mlp")
                    await client.load("mlp")
                    assert await self.ask(client) == pytest.approx(first)
                done.set()
                await wiping
            assert server.metric("roost_load_failures_total") == 0
            await eventually(lambda: books_are_right(server), "peace")

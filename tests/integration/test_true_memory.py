"""What models take is measured, and what workers take is looked at: as real processes do it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roost.core.frames import FrameType
from roost.core.tensors import from_array
from roost.runtimes.measuring import measure
from roost.runtimes.prepared.making import CopyOrder

from tests.clients import connect, four, sixteen
from tests.graphs import one, write_text
from tests.models import write_dummy, write_mlp, write_policy, write_simple
from tests.server import RoostServer, eventually, started
from tests.worker_client import WorkerClient

MIB = 1 << 20
LAYERS = (256, 512, 512, 10)
ROW = from_array("x", "FP32", np.ones((1, LAYERS[0]), np.float32))


def _order(file: Path) -> CopyOrder:
    status = file.stat()
    files = [[file.name, status.st_ino, status.st_size, status.st_mtime_ns]]
    return CopyOrder(str(file), str(file.parent), "d", files, "onnxruntime", memory_bytes=128 * MIB)


def accounted(server: RoostServer) -> dict[str, int]:
    return {instance["model"]: instance["bytes"] for instance in server.instances()}


async def test_models_are_accounted_with_what_they_were_measured_to_take(tmp_path: Path) -> None:
    write_simple(tmp_path / "models" / "tiny" / "1" / "model.onnx")
    file = write_mlp(tmp_path / "models" / "mlp" / "1" / "model.onnx", LAYERS)
    flags = ("--workers", "1", "--measure-models", "--no-preload")

    def is_measured(server: RoostServer) -> bool:
        found = accounted(server)
        size = file.stat().st_size
        return found["tiny"] < MIB // 2 and size < found["mlp"] < 3 * size + MIB

    with started(tmp_path / "models", tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            await client.infer("tiny", sixteen())
            await client.infer("mlp", [ROW])
            await eventually(lambda: is_measured(server), "the figures of both models")
        (worker,) = server.status()["workers"]
        assert worker["believed_bytes"] > 0
    with started(tmp_path / "models", tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            await client.infer("mlp", [ROW])
            await client.infer("tiny", sixteen())
        assert is_measured(server)  # without another process: it is remembered


@pytest.mark.parametrize(
    ("layers", "least", "most"), [((), 1 << 14, 1 << 18), ((512, 1024, 1024, 10), 6 * MIB, 9 * MIB)]
)
def test_a_small_model_is_not_charged_with_what_all_share(
    tmp_path: Path, layers: Sequence[int], least: int, most: int
) -> None:
    """The first session of a process takes some MiB that the others do not."""
    path = tmp_path / "model.onnx"
    file = write_mlp(path, layers) if layers else write_simple(path)
    order = _order(file)
    taken = measure({"order": asdict(order)})["taken"]
    assert least < taken["private_bytes"] < most
    assert taken["peak_bytes"] >= taken["private_bytes"]
    if layers:
        order = dataclasses.replace(order, memory_bytes=1 * MIB)
        assert measure({"order": asdict(order)}) == {"reason": "needs too much memory to be tried"}


def test_what_a_run_takes_for_a_row_is_measured(tmp_path: Path) -> None:
    row_bytes = 8_000_000
    nodes = (
        "axes = Constant <value = int64[1] {1}> () u = Unsqueeze (x, axes) "
        f"shape = Constant <value = int64[3] {{1, {row_bytes // 16}, 4}}> () t = Expand (u, shape) "
        "y = ReduceSum <keepdims = 0> (t, axes)"
    )
    file = write_text(tmp_path / "model.onnx", one(nodes))
    assert 0.9 * row_bytes < measure({"order": asdict(_order(file))})["taken"]["run_bytes"] < 1.3 * row_bytes


async def test_a_worker_whose_models_lose_memory_is_replaced_and_no_request_fails(tmp_path: Path) -> None:
    for name in ("a", "leaks"):
        write_dummy(tmp_path / "models" / name / "1" / "model.dummy", run_s=0.01)
        write_policy(tmp_path / "models" / name, memory_bytes=4 * MIB)
    with started(tmp_path / "models", tmp_path / "run", "--workers", "1", "--memory-budget", "40MiB") as server:
        before = server.status()["workers"][0]
        async with connect(server, "rest") as client, asyncio.TaskGroup() as group:
            done = asyncio.Event()

            async def ask() -> None:
                while not done.is_set():
                    await client.infer("a", four())

            for _ in range(4):
                group.create_task(ask())
            for _ in range(10):
                await client.infer("leaks", four(), parameters={"leak_bytes": 10 * MIB})
            await eventually(lambda: server.metric("roost_worker_recycles_total") == 1, "a new process")
            await eventually(lambda: "a" in server.resident(), "the model on it")
            done.set()
        after = server.status()["workers"][0]
        assert after["pid"] != before["pid"]
        assert after["trims"] >= 1
        assert after["private_bytes"] < before["private_bytes"] + 50 * MIB
        assert server.metric("roost_requests_total") == server.metric("roost_requests_total", code="OK")


async def test_loads_and_unloads_leave_nothing_behind(tmp_path: Path) -> None:
    """The order of models changes their sizes, and where in memory each of them lies."""
    sizes = (300, 700, 500, 200, 600, 400)
    names = [f"m{number}" for number in range(len(sizes))]
    for name, width in zip(names, sizes, strict=True):
        write_mlp(tmp_path / "models" / name / "1" / "model.onnx", (LAYERS[0], width, width, 10))
    with started(tmp_path / "models", tmp_path / "run", "--workers", "1", "--memory-budget", "12MiB") as server:
        async with connect(server, "rest") as client:

            async def cycles(count: int) -> int:
                for number in range(count):
                    await client.infer(names[number % len(names)], [ROW])
                return server.private_bytes()

            first = await cycles(3 * len(names))
            last = await cycles(20 * len(names))
        assert server.metric("roost_evictions_total") > 15 * len(names)
        assert last < 1.05 * first + MIB


def test_a_worker_gives_back_what_is_free(tmp_path: Path) -> None:
    with WorkerClient() as worker:
        answer: dict[str, Any] = worker.control(FrameType.TRIM, collect=True)
        assert answer["private_bytes"] > MIB

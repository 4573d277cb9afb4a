"""A real server with models of three kinds of workers: one budget, victims of every kind, processes come and go."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from roost.core.tensors import from_array, to_array

from tests.clients import CallFailed, Client, connect, four
from tests.kinds_models import NET, TREES
from tests.models import write_dummy, write_policy
from tests.server import RoostServer, eventually, started

MIB = 1 << 20
ROWS = np.arange(4, dtype=np.float32).reshape(-1, 1)
INPUTS = {NET: "x", TREES: "input-0"}
NET_CONFIG = """
input { name: "x" data_type: TYPE_FP32 dims: [-1, 1] }
output { name: "y" data_type: TYPE_FP32 dims: [-1, 1] }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of two frameworks, and two dummies that take as much and twice as much."""
    folder = tmp_path_factory.mktemp("kinds") / "models"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "tests.kinds_models", str(folder)], check=True)
    for name, memory_mib in (("small", 4), ("large", 12)):
        write_dummy(folder / name / "1" / "model.dummy")
        write_policy(folder / name, memory_bytes=memory_mib * MIB)
    write_policy(folder / NET, NET_CONFIG, memory_bytes=4 * MIB)
    write_policy(folder / TREES, memory_bytes=4 * MIB)
    return folder


async def ask(client: Client, name: str) -> list[float]:
    """What a model says of 0 to 3; the dummy echoes."""
    inputs = four(0, 1, 2, 3) if name in ("small", "large") else [from_array(INPUTS[name], "FP32", ROWS)]
    output = (await client.infer(name, inputs)).outputs[0]
    return [float(value) for value in to_array(output).flat]


def kinds(server: RoostServer) -> set[str]:
    return {worker["kind"] for worker in server.status()["workers"]}


def has_processes(server: RoostServer, count: int) -> bool:
    return len(psutil.Process(server.pid).children(recursive=True)) == count


def are_resident(server: RoostServer, *names: str) -> bool:
    return server.resident() == set(names)


async def test_models_of_all_kinds_share_one_budget(folder: Path, tmp_path: Path) -> None:
    flags = ("--workers", "1", "--memory-budget", "13MiB", "--worker-idle-timeout", "1s")
    trees = np.load(folder.parent / "trees.npy").tolist()
    answers = {NET: [0.0, 2.0, 4.0, 6.0], TREES: pytest.approx(trees), "small": [0.0, 1.0, 2.0, 3.0]}
    with started(folder, tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            assert kinds(server) == {"onnx"}
            for name in (NET, TREES, "small", NET):
                assert await ask(client, name) == answers[name]
            assert server.resident() == {NET, TREES, "small"}
            assert kinds(server) == {"onnx", "torch", "sklearn"}
            await ask(client, "large")  # in whose place all others go, of whatever kind
            await eventually(partial(are_resident, server, "large"), "the only one that fits")
            await eventually(lambda: kinds(server) == {"onnx"}, "the end of what is not used")
            await eventually(partial(has_processes, server, 2), "the end of their processes")
            for name in (NET, "small"):
                assert await ask(client, name) == answers[name]
            await eventually(lambda: server.metric("roost_worker_info", kind="torch") == 1, "the worker in the metrics")


async def test_code_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    model = tmp_path / "models" / "mine" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("raise SystemExit('nobody is to run this')\n")
    with started(tmp_path / "models", tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            with pytest.raises(CallFailed, match="not allowed without --allow-code"):
                await client.infer("mine", four())
        assert kinds(server) == {"onnx"}

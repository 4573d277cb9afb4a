"""The preparer's real process: what it finds out, and that nothing that befalls it or its models does any harm."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import helper, numpy_helper
from roost.router.preparer import Preparer, PreparerFailed, PreparerSpec, launch_preparer

from tests.models import tensor_info, write_graph, write_mlp
from tests.server import eventually, wait_for

TIMEOUT_S = 60.0
PARENT = """
import asyncio, json, sys
from roost.router.preparer import Preparer, PreparerSpec, launch_preparer

async def main():
    preparer = Preparer(PreparerSpec(), launch_preparer)
    await preparer.do(json.loads(sys.argv[1]), 60.0)
    print(preparer.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
ROOM_BYTES = 256 << 20


def job(path: Path, **changes: Any) -> dict[str, Any]:
    fields = {
        "job": "prove_batching",
        "path": str(path),
        "root": str(path.parent),
        "options": {},
        "threads": 1,
        "max_rows": 8,
        "budget_s": 30.0,
        "memory_bytes": ROOM_BYTES,
        "samples": [],
        "samples_root": str(path.parent),
    }
    return {**fields, **changes}


@pytest.fixture
async def preparer() -> AsyncIterator[Preparer]:
    made = Preparer(PreparerSpec(), launch_preparer)
    yield made
    await made.end(at_once=True)


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    return write_mlp(tmp_path / "mlp.onnx", (16, 32, 4))


@pytest.fixture
def wasteful(tmp_path: Path) -> Path:
    """``x`` FP32 [batch, 1] is copied 2 million times before it is added up."""
    return write_graph(
        tmp_path / "wasteful.onnx",
        [
            helper.make_node("Tile", ["x", "times"], ["large"]),
            helper.make_node("Relu", ["large"], ["larger"]),
            helper.make_node("ReduceSum", ["larger", "axis"], ["y"]),
        ],
        [tensor_info("x", "FP32", ["batch", 1])],
        [tensor_info("y", "FP32", ["batch", 1])],
        [
            numpy_helper.from_array(np.array([1, 2_000_000], np.int64), "times"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )


async def begun(preparer: Preparer, path: Path, timeout_s: float = TIMEOUT_S) -> asyncio.Task[Any]:
    """A job that has no answer yet: its process has only just been started."""
    task = asyncio.create_task(preparer.do(job(path), timeout_s))
    await eventually(lambda: preparer.pid, "the preparer's process")
    return task


class TestJobs:
    async def test_one_process_does_them_all_and_steps_back(self, preparer: Preparer, mlp: Path) -> None:
        assert (await preparer.do(job(mlp), TIMEOUT_S))["result"] == {"max_rows": 8, "reason": ""}
        pid = preparer.pid
        assert psutil.Process(pid).nice() == 19
        answer = await preparer.do(job(mlp, budget_s=-1.0), TIMEOUT_S)
        assert answer["result"] == {"max_rows": 0, "reason": "took too long"}
        assert preparer.pid == pid

    async def test_what_it_does_not_know(self, preparer: Preparer, mlp: Path) -> None:
        assert (await preparer.do(job(mlp, job="make_tea"), TIMEOUT_S))["error"] == "there is no such job"

    async def test_a_model_that_needs_too_much_memory(self, preparer: Preparer, mlp: Path, wasteful: Path) -> None:
        answer = await preparer.do(job(wasteful, memory_bytes=48 << 20), TIMEOUT_S)
        assert "memory" in answer["result"]["reason"]
        assert (await preparer.do(job(mlp), TIMEOUT_S))["result"]["max_rows"] == 8

    async def test_a_batch_that_needs_too_much_memory_is_made_smaller(
        self, preparer: Preparer, tmp_path: Path, wasteful: Path
    ) -> None:
        answer = await preparer.do(job(wasteful, memory_bytes=300 << 20, max_rows=64), TIMEOUT_S)
        assert 0 < answer["result"]["max_rows"] < 64


class TestEnds:
    async def test_killed(self, preparer: Preparer, mlp: Path) -> None:
        task = await begun(preparer, mlp)
        os.kill(preparer.pid, signal.SIGKILL)
        # asyncio's own loop, unlike uvloop, may miss the status of a child that was to be ended a second time.
        with pytest.raises(PreparerFailed, match=r"it was ended by signal 9|it ended with exit code 255"):
            await task
        assert preparer.pid == 0
        assert (await preparer.do(job(mlp), TIMEOUT_S))["result"]["max_rows"] == 8

    async def test_hanging(self, preparer: Preparer, mlp: Path) -> None:
        await preparer.do(job(mlp), TIMEOUT_S)
        process = psutil.Process(preparer.pid)
        process.suspend()
        with pytest.raises(PreparerFailed, match=r"it had no answer within 0\.5 s"):
            await preparer.do(job(mlp), 0.5)
        assert not process.is_running()

    async def test_stopped(self, preparer: Preparer, mlp: Path) -> None:
        await preparer.do(job(mlp), TIMEOUT_S)
        psutil.Process(preparer.pid).suspend()
        with pytest.raises(PreparerFailed, match=r"it was ended by signal 9|it ended with exit code 255"):
            await preparer.do(job(mlp), TIMEOUT_S)
        assert (await preparer.do(job(mlp), TIMEOUT_S))["result"]["max_rows"] == 8

    async def test_finished(self, preparer: Preparer, mlp: Path) -> None:
        await preparer.do(job(mlp), TIMEOUT_S)
        assert await preparer.end() == 0
        assert preparer.pid == 0

    def test_the_server_is_gone(self, mlp: Path) -> None:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, json.dumps(job(mlp))], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        with parent.stdout as pipe:
            child = psutil.Process(int(pipe.readline()))
            parent.kill()
            parent.wait()
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "its end")

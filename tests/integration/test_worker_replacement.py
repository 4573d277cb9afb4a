"""Workers that are lost, one after the other or all at once: who takes their place, with what, and what goes on."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from pathlib import Path
from typing import cast

import psutil
import pytest
from onnx import helper
from roost.core.errors import Code
from roost.core.tensors import Tensor
from roost.router.fork_process import END_TIMEOUT_S
from roost.router.forking import fork_server
from roost.router.link import LinkListener
from roost.router.process import WorkerProcess, WorkerSpec

from tests.clients import PROBE_OUTPUTS, CallFailed, connect, four, number
from tests.models import tensor_info, write_dummy, write_graph, write_simple
from tests.server import RoostServer, eventually, started

SIXTEEN = [Tensor(name, "INT32", (1, 16), bytes(64)) for name in ("INPUT0", "INPUT1")]


def pids(server: RoostServer) -> list[int]:
    return [worker["pid"] for worker in server.status()["workers"] if worker["state"] == "up"]


def fork_server_of(server: RoostServer) -> psutil.Process:
    (found,) = [p for p in psutil.Process(server.pid).children() if "roost.runtimes.fork_server" in p.cmdline()]
    return found


async def test_what_a_killed_worker_had_comes_back_without_a_request(tmp_path: Path, repository: Path) -> None:
    for name in "abc":
        write_simple(repository / name / "1" / "model.onnx")
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            for name in "abc":
                await client.infer(name, SIXTEEN)
        (before,) = pids(server)
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: before not in pids(server) and server.resident() == {*"abc"}, "all of them back")
        device = server.status()["devices"][0]
        assert device["used_bytes"] == sum(instance["bytes"] for instance in server.instances())


async def test_workers_do_not_draw_the_same_random_numbers(tmp_path: Path, repository: Path) -> None:
    nodes = [helper.make_node("RandomNormal", [], ["r"], shape=[4]), helper.make_node("Add", ["x", "r"], ["y"])]
    x, y = tensor_info("x", "FP32", (4,)), tensor_info("y", "FP32", (4,))
    write_graph(repository / "noise" / "1" / "model.onnx", nodes, [x], [y])
    zeros = [Tensor("x", "FP32", (4,), bytes(16))]
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "grpc") as client:
            drawn = []
            for _ in range(2):
                (output,) = (await client.infer("noise", zeros)).outputs
                drawn.append(bytes(output.data))
                (pid,) = pids(server)
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda pid=pid: {*pids(server)} - {pid}, "another worker")  # type: ignore[misc]
    assert drawn[0] != drawn[1]


def restarts(server: RoostServer) -> int:
    return sum(worker["restarts"] for worker in server.status()["workers"])


async def test_no_request_fails_while_one_worker_after_the_other_is_killed(tmp_path: Path, repository: Path) -> None:
    """Scenario 12 of one node: hot models on one worker each, whichever is killed."""
    names = [f"m{index}" for index in range(8)]
    for name in names:
        write_simple(repository / name / "1" / "model.onnx")
    done = asyncio.Event()
    answered = 0

    async def ask(transport: str) -> None:
        nonlocal answered
        async with connect(server, transport) as client:
            while not done.is_set():
                for name in names:
                    await client.infer(name, SIXTEEN)
                    answered += 1

    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with asyncio.TaskGroup() as group:
            for transport in ("rest", "grpc") * 4:
                group.create_task(ask(transport))
            for kill in range(6):
                goal = answered + 200
                await eventually(lambda goal=goal: answered >= goal and len(pids(server)) == 2, "answers again")  # type: ignore[misc]
                os.kill(pids(server)[kill % 2], signal.SIGKILL)
            done.set()
        await eventually(lambda: restarts(server) == 6, "the last restart")


async def test_the_loss_of_the_fork_server_is_the_loss_of_all_workers_and_no_more(
    tmp_path: Path, repository: Path
) -> None:
    write_simple(repository / "a" / "1" / "model.onnx")
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with connect(server, "grpc") as client:
            await client.infer("a", SIXTEEN)
            forks, before = fork_server_of(server), pids(server)
            assert forks.num_threads() == 1, "a process with threads must not be forked"
            assert {process.pid for process in forks.children()} == {*before}
            forks.kill()
            await eventually(lambda: not {*pids(server)} & {*before}, "other workers")
            await client.infer("a", SIXTEEN)
            await eventually(lambda: len(pids(server)) == 2, "both of them")
            after = fork_server_of(server)
            assert after.pid != forks.pid
            assert {process.pid for process in after.children()} == {*pids(server)}
        assert server.metric("roost_fork_server_private_bytes") > 0


async def test_a_fork_server_that_is_stuck_is_replaced_and_its_workers_go_on(tmp_path: Path, repository: Path) -> None:
    write_simple(repository / "a" / "1" / "model.onnx")
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        stuck, (first, second) = fork_server_of(server), pids(server)
        stuck.suspend()
        os.kill(first, signal.SIGABRT)
        await eventually(lambda: len({*pids(server)} - {first}) == 2, "another worker")
        assert f"worker 0 (process {first}) ended: killed by SIGABRT" in server.log
        (after,) = {*pids(server)} - {second}
        assert psutil.Process(after).parent() not in (stuck, None)
        assert psutil.Process(second).parent() == stuck, "it had no reason to end"
        os.kill(second, signal.SIGKILL)
        await eventually(lambda: not stuck.is_running(), "the end of what has no workers any more")
        await eventually(lambda: len(pids(server)) == 2, "both workers")
        assert {child.pid for child in fork_server_of(server).children()} == {*pids(server)}
        async with connect(server, "grpc") as client:
            await client.infer("a", SIXTEEN)
        assert server.log.count("is stuck") == 1
        assert "workers are not forked" not in server.log
        fork_server_of(server).suspend()
        stopping = time.monotonic()
        server.stop()
        assert time.monotonic() - stopping < END_TIMEOUT_S


async def test_a_stopped_worker_is_replaced_though_it_loads(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "slow" / "1" / "model.dummy", load_s=1)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            request = asyncio.create_task(client.infer("slow", four()))
            await eventually(lambda: any(i["state"] == "loading" for i in server.instances()), "the load")
            os.kill(pids(server)[0], signal.SIGSTOP)
            await request
        assert "was stopped" in server.log


async def test_a_run_that_finds_no_memory_is_refused_and_its_worker_goes_on(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "greedy" / "1" / "model.dummy", outputs=PROBE_OUTPUTS)
    write_dummy(repository / "modest" / "1" / "model.dummy", outputs=PROBE_OUTPUTS)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "grpc") as client:
            before = number(await client.infer("modest", four()), "pid")
            used = psutil.Process(before).memory_info().data
            resource.prlimit(before, resource.RLIMIT_DATA, (used + (64 << 20), used + (64 << 20)))
            with pytest.raises(CallFailed) as error:
                await client.infer("greedy", four(), parameters={"leak_bytes": 1 << 30})
            assert error.value.means(Code.RESOURCE_EXHAUSTED)
            assert number(await client.infer("modest", four()), "pid") == before


async def test_workers_that_can_not_be_forked_are_started_one_by_one(tmp_path: Path, repository: Path) -> None:
    """With the same answers, though later."""
    started_ones: list[int] = []

    async def spawn(spec: WorkerSpec, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        started_ones.append(worker)
        raise OSError("not in this test")

    spec = WorkerSpec("onnx", "cpu", 1, 1, log_level="no such level")
    async with fork_server(spec, spawn) as forks:
        for worker in range(2):
            with pytest.raises(OSError, match="not in this test"):
                await forks.launch(spec, worker, 1, cast(LinkListener, None))
        assert forks.pid == 0
    assert started_ones == [0, 1]

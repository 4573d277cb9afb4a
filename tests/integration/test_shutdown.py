"""How a server ends: gracefully, at once, before it was up, and by SIGKILL."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from roost.core.errors import Code

from tests.clients import TRANSPORTS, CallFailed, connect, four
from tests.models import write_dummy
from tests.server import RoostServer, eventually, started, wait_for

SLOTS = 4
# What aiohttp says when a connection is closed, or nobody listens any more.
GONE = (OSError, aiohttp.ClientError)


def _accepted(server: RoostServer, count: int) -> bool:
    status = server.status()
    loading = [i for worker in status["workers"] for i in worker["instances"] if i["state"] == "loading"]
    return len(loading) == 1 and status["queued"] + sum(worker["in_flight"] for worker in status["workers"]) == count


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_accepted_request_is_answered(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "warm" / "1" / "model.dummy")
    write_dummy(repository / "cold" / "1" / "model.dummy", load_s=0.5)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            await client.infer("warm", four())
            calls = [client.infer("warm", four(), parameters={"run_s": 0.2}) for _ in range(3 * SLOTS)]
            calls += [client.infer("cold", four()) for _ in range(3)]
            tasks = [asyncio.create_task(call) for call in calls]
            await eventually(lambda: _accepted(server, 3 * SLOTS), "all accepted and the cold model loading")
            server.signal(signal.SIGTERM)
            answers = await asyncio.gather(*tasks)
        assert len(answers) == len(tasks)
        await asyncio.to_thread(server.wait, 0)
        assert not server.ready_file.exists()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_under_constant_load_requests_are_answered_or_refused(
    tmp_path: Path, repository: Path, transport: str
) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", run_s=0.01)
    answered = 0

    async def call_until_refused() -> str:
        nonlocal answered
        async with connect(server, transport) as client:
            while True:
                try:
                    await client.infer("a", four())
                except CallFailed as error:
                    # gRPC's core ends calls with CANCELLED that it has not handed to the server yet.
                    return "refused" if error.means(Code.UNAVAILABLE) or error.means(Code.CANCELLED) else str(error)
                except GONE as error:
                    return "closed" if answered else repr(error)
                answered += 1

    with started(repository, tmp_path / "run", "--workers", "1", "--access-log") as server:
        clients = [asyncio.create_task(call_until_refused()) for _ in range(8)]
        await eventually(lambda: answered > 50, "some answers")
        server.signal(signal.SIGTERM)
        ends = await asyncio.gather(*clients)
        await asyncio.to_thread(server.wait, 0)
        lines = [line for line in server.log.splitlines() if " access: " in line]
        assert len(lines) == sum(" OK " in line for line in lines) == answered
    assert set(ends) <= {"refused", "closed"}


async def test_readiness_goes_first(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        assert server.get("/v2/health/ready")[0] == 200
        async with connect(server, "rest") as client, grpc.aio.insecure_channel(server.grpc) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            running = asyncio.create_task(client.infer("a", four(), parameters={"run_s": 1.0}))
            await eventually(lambda: server.in_flight() == 1, "the run")
            server.signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not running.done()
            assert server.status()["ready"] is False
            assert server.metric("roost_ready") == 0
            await running
        await asyncio.to_thread(server.wait, 0)


async def test_a_drain_ends_with_its_deadline(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "1", "--drain-timeout", "200ms") as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as client:
            calls = [transport.infer("a", four(), parameters={"run_s": 300.0}) for transport in (rest, client)]
            tasks = [asyncio.create_task(call) for call in calls]
            await eventually(lambda: server.in_flight() == 2, "the runs")
            server.signal(signal.SIGTERM)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, CallFailed | OSError | aiohttp.ClientError) for end in ends), ends
        await asyncio.to_thread(server.wait, 0)


async def test_a_second_signal_ends_it_at_once(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with connect(server, "rest") as client:
            task = asyncio.create_task(client.infer("a", four(), parameters={"hang": True}))
            await eventually(lambda: server.in_flight() == 1, "the run")
            server.signal(signal.SIGTERM)
            await eventually(lambda: not server.ready_file.exists(), "the drain")
            server.signal(signal.SIGINT)
            await asyncio.to_thread(server.wait, 128 + signal.SIGINT)
            with pytest.raises(GONE):
                await task


def test_a_signal_during_the_start(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "slow" / "1" / "model.dummy", load_s=300)
    server = RoostServer(repository, tmp_path / "run", "--model-control", "explicit", "--load-model", "slow")
    try:
        wait_for(lambda: psutil.Process(server.pid).children(), "a worker")
        server.signal(signal.SIGTERM)
        server.wait(0)
        assert "Traceback" not in server.log
        assert not server.ready_file.exists()
    finally:
        server.clean_up()


def test_a_signal_while_a_model_loads_at_the_start(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "slow" / "1" / "model.dummy", load_s=300)
    server = RoostServer(repository, tmp_path / "run", "--model-control", "explicit", "--load-model", "slow")
    try:
        wait_for(lambda: "memory budget" in server.log, "the workers")
        server.signal(signal.SIGTERM)
        server.wait(0)
        assert "Traceback" not in server.log
    finally:
        server.clean_up()


@pytest.mark.parametrize("parameters", [{"run_s": 300.0}, {"hang": True}])
async def test_no_worker_outlives_a_killed_server(
    tmp_path: Path, repository: Path, parameters: dict[str, float | bool]
) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with connect(server, "rest") as client:
            task = asyncio.create_task(client.infer("a", four(), parameters=parameters))
            await eventually(lambda: server.in_flight() == 1, "the run")
            assert len(server.processes()) == 3
            await asyncio.to_thread(server.kill)
            with pytest.raises(GONE):
                await task


async def test_a_new_server_takes_over_from_a_killed_one(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    for _ in range(2):
        with started(repository, tmp_path / "run", "--workers", "1") as server:
            async with connect(server, "grpc") as client:
                await client.infer("a", four())
            await asyncio.to_thread(server.kill)

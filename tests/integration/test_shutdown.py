"""How a server ends: gracefully, at once, before it was up, and by SIGKILL."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import aiohttp
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from roost.core.errors import Code

from tests.clients import TRANSPORTS, CallFailed, connect, four
from tests.models import write_dummy
from tests.server import HOST, RoostServer, eventually, started, wait_for

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


def _infer_request(run_s: float = 0.0) -> bytes:
    document = {
        "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}],
        "parameters": {"run_s": run_s},
    }
    body = json.dumps(document).encode()
    head = f"POST /v2/models/a/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _connect(server: RoostServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(HOST, server.ports["http"])


async def _read_answer(reader: asyncio.StreamReader) -> str:
    """The head of one answer; its body is read as well."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:"))
    await reader.readexactly(length)
    return head


async def _until_refused(server: RoostServer) -> float:
    """Waits until the server no longer listens; returns the last time that it is known to have done so."""
    listening = time.monotonic()
    while True:
        before = time.monotonic()
        try:
            _, writer = await _connect(server)
        except OSError:
            return listening
        listening = before
        writer.close()
        await asyncio.sleep(0.001)


async def test_a_body_that_is_still_arriving_is_waited_for(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    # Were the drain to last as long as it may, the end would be waited for in vain.
    with started(repository, tmp_path / "run", "--workers", "1", "--drain-timeout", "300s") as server:
        request = _infer_request()
        reader, writer = await _connect(server)
        idle_reader, idle_writer = await _connect(server)
        writer.write(request[:-20])
        await eventually(lambda: server.status()["body_bytes"] > 0, "half of the body")
        server.signal(signal.SIGTERM)
        await _until_refused(server)
        idle_writer.write(_infer_request())
        writer.write(request[-20:])
        for answer in (await _read_answer(idle_reader), await _read_answer(reader)):
            assert answer.startswith("HTTP/1.1 200 ")
            assert "Connection: close" in answer
        assert await reader.read() == b""
        await asyncio.to_thread(server.wait, 0)


async def test_pipelined_requests_are_all_answered(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "1", "--drain-timeout", "300s") as server:
        reader, writer = await _connect(server)
        writer.write(_infer_request(run_s=1.0) + _infer_request() + _infer_request())
        await eventually(lambda: server.in_flight() == 1, "the run")
        server.signal(signal.SIGTERM)
        answers = [await _read_answer(reader) for _ in range(3)]
        assert ["Connection: close" in answer for answer in answers] == [False, False, True]
        await asyncio.to_thread(server.wait, 0)


async def test_a_body_that_never_comes_costs_no_more_than_the_deadline(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    for timeout in ("200ms", "0"):
        with started(repository, tmp_path / "run", "--workers", "1", "--drain-timeout", timeout) as server:
            reader, writer = await _connect(server)
            writer.write(_infer_request()[:-20])
            await eventually(lambda server=server: server.status()["body_bytes"] > 0, "half of the body")  # type: ignore[misc]
            server.signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait, 0)
            assert await reader.read() == b""
            writer.close()


async def test_load_balancers_are_given_time(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "1", "--drain-delay", "300s") as server:
        server.signal(signal.SIGTERM)
        await eventually(lambda: server.get("/v2/health/ready")[0] == 503, "the end of readiness")
        assert server.get("/v2/health/live")[0] == 200
        reader, writer = await _connect(server)
        writer.write(_infer_request())
        assert (await _read_answer(reader)).startswith("HTTP/1.1 200 ")
        async with connect(server, "grpc") as client:
            await client.infer("a", four())
        server.signal(signal.SIGINT)
        await asyncio.to_thread(server.wait, 128 + signal.SIGINT)
        writer.close()
    with started(repository, tmp_path / "run", "--workers", "1", "--drain-delay", "100ms") as server:
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait, 0)


async def test_open_connections_lose_no_answer(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", run_s=0.005)
    answered = 0
    lost: list[float] = []

    async def call_until_told(server: RoostServer) -> None:
        nonlocal answered
        reader, writer = await _connect(server)
        answer = ""
        while "Connection: close" not in answer:
            sent = time.monotonic()
            try:
                writer.write(_infer_request())
                answer = await _read_answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                lost.append(sent)
                break
            assert answer.startswith("HTTP/1.1 200 "), answer
            answered += 1
        writer.close()

    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with asyncio.TaskGroup() as group:
            for _ in range(16):
                group.create_task(call_until_told(server))
            await eventually(lambda: answered > 100, "some answers")
            server.signal(signal.SIGTERM)
            listening = await _until_refused(server)
        await asyncio.to_thread(server.wait, 0)
    assert [sent for sent in lost if sent <= listening] == []


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
            assert len(server.processes()) == 4, "with the one that workers are forked from"
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

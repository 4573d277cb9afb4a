"""More than the server can or should do: full queues, deadlines, clients that go away, announcements of much."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from roost.core.errors import Code
from roost.core.tensors import from_array, to_array

from tests.clients import PROBE_OUTPUTS, TRANSPORTS, CallFailed, GrpcClient, connect, four, number
from tests.models import write_dummy, write_identity
from tests.server import HOST, RoostServer, eventually, started

SLOTS = 4
MIB = 1 << 20


def _queued(server: RoostServer) -> int:
    queued: int = server.status()["queued"]
    return queued


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_leaves_the_queue_costs_no_run(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", outputs=PROBE_OUTPUTS, state=True)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            holders = [asyncio.create_task(client.infer("a", four(), parameters={"run_s": 300})) for _ in range(SLOTS)]
            await eventually(lambda: server.in_flight() == SLOTS, "all slots taken")
            async with connect(server, transport) as leaver:
                waiting = [asyncio.create_task(leaver.infer("a", four())) for _ in range(10)]
                await eventually(lambda: _queued(server) == 10, "the others queued")
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            await eventually(lambda: _queued(server) == 0, "the queue empty")
            for task in holders:
                task.cancel()
            await asyncio.gather(*holders, return_exceptions=True)
            await eventually(lambda: server.in_flight() == 0, "the runs ended")
            assert number(await client.infer("a", four()), "count") == SLOTS + 1
        assert server.metric("roost_requests_total", model="a", code="CANCELLED") == 10 + SLOTS
        assert server.status()["body_bytes"] == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_answers_have_a_budget_too(tmp_path: Path, repository: Path, transport: str) -> None:
    write_identity(repository / "echo" / "1" / "model.onnx", "FP32")
    small, large = np.ones((1, 1 << 17), np.float32), np.ones((1, 1 << 20), np.float32)
    with started(repository, tmp_path / "run", "--workers", "1", "--answer-budget", "2MiB") as server:
        async with connect(server, transport) as client:
            with pytest.raises(CallFailed) as error:
                await client.infer("echo", [from_array("INPUT0", "FP32", large)])
            assert error.value.means(Code.RESOURCE_EXHAUSTED)
            assert "answers" in str(error.value)
            for _ in range(20):  # what was answered is given back
                answer = await client.infer("echo", [from_array("INPUT0", "FP32", small)])
                assert to_array(answer.outputs[0]).sum() == small.size


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_full_queue_refuses_at_once(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    write_dummy(repository / "b" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "1", "--max-queue", "3") as server:
        async with connect(server, transport) as client:
            await asyncio.gather(client.infer("a", four()), client.infer("b", four()))
            calls = [client.infer("a", four(), parameters={"run_s": 0.5}) for _ in range(SLOTS)]
            tasks = [asyncio.create_task(call) for call in calls]
            await eventually(lambda: server.in_flight() == SLOTS, "all slots taken")
            tasks += [asyncio.create_task(client.infer("a", four())) for _ in range(3)]
            await eventually(lambda: _queued(server) == 3, "the queue full")
            with pytest.raises(CallFailed) as error:
                await client.infer("a", four())
            assert error.value.means(Code.RESOURCE_EXHAUSTED)
            assert "Exceeds maximum queue size: 3" in error.value.message
            await asyncio.gather(*tasks, client.infer("b", four()))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_timeout_parameter(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", outputs=PROBE_OUTPUTS, state=True)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            with pytest.raises(CallFailed) as error:  # while it runs
                await client.infer("a", four(), parameters={"run_s": 300, "timeout": 100_000})
            assert error.value.means(Code.DEADLINE_EXCEEDED)
            await eventually(lambda: server.in_flight() == 0, "the run ended")
            tasks = [asyncio.create_task(client.infer("a", four(), parameters={"run_s": 0.5})) for _ in range(SLOTS)]
            await eventually(lambda: server.in_flight() == SLOTS, "all slots taken")
            with pytest.raises(CallFailed) as error:  # while it waits
                await client.infer("a", four(), parameters={"timeout": 50_000})
            assert error.value.means(Code.DEADLINE_EXCEEDED)
            counts = {number(answer, "count") for answer in await asyncio.gather(*tasks)}
            assert max(counts) == 1 + SLOTS
            assert number(await client.infer("a", four(), parameters={"timeout": 60_000_000}), "count") == 2 + SLOTS
        assert server.metric("roost_requests_total", model="a", code="DEADLINE_EXCEEDED") == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_deadline_while_the_model_loads(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", load_s=0.5)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            with pytest.raises(CallFailed) as error:
                await client.infer("a", four(), parameters={"timeout": 100_000})
            assert error.value.means(Code.DEADLINE_EXCEEDED)
            await client.infer("a", four())
        assert server.metric("roost_loads_total", model="a") == 1  # the load went on for who comes next


async def test_the_timeout_of_a_grpc_call(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", outputs=PROBE_OUTPUTS, state=True)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "grpc") as client:
            assert isinstance(client, GrpcClient)
            with pytest.raises(CallFailed) as error:
                await client.infer("a", four(), parameters={"run_s": 300}, timeout_s=0.2)
            assert error.value.means(Code.DEADLINE_EXCEEDED)
            await eventually(lambda: server.in_flight() == 0, "the run ended")
            await client.infer("a", four(), timeout_s=30)


async def test_the_longest_time_of_a_request(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "1", "--request-timeout", "200ms") as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as client:
            for transport in (rest, client):
                with pytest.raises(CallFailed) as error:
                    await transport.infer("a", four(), parameters={"run_s": 300, "timeout": 60_000_000})
                assert error.value.means(Code.DEADLINE_EXCEEDED)
            await eventually(lambda: server.in_flight() == 0, "the runs ended")


async def _announce(server: RoostServer, body_bytes: int, sent_bytes: int) -> asyncio.StreamReader:
    """Announces a body, sends the beginning of it and leaves the connection open."""
    reader, writer = await asyncio.open_connection(HOST, server.ports["http"], limit=4096)
    head = f"POST /v2/models/a/infer HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {body_bytes}\r\n\r\n"
    writer.write(head.encode() + b" " * sent_bytes)
    setattr(reader, "writer", writer)  # noqa: B010 (the connection lives as long as the reader)
    return reader


async def test_a_thousand_clients_announce_much(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    flags = ("--workers", "1", "--max-body", "64MiB", "--body-budget", "256MiB")
    with started(repository, tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            await client.infer("a", four())
            idle_bytes = server.private_bytes()
            readers = [await _announce(server, 64 * MIB, 16 * 1024) for _ in range(1000)]
            lines = [asyncio.create_task(reader.readline()) for reader in readers]
            await eventually(lambda: sum(line.done() for line in lines) == 996, "all but four refused")
            assert {line.result() for line in lines if line.done()} == {b"HTTP/1.1 429 Too Many Requests\r\n"}
            assert server.status()["body_bytes"] == 256 * MIB
            assert server.private_bytes() < idle_bytes + 256 * MIB
            assert server.get("/v2/health/ready")[0] == 200
            with pytest.raises(CallFailed) as error:
                await client.infer("a", four())
            assert error.value.means(Code.RESOURCE_EXHAUSTED)
            for reader in readers:
                getattr(reader, "writer").close()  # noqa: B009
            await asyncio.gather(*lines)
            await eventually(lambda: server.status()["body_bytes"] == 0, "their bytes given back")
            await client.infer("a", four())

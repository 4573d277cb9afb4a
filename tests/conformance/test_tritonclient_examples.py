"""The flows of Triton's example clients: its three example models, and calls that are cancelled."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest

from tests.conformance.triton import MODULES, Triton, triton
from tests.server import DEADLINE_S, RoostServer, eventually

every_client = pytest.mark.parametrize("kind", tuple(MODULES))
ROWS = 3


@every_client
async def test_simple(server: RoostServer, kind: str) -> None:
    first = np.arange(ROWS * 16, dtype=np.int32).reshape(ROWS, 16)
    second = np.full((ROWS, 16), 2, np.int32)
    async with triton(server, kind) as client:
        inputs = [client.input("INPUT0", first, "INT32"), client.input("INPUT1", second, "INT32")]
        result = await client.infer("batched", inputs, request_id="1", priority=1, timeout=0)
        assert (result.as_numpy("OUTPUT0") == first + second).all()
        assert (result.as_numpy("OUTPUT1") == first - second).all()


@every_client
async def test_simple_string(server: RoostServer, kind: str) -> None:
    numbers = np.arange(ROWS * 16).reshape(ROWS, 16)
    text = np.array([str(number).encode() for number in numbers.flat], dtype=object).reshape(numbers.shape)
    async with triton(server, kind) as client:
        inputs = [client.input("INPUT0", text, "BYTES"), client.input("INPUT1", text, "BYTES")]
        result = await client.infer("simple_string", inputs)
        assert (result.as_numpy("OUTPUT0").astype(int) == 2 * numbers).all()
        assert (result.as_numpy("OUTPUT1").astype(int) == 0).all()


@every_client
async def test_simple_identity(server: RoostServer, kind: str) -> None:
    text = np.array([[f"{row} {column} äöü\0".encode() for column in range(16)] for row in range(ROWS)], dtype=object)
    async with triton(server, kind) as client:
        result = await client.infer("simple_identity", [client.input("INPUT0", text, "BYTES")])
        assert (result.as_numpy("OUTPUT0") == text).all()


def _endless(client: Triton) -> dict[str, Any]:
    """A request that runs until somebody cancels it."""
    array = np.ones((1, 4), np.float32)
    inputs = [client.input("INPUT0", array, "FP32")]
    return {"model_name": "many", "inputs": inputs, "parameters": {"stream": 1_000_000, "interval_s": 0.01}}


async def test_a_stream_is_cancelled(server: RoostServer) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    async with triton(server, "grpc") as client:
        await client.call("start_stream", lambda result, error: answers.put((result, error)))
        await client.call("async_stream_infer", **_endless(client))
        result, error = answers.get(timeout=DEADLINE_S)
        assert (result is not None, error) == (True, None)
        await client.call("stop_stream", cancel_requests=True)
        await eventually(lambda: server.in_flight() == 0, "the end of the run")


async def test_a_stream_of_the_asyncio_client_is_cancelled(server: RoostServer) -> None:
    async with triton(server, "grpc.aio") as client:

        async def one() -> Any:
            yield _endless(client)

        responses = client.raw.stream_infer(one())
        result, error = await responses.__anext__()
        assert (result is not None, error) == (True, None)
        assert responses.cancel()
        await eventually(lambda: server.in_flight() == 0, "the end of the run")


async def test_an_asynchronous_call_is_cancelled(server: RoostServer) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    async with triton(server, "grpc") as client:
        inputs = [client.input("INPUT0", np.ones((1, 4), np.float32), "FP32")]

        def keep(result: Any, error: Any) -> None:
            answers.put(error)

        call = await client.call("async_infer", "slow", inputs, keep)
        await eventually(lambda: server.in_flight() == 1, "the run")
        call.cancel()
        assert "cancelled" in str(answers.get(timeout=DEADLINE_S)).lower()
        await eventually(lambda: server.in_flight() == 0, "the end of the run")

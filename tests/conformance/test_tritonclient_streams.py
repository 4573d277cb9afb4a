"""Streams with tritonclient's two gRPC clients."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.conformance.triton import Triton, triton
from tests.server import DEADLINE_S, RoostServer

grpc_clients = pytest.mark.parametrize("kind", ["grpc", "grpc.aio"])
Answer = tuple[Any, Exception | None]


def _four(client: Triton) -> list[Any]:
    return [client.input("INPUT0", np.array([[1, 2, 3, 4]], np.float32), "FP32")]


@asynccontextmanager
async def streamed(client: Triton, requests: Sequence[dict[str, Any]], **options: Any) -> AsyncIterator[Any]:
    """Sends requests over one stream; what it gives returns the next answer, None at the end."""
    if client.kind == "grpc":
        answers: queue.Queue[Answer] = queue.Queue()
        await client.call("start_stream", lambda result, error: answers.put((result, error)), **options)
        for request in requests:
            await client.call("async_stream_infer", **request)
        yield lambda: asyncio.to_thread(answers.get, timeout=DEADLINE_S)
        await client.call("stop_stream")
        assert answers.empty()
        return

    async def outgoing() -> AsyncIterator[dict[str, Any]]:
        for request in requests:
            yield request

    incoming = client.raw.stream_infer(outgoing(), **options)
    yield incoming.__anext__
    async for extra in incoming:
        raise AssertionError(f"one answer too many: {extra}")


def _final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


@grpc_clients
async def test_ordinary_models_answer_in_order(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        requests = [{"model_name": "simple", "inputs": client.sixteen(i, 1), "request_id": f"r{i}"} for i in range(10)]
        async with streamed(client, requests) as following:
            for i in range(10):
                result, error = await following()
                assert error is None
                assert result.get_response().id == f"r{i}"
                assert _final(result)
                assert result.as_numpy("OUTPUT0")[0, 0] == i + 1


@grpc_clients
@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_decoupled_model(server: RoostServer, kind: str, compression: str | None) -> None:
    async with triton(server, kind) as client:
        request = {"model_name": "many", "inputs": _four(client), "request_id": "d", "parameters": {"stream": 3}}
        async with streamed(client, [request], compression_algorithm=compression) as following:
            for number in range(3):
                result, error = await following()
                assert error is None
                assert result.as_numpy("sequence").item() == number
                assert result.as_numpy("OUTPUT0").tolist() == [[1, 2, 3, 4]]
                assert result.get_response().id == "d"


@grpc_clients
async def test_empty_final_response(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        options = {"stream": 2, "close_empty": True}
        request: dict[str, Any] = {
            "model_name": "many",
            "inputs": _four(client),
            "request_id": "e",
            "parameters": options,
        }
        expected = [(False, 2), (False, 2)]
        if kind == "grpc":  # the other client has no way to ask for it
            request["enable_empty_final_response"] = True
            expected.append((True, 0))
        async with streamed(client, [request]) as following:
            finals = []
            for _ in expected:
                result, error = await following()
                assert error is None
                finals.append((_final(result), len(result.get_response().outputs)))
            assert finals == expected


@grpc_clients
async def test_an_error_does_not_end_the_stream(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        requests = [
            {"model_name": "nope", "inputs": client.sixteen(1, 1), "request_id": "bad"},
            {"model_name": "simple", "inputs": client.sixteen(1, 1), "request_id": "good"},
        ]
        async with streamed(client, requests) as following:
            result, error = await following()
            assert isinstance(error, InferenceServerException)
            assert "nope" in error.message()
            result, error = await following()
            assert error is None
            assert result.get_response().id == "good"


@grpc_clients
async def test_decoupled_models_need_a_stream(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        with pytest.raises(InferenceServerException, match="decoupled") as error:
            await client.infer("many", _four(client))
        assert error.value.status() == "StatusCode.UNIMPLEMENTED"

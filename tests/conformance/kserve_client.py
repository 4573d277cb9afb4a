"""What users of KServe's SDK do, against a server given on the command line; prints one JSON object.

Run with the interpreter of the clients' environment: the SDK registers the protocol's messages under the same names as
tritonclient, so the two cannot be in one process. ``test_kserve_client.py`` reads the results.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import sys
from collections.abc import Awaitable
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

ARRAYS = (np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32))
WORDS = np.array([[b"one", "größe".encode(), b""]], dtype=object)


class Recorder:
    """A client that remembers which of its public methods were called."""

    def __init__(self, client: Any) -> None:
        self._client = client
        members = inspect.getmembers(type(client), inspect.isfunction)
        self.public = {name for name, _ in members if not name.startswith("_")}
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._client, name)

    def missed(self) -> list[str]:
        return sorted(self.public - self.called)


async def outcome(call: Awaitable[Any]) -> Any:
    """What a call returned, or how it failed, in plain values."""
    try:
        result = await call
    except httpx.HTTPStatusError as error:
        return {"status": error.response.status_code, "message": str(error)}
    except grpc.RpcError as error:
        return {"status": error.code().name, "message": error.details()}
    if not hasattr(result, "outputs"):
        return result
    outputs = {output.name: _listed(output.as_numpy()) for output in result.outputs}
    return {"id": result.id, "model": result.model_name, "outputs": outputs}


def _listed(array: Any) -> Any:
    return [item.decode() if isinstance(item, bytes) else item for item in array.reshape(-1).tolist()]


def simple(binary: bool, model: str = "simple", **options: Any) -> InferRequest:
    """A request to ``simple``."""
    inputs = []
    for index, array in enumerate(ARRAYS):
        item = InferInput(f"INPUT{index}", list(array.shape), "INT32")
        item.set_data_from_numpy(array, binary_data=binary)
        inputs.append(item)
    return InferRequest(model, inputs, request_id="id-1", **options)


def words(binary: bool) -> InferRequest:
    """A request to a model that echoes strings."""
    item = InferInput("INPUT0", list(WORDS.shape), "BYTES")
    item.set_data_from_numpy(WORDS, binary_data=binary)
    return InferRequest("identity_BYTES", [item])


async def rest_v2(base: str) -> dict[str, Any]:
    """Every call of the REST client that exists in v2."""
    client = Recorder(InferenceRESTClient(RESTConfig(protocol="v2")))
    binary_outputs = [RequestedOutput("OUTPUT0", {"binary_data": True}), RequestedOutput("OUTPUT1")]
    results = {
        "live": await outcome(client.is_server_live(base)),
        "ready": await outcome(client.is_server_ready(base)),
        "model_ready": await outcome(client.is_model_ready(base, "simple")),
        "unknown_model_ready": await outcome(client.is_model_ready(base, "nope")),
        "json": await outcome(client.infer(base, simple(False), "simple")),
        "binary": await outcome(client.infer(base, simple(True), "simple")),
        "mixed": await outcome(client.infer(base, simple(True, request_outputs=binary_outputs), "simple")),
        "words_json": await outcome(client.infer(base, words(False), "identity_BYTES")),
        "words_binary": await outcome(client.infer(base, words(True), "identity_BYTES")),
        "parameters": await outcome(client.infer(base, simple(False, parameters={"note": "x"}), "simple")),
        "unknown_model": await outcome(client.infer(base, simple(False, "nope"), "nope")),
    }
    await client.close()
    return results


async def rest_v1(base: str) -> dict[str, Any]:
    """Every call of the REST client, in KServe's first protocol."""
    client = Recorder(InferenceRESTClient(RESTConfig(protocol="v1")))
    rows = {"instances": [{"INPUT0": ARRAYS[0][0].tolist(), "INPUT1": ARRAYS[1][0].tolist()}]}
    columns = {"inputs": {"INPUT0": ARRAYS[0].tolist(), "INPUT1": ARRAYS[1].tolist()}}
    results = {
        "live": await outcome(client.is_server_live(base)),
        "model_ready": await outcome(client.is_model_ready(base, "simple")),
        "unknown_model_ready": await outcome(client.is_model_ready(base, "nope")),
        "broken_model": await outcome(client.infer(base, rows, "broken")),
        "broken_model_ready": await outcome(client.is_model_ready(base, "broken")),
        "rows": await outcome(client.infer(base, rows, "simple")),
        "columns": await outcome(client.infer(base, columns, "simple")),
        "unknown_model": await outcome(client.infer(base, rows, "nope")),
        "bad": await outcome(client.infer(base, {"instances": 5}, "simple")),
        "explain": await outcome(client.explain(base, "simple", rows)),
    }
    await client.close()
    v2_only = {"is_server_ready"}
    results["missed"] = sorted(set(client.missed()) - v2_only)
    return results


async def grpc_v2(address: str) -> dict[str, Any]:
    """Every call of the gRPC client."""
    client = Recorder(InferenceGRPCClient(address, retries=0))
    results = {
        "live": await outcome(client.is_server_live()),
        "ready": await outcome(client.is_server_ready()),
        "model_ready": await outcome(client.is_model_ready("simple")),
        "unknown_model_ready": await outcome(client.is_model_ready("nope")),
        "typed": await outcome(client.infer(simple(False))),
        "raw": await outcome(client.infer(simple(True))),
        "words_typed": await outcome(client.infer(words(False))),
        "words_raw": await outcome(client.infer(words(True))),
        "unknown_model": await outcome(client.infer(simple(True, "nope"))),
    }
    await client.close()
    results["missed"] = client.missed()
    return results


async def _main(http_address: str, grpc_address: str) -> None:
    logging.disable()
    base = f"http://{http_address}"
    results = {"v2": await rest_v2(base), "v1": await rest_v1(base), "grpc": await grpc_v2(grpc_address)}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))

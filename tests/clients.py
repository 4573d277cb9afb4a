"""The same calls over REST and gRPC, written by hand so that tests can also send what no client library would."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
import grpc
import grpc.aio
import numpy as np
from roost.core.errors import Code
from roost.core.requests import InferResponse
from roost.core.tensors import ParameterValue, Tensor, from_array, to_array
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_errors import STATUS_OF_CODE
from roost.server.rest.errors import HTTP_STATUS

from tests.server import RoostServer

HEADER_LENGTH = "Inference-Header-Content-Length"
TRANSPORTS = ("rest", "grpc")


class CallFailed(Exception):
    """The server answered with an error; ``status`` is the transport's."""

    def __init__(self, status: int | grpc.StatusCode, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message

    def means(self, code: Code) -> bool:
        """Whether this is how the transport says the code."""
        return self.status in (HTTP_STATUS[code], STATUS_OF_CODE[code])


class Client(Protocol):
    """What tests ask of a server, whatever the transport."""

    async def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, ParameterValue] | None = None,
    ) -> InferResponse: ...

    async def metadata(self, model: str, version: str = "") -> list[str]:
        """The names of the model's inputs."""
        ...

    async def is_ready(self, model: str) -> bool: ...

    async def index(self) -> dict[tuple[str, str], tuple[str, str]]:
        """State and reason by model and version."""
        ...

    async def load(self, model: str, parameters: Mapping[str, str | bytes] | None = None) -> None: ...

    async def unload(self, model: str) -> None: ...


class RestClient:
    """REST with binary tensors both ways."""

    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        self._base = f"http://{address}/v2"
        self._session = session

    async def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, ParameterValue] | None = None,
    ) -> InferResponse:
        document = {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": list(tensor.shape),
                    "parameters": {"binary_data_size": len(tensor.data)},
                }
                for tensor in inputs
            ],
            "parameters": {"binary_data_output": True, **(parameters or {})},
        }
        if outputs:
            document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        head = json.dumps(document).encode()
        body = head + b"".join(bytes(tensor.data) for tensor in inputs)
        path = f"/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
        async with self._session.post(self._base + path, data=body, headers={HEADER_LENGTH: str(len(head))}) as answer:
            data = await answer.read()
            if answer.status != 200:
                raise CallFailed(answer.status, json.loads(data)["error"])
            return _rest_response(data, int(answer.headers.get(HEADER_LENGTH, len(data))))

    async def metadata(self, model: str, version: str = "") -> list[str]:
        path = f"/models/{model}" + (f"/versions/{version}" if version else "")
        return [row["name"] for row in (await self._json("GET", path))["inputs"]]

    async def is_ready(self, model: str) -> bool:
        async with self._session.get(f"{self._base}/models/{model}/ready") as answer:
            return answer.status == 200

    async def index(self) -> dict[tuple[str, str], tuple[str, str]]:
        rows = await self._json("POST", "/repository/index")
        return {(r["name"], r.get("version", "")): (r.get("state", ""), r.get("reason", "")) for r in rows}

    async def load(self, model: str, parameters: Mapping[str, str | bytes] | None = None) -> None:
        values = {
            key: value if isinstance(value, str) else base64.b64encode(value).decode()
            for key, value in (parameters or {}).items()
        }
        document = {"parameters": values} if values else None
        await self._json("POST", f"/repository/models/{model}/load", document)

    async def unload(self, model: str) -> None:
        await self._json("POST", f"/repository/models/{model}/unload")

    async def _json(self, method: str, path: str, document: Any = None) -> Any:
        data = json.dumps(document).encode() if document is not None else None
        async with self._session.request(method, self._base + path, data=data) as answer:
            data = await answer.read()
            if answer.status != 200:
                raise CallFailed(answer.status, json.loads(data)["error"])
            return json.loads(data) if data else None


def _rest_response(data: bytes, head_bytes: int) -> InferResponse:
    document = json.loads(data[:head_bytes])
    outputs, position = [], head_bytes
    for row in document["outputs"]:
        size = row["parameters"]["binary_data_size"]
        outputs.append(Tensor(row["name"], row["datatype"], tuple(row["shape"]), data[position : position + size]))
        position += size
    assert position == len(data)
    return InferResponse(document["model_name"], document["model_version"], outputs, document.get("id", ""))


class GrpcClient:
    """gRPC with raw contents."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, ParameterValue] | None = None,
        timeout_s: float | None = None,
    ) -> InferResponse:
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        for tensor in inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(bytes(tensor.data))
        for name in outputs:
            request.outputs.add(name=name)
        for key, value in (parameters or {}).items():
            _set_parameter(request.parameters[key], value)
        answer = await self._call("ModelInfer", request, pb.ModelInferResponse, timeout_s)
        found = [
            Tensor(row.name, row.datatype, tuple(row.shape), data)
            for row, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
        ]
        return InferResponse(answer.model_name, answer.model_version, found, answer.id)

    async def metadata(self, model: str, version: str = "") -> list[str]:
        request = pb.ModelMetadataRequest(name=model, version=version)
        answer = await self._call("ModelMetadata", request, pb.ModelMetadataResponse)
        return [row.name for row in answer.inputs]

    async def is_ready(self, model: str) -> bool:
        answer = await self._call("ModelReady", pb.ModelReadyRequest(name=model), pb.ModelReadyResponse)
        return bool(answer.ready)

    async def index(self) -> dict[tuple[str, str], tuple[str, str]]:
        answer = await self._call("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
        return {(row.name, row.version): (row.state, row.reason) for row in answer.models}

    async def load(self, model: str, parameters: Mapping[str, str | bytes] | None = None) -> None:
        request = pb.RepositoryModelLoadRequest(model_name=model)
        for key, value in (parameters or {}).items():
            if isinstance(value, str):
                request.parameters[key].string_param = value
            else:
                request.parameters[key].bytes_param = value
        await self._call("RepositoryModelLoad", request, pb.RepositoryModelLoadResponse)

    async def unload(self, model: str) -> None:
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        await self._call("RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse)

    async def _call(self, method: str, request: Any, answer: Any, timeout_s: float | None = None) -> Any:
        call = self._channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code(), error.details() or "") from None


def _set_parameter(target: Any, value: ParameterValue) -> None:
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int):
        target.int64_param = value
    elif isinstance(value, float):
        target.double_param = value
    else:
        target.string_param = value


@asynccontextmanager
async def connect(server: RoostServer, transport: str) -> AsyncIterator[Client]:
    """A client of the server over ``rest`` or ``grpc``."""
    if transport == "rest":
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
            yield RestClient(server.http, session)
    else:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            yield GrpcClient(channel)


def four(*values: float) -> list[Tensor]:
    """The input of the tests' dummy models: FP32 ``[1, 4]``."""
    return [from_array("INPUT0", "FP32", np.array([values or (1, 2, 3, 4)], np.float32))]


def sixteen(a: int = 3, b: int = 2) -> list[Tensor]:
    """The inputs of ``simple``: twice INT32 ``[1, 16]``."""
    return [from_array(f"INPUT{i}", "INT32", np.full((1, 16), value, np.int32)) for i, value in enumerate((a, b))]


PROBE_OUTPUTS = (("OUTPUT0", "FP32", (1, 4)), ("pid", "INT64", (1,)), ("count", "INT64", (1,)))
"""Outputs of a dummy model that tell which process ran it and how many runs its instance has had."""


def number(response: InferResponse, name: str) -> int:
    """The value of an INT64 output with one element."""
    for tensor in response.outputs:
        if tensor.name == name:
            return int(to_array(tensor).item())
    raise AssertionError(f"no output '{name}'")

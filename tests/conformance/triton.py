"""tritonclient's four clients behind one face, so that each test is written once."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException

from tests.server import RoostServer

MODULES: Mapping[str, ModuleType] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}
HTTP = ("http", "http.aio")
_CODES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND", "409": "ALREADY_EXISTS", "501": "UNIMPLEMENTED"}


class Triton:
    """A client of one kind; answers of calls about models are plain values as JSON has them."""

    def __init__(self, kind: str, client: Any) -> None:
        self.kind = kind
        self.module = MODULES[kind]
        self._client = client

    @property
    def raw(self) -> Any:
        """tritonclient's own client."""
        return self._client

    @property
    def is_http(self) -> bool:
        return self.kind in HTTP

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Calls a method of the client; messages become dictionaries with the field names of the protocol."""
        result = getattr(self._client, name)(*args, **options)
        if inspect.isawaitable(result):
            result = await result
        if hasattr(result, "DESCRIPTOR"):
            return MessageToDict(result, preserving_proto_field_name=True)
        return result

    async def infer(self, model: str, inputs: list[Any], **options: Any) -> Any:
        """The client's own result, for ``as_numpy`` and ``get_response``."""
        result = self._client.infer(model, inputs, **options)
        return await result if inspect.isawaitable(result) else result

    def input(self, name: str, array: Any, datatype: str, **options: Any) -> Any:
        item = self.module.InferInput(name, list(array.shape), datatype)
        item.set_data_from_numpy(array, **options)
        return item

    def output(self, name: str, **options: Any) -> Any:
        return self.module.InferRequestedOutput(name, **options)

    def sixteen(self, a: int, b: int, rows: int = 1, **options: Any) -> list[Any]:
        """The inputs of ``simple``."""
        arrays = (np.full((rows, 16), value, np.int32) for value in (a, b))
        return [self.input(f"INPUT{i}", array, "INT32", **options) for i, array in enumerate(arrays)]


def code(error: InferenceServerException) -> str:
    """The gRPC status of an error, or the one that its HTTP status stands for."""
    status = str(error.status())
    return _CODES.get(status, status.removeprefix("StatusCode."))


@asynccontextmanager
async def triton(server: RoostServer, kind: str, **options: Any) -> AsyncIterator[Triton]:
    """A client of one kind that is connected to the server."""
    address = server.http if kind in HTTP else server.grpc
    client = MODULES[kind].InferenceServerClient(address, **options)
    try:
        yield Triton(kind, client)
    finally:
        closed = client.close()
        if inspect.isawaitable(closed):
            await closed

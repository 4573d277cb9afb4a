"""A data plane whose behaviour a test sets, for tests of the gRPC transport alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from roost.core.errors import NotFound
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor, TensorSpec
from roost.proto import model_config_pb2 as mc
from roost.router.admission import ByteBudget
from roost.server.data_plane_protocol import RepositoryParameters

MODEL = "echo"


async def echo(request: InferRequest) -> InferResponse:
    """Answers with the inputs as outputs, and with the request's id and parameters."""
    outputs = [Tensor(f"OUT_{t.name}", t.datatype, t.shape, t.data) for t in request.inputs]
    return InferResponse(request.model_name, request.model_version or "1", outputs, request.id, request.parameters)


class WatchedBudget(ByteBudget):
    """A budget that says when nothing is taken from it."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self._empty = asyncio.Event()

    def release(self, size_bytes: int) -> None:
        super().release(size_bytes)
        if not self.used_bytes:
            self._empty.set()

    async def is_empty(self) -> None:
        """Waits until nothing is taken any more."""
        while self.used_bytes:
            self._empty.clear()
            await self._empty.wait()


class FakeDataPlane:
    """One model named ``echo``; ``on_infer`` and ``ready`` may be set at any time."""

    def __init__(self, *, budget_bytes: int = 2**30, request_timeout_s: float = 60.0) -> None:
        self.bodies = WatchedBudget(budget_bytes)
        self.request_timeout_s = request_timeout_s
        self.live = True
        self.ready = True
        self.on_infer: Callable[[InferRequest], Awaitable[InferResponse]] = echo
        self.requests: list[InferRequest] = []
        self.loaded: list[tuple[str, RepositoryParameters]] = []
        self.unloaded: list[tuple[str, RepositoryParameters]] = []
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()

    def server_live(self) -> bool:
        return self.live

    def server_ready(self) -> bool:
        return self.ready

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("roost", "1.2.3", ("model_repository", "binary_tensor_data"))

    async def model_ready(self, name: str, version: str = "") -> bool:
        return name == MODEL and version in ("", "1")

    async def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        self._check(name)
        inputs = (TensorSpec("IN", "FP32", (-1, 4)), TensorSpec("TEXT", "BYTES", (1,)))
        return ModelMetadata(name, ("1", "3"), "onnxruntime_onnx", inputs, (TensorSpec("OUT_IN", "FP32", (-1, 4)),))

    async def model_config(self, name: str, version: str = "") -> mc.ModelConfig:
        self._check(name)
        return mc.ModelConfig(name=name, backend="onnxruntime", max_batch_size=8)

    async def infer(self, request: InferRequest) -> InferResponse:
        self._check(request.model_name)
        self.requests.append(request)
        self.arrived.set()
        try:
            return await self.on_infer(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def repository_index(self, ready: bool = False) -> list[IndexEntry]:
        entries = [IndexEntry(MODEL, "1", "READY"), IndexEntry("broken", "1", "UNAVAILABLE", "not an ONNX file")]
        return entries[:1] if ready else entries

    async def load_model(self, name: str, parameters: RepositoryParameters) -> None:
        self._check(name)
        self.loaded.append((name, dict(parameters)))

    async def unload_model(self, name: str, parameters: RepositoryParameters) -> None:
        self.unloaded.append((name, dict(parameters)))

    @staticmethod
    def _check(name: str) -> None:
        if name != MODEL:
            raise NotFound(f"unknown model '{name}'")

"""A data plane whose behaviour a test sets, for tests of the gRPC transport alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from roost.core.errors import AlreadyExists, InvalidArgument, Limit, NotFound, RoostError
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.requests import Done, InferRequest, InferResponse, Ticket
from roost.core.statistics import InferStatistics, ModelStatistics, StatisticDuration
from roost.core.tensors import Tensor, TensorSpec
from roost.proto import model_config_pb2 as mc
from roost.router.admission import ByteBudget
from roost.server.data_plane_protocol import (
    CudaSharedMemory,
    LogSettings,
    RegionStatus,
    RepositoryParameters,
    SharedMemory,
    TraceSettings,
)

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


class FakeRegions:
    """Regions that exist by name only."""

    def __init__(self) -> None:
        self.regions: dict[str, RegionStatus] = {}

    def status(self, name: str = "") -> list[RegionStatus]:
        if name and name not in self.regions:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        return [region for region in self.regions.values() if name in ("", region.name)]

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        if name in self.regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        self.regions[name] = RegionStatus(name, key, offset, byte_size)

    def unregister(self, name: str = "") -> None:
        self.regions = {key: region for key, region in self.regions.items() if name not in ("", key)}


class NoGpu:
    """The regions of a server without a GPU."""

    def status(self, name: str = "") -> list[RegionStatus]:
        return []

    def register(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        raise InvalidArgument(f"there is no GPU {device_id}")

    def unregister(self, name: str = "") -> None:
        return


class FakeTicket:
    """A request that was begun, answered as ``infer`` does on a later turn of the loop."""

    def __init__(self, answer: Coroutine[Any, Any, InferResponse], done: Done) -> None:
        self._done: Done | None = done
        self._task = asyncio.get_running_loop().create_task(answer)
        self._task.add_done_callback(self._settle)

    def cancel(self) -> None:
        self._done = None
        self._task.cancel()

    def _settle(self, task: asyncio.Task[InferResponse]) -> None:
        if self._done is None:
            return
        error = task.exception()
        assert error is None or isinstance(error, RoostError)
        self._done(error or task.result())


class FakeDataPlane:
    """One model named ``echo``; ``on_infer``, ``on_stream`` and ``ready`` may be set at any time.

    ``begun`` counts the requests that ``begin`` took, which it does while ``may_begin``.

    ``in_flight`` counts requests of streams; ``on_stream`` is what decoupled models do, without it streams have
    ordinary ones.
    """

    def __init__(self, *, budget_bytes: int = 2**30, request_timeout_s: float = 60.0) -> None:
        self.bodies = WatchedBudget(budget_bytes)
        self.refusals: list[Limit] = []
        self.request_timeout_s = request_timeout_s
        self.live = True
        self.ready = True
        self.on_infer: Callable[[InferRequest], Awaitable[InferResponse]] = echo
        self.on_stream: Callable[[InferRequest], AsyncGenerator[InferResponse, None]] | None = None
        self.in_flight = 0
        self.may_begin = True
        self.begun = 0
        self.requests: list[InferRequest] = []
        self.loaded: list[tuple[str, RepositoryParameters]] = []
        self.unloaded: list[tuple[str, RepositoryParameters]] = []
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.shared_memory: SharedMemory = FakeRegions()
        self.cuda_shared_memory: CudaSharedMemory = NoGpu()
        self.traces: dict[str, str | tuple[str, ...]] = {"trace_level": ("OFF",), "trace_rate": "1000"}
        self.trace_updates: list[tuple[str, Mapping[str, tuple[str, ...] | None]]] = []
        self.log: dict[str, bool | int | str] = {"log_info": True, "log_verbose_level": 0, "log_format": "default"}

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

    def begin(self, request: InferRequest, done: Done) -> Ticket | None:
        if not self.may_begin or request.regions:
            return None
        self._check(request.model_name)
        self.begun += 1
        return FakeTicket(self.infer(request), done)

    async def infer(self, request: InferRequest) -> InferResponse:
        self._check(request.model_name)
        self.requests.append(request)
        self.arrived.set()
        try:
            return await self.on_infer(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        self.in_flight += 1
        try:
            if self.on_stream is None:
                yield await self.infer(request)
                return
            self._check(request.model_name)
            self.requests.append(request)
            self.arrived.set()
            async for response in self.on_stream(request):
                yield response
        finally:
            self.in_flight -= 1

    async def model_names(self) -> list[str]:
        return [MODEL]

    def refused(self, limit: Limit | None) -> None:
        if limit is not None:
            self.refusals.append(limit)
        self.arrived.set()

    async def model_statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        if name not in ("", MODEL):
            raise NotFound(f"requested model '{name}' is not available")
        success = StatisticDuration(2, 300)
        return [ModelStatistics(MODEL, version or "1", 5, 3, 2, InferStatistics(success=success))]

    async def trace_settings(self, model: str = "") -> TraceSettings:
        self._check(model or MODEL)
        return self.traces

    async def update_trace_settings(
        self, updates: Mapping[str, tuple[str, ...] | None], model: str = ""
    ) -> TraceSettings:
        self.trace_updates.append((model, updates))
        return self.traces

    def log_settings(self) -> LogSettings:
        return self.log

    def update_log_settings(self, updates: LogSettings) -> LogSettings:
        self.log |= updates
        return self.log

    async def repository_index(self, ready: bool = False, name: str = "") -> list[IndexEntry]:
        entries = [IndexEntry(MODEL, "1", "READY"), IndexEntry("broken", "1", "UNAVAILABLE", "not an ONNX file")]
        return [entry for entry in (entries[:1] if ready else entries) if name in ("", entry.name)]

    async def load_model(self, name: str, parameters: RepositoryParameters) -> None:
        self._check(name)
        self.loaded.append((name, dict(parameters)))

    async def unload_model(self, name: str, parameters: RepositoryParameters) -> None:
        self.unloaded.append((name, dict(parameters)))

    @staticmethod
    def _check(name: str) -> None:
        if name != MODEL:
            raise NotFound(f"unknown model '{name}'")

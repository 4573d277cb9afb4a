"""A data plane in memory, for tests of the transports."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from roost.core.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    Limit,
    NotFound,
    PollFailed,
    Unavailable,
    Unimplemented,
)
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.requests import Done, InferRequest, InferResponse, RegionSlice, Ticket
from roost.core.statistics import BatchStatistics, InferStatistics, ModelStatistics, StatisticDuration
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec, from_array, to_array
from roost.proto import model_config_pb2 as mc
from roost.router.admission import ByteBudget
from roost.router.validation import Contract
from roost.server.client_memory import NoGpuMemory
from roost.server.data_plane_protocol import LogSettings, RegionStatus, RepositoryParameters, TraceSettings
from roost.server.log_settings import LogBook
from roost.server.trace import TraceBook

MIB = 1 << 20
SIMPLE = Signature(
    (TensorSpec("INPUT0", "INT32", (-1, 16)), TensorSpec("INPUT1", "INT32", (-1, 16))),
    (TensorSpec("OUTPUT0", "INT32", (-1, 16)), TensorSpec("OUTPUT1", "INT32", (-1, 16))),
)


def _identity(datatype: str, shape: tuple[int, ...]) -> Signature:
    return Signature((TensorSpec("IN", datatype, shape),), (TensorSpec("OUT", datatype, shape),))


class ReusedResponse(InferResponse):
    """A response whose memory is reused as soon as nobody holds the response itself, whoever still holds views."""

    def __del__(self) -> None:
        for output in self.outputs:
            if isinstance(output.data, bytearray):
                output.data[:] = bytes(len(output.data))


class FakeSharedMemory:
    """Regions of objects that are in this process; ``objects`` has those that a client may register, by key."""

    def __init__(self) -> None:
        self.objects: dict[str, bytearray] = {}
        self.regions: dict[str, RegionStatus] = {}

    def status(self, name: str = "") -> list[RegionStatus]:
        if not name:
            return [self.regions[key] for key in sorted(self.regions)]
        return [self._find(name)]

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        if name in self.regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        if key not in self.objects:
            raise NotFound(f"Unable to open shared memory region: '{name}'")
        if not key or byte_size <= 0 or offset < 0 or offset + byte_size > len(self.objects[key]):
            raise InvalidArgument(f"failed to register shared memory region '{name}': Invalid offset + byte size")
        self.regions[name] = RegionStatus(name, key, offset, byte_size)

    def unregister(self, name: str = "") -> None:
        for key in [name] if name else list(self.regions):
            self.regions.pop(key, None)

    def part(self, where: RegionSlice) -> memoryview:
        region = self._find(where.region)
        if where.offset + where.byte_size > region.byte_size:
            raise InvalidArgument(f"Invalid offset + byte size for shared memory region: '{where.region}'")
        start = region.offset + where.offset
        return memoryview(self.objects[region.key])[start : start + where.byte_size]

    def _find(self, name: str) -> RegionStatus:
        if name not in self.regions:
            raise NotFound(f"Unable to find shared memory region: '{name}'")
        return self.regions[name]


class FakeTicket:
    """A request that was begun: answered on a later turn of the loop, ``hang`` when ``go`` is set."""

    def __init__(self, plane: FakeDataPlane, contract: Contract, request: InferRequest, done: Done) -> None:
        self._plane = plane
        self._request = request
        self._done: Done | None = done
        self._task = asyncio.get_running_loop().create_task(plane.run(contract, request))
        self._task.add_done_callback(self._settle)

    def cancel(self) -> None:
        self._done = None
        self._task.cancel()

    def _settle(self, task: asyncio.Task[list[Tensor]]) -> None:
        if self._done is not None:
            self._done(self._plane.answer(self._request, task.result()))


class FakeDataPlane:
    """A few models.

    ``simple`` (sum and difference), ``id_<DATATYPE>``, ``word`` (one BYTES element), ``big`` (a large answer), ``hang``
    (until ``go`` is set), ``down`` (UNAVAILABLE), ``bug`` (raises what nobody expects), and ``stream``, which is
    decoupled: it answers the elements of IN one by one. Its parameters: ``fail_after`` (fail after so many answers),
    ``wait_after`` (after so many wait until ``go`` is set) and ``final_with_last`` (close with the last answer).

    Attributes:
        bodies: Budget of request bodies.
        ready: Whether the server is.
        go: Lets ``hang`` and a waiting ``stream`` go on.
        started: Set when one of them waits.
        cancelled: Set when one of them was cancelled.
        requests: All that were valid.
        calls: Loads and unloads.
        streamed: How many answers were taken from ``stream``.
        refusals: Limits that requests ran into before they came here.
        may_begin: Whether ``begin`` takes what it can; else everything goes through ``infer``.
    """

    def __init__(self, body_bytes: int = 256 * MIB, request_timeout_s: float = 30.0) -> None:
        self.shared_memory = FakeSharedMemory()
        self.cuda_shared_memory = NoGpuMemory()
        self._trace_book = TraceBook()
        self._log_book = LogBook("info", lambda level: None)
        self.may_begin = True
        self.streamed = 0
        self.refusals: list[Limit] = []
        self.bodies = ByteBudget(body_bytes)
        self.request_timeout_s = request_timeout_s
        self.ready = True
        self.go = asyncio.Event()
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.requests: list[InferRequest] = []
        self.calls: list[tuple[str, str, Mapping[str, Any]]] = []
        word = (-1, 1)
        contracts = [Contract("simple", SIMPLE, 8), Contract("word", _identity("BYTES", word), 8)]
        contracts += [Contract(f"id_{name}", _identity(name, (-1, -1)), 8) for name in DATATYPES]
        contracts += [Contract(name, _identity("INT32", (-1,)), 0) for name in ("hang", "down", "bug")]
        contracts.append(
            Contract("stream", Signature((TensorSpec("IN", "INT32", (-1,)),), (TensorSpec("OUT", "INT32", (1,)),)), 0)
        )
        contracts.append(Contract("big", Signature((), (TensorSpec("OUT", "UINT8", (-1,)),)), 0))
        self.contracts = {contract.model: contract for contract in contracts}

    def server_live(self) -> bool:
        return True

    def server_ready(self) -> bool:
        return self.ready

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("triton", "1.0", ("model_repository", "binary_tensor_data"))

    def _find(self, name: str, version: str) -> Contract:
        contract = self.contracts.get(name)
        if contract is None:
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        if version not in ("", "1"):
            raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
        return contract

    async def model_ready(self, name: str, version: str = "") -> bool:
        return name in self.contracts and version in ("", "1")

    async def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        signature = self._find(name, version).signature
        return ModelMetadata(name, ("1",), "onnxruntime_onnx", signature.inputs, signature.outputs)

    async def model_config(self, name: str, version: str = "") -> mc.ModelConfig:
        contract = self._find(name, version)
        config = mc.ModelConfig(name=name, max_batch_size=contract.max_batch_size, backend="onnxruntime")
        for spec in contract.signature.inputs:
            config.input.add(
                name=spec.name,
                data_type=mc.DataType.Value(DATATYPES[spec.datatype].config_name),
                dims=spec.shape[1:] if contract.max_batch_size else spec.shape,
            )
        return config

    def begin(self, request: InferRequest, done: Done) -> Ticket | None:
        if not self.may_begin or request.model_name not in self.contracts:
            return None
        contract = self._find(request.model_name, request.model_version)
        warm = contract.model in ("simple", "word", "big", "hang") or contract.model.startswith("id_")
        if not warm or request.regions or any(output.region is not None for output in request.outputs):
            return None
        self._accept(contract, request)
        return FakeTicket(self, contract, request, done)

    async def infer(self, request: InferRequest) -> InferResponse:
        contract = self._find(request.model_name, request.model_version)
        if contract.model == "stream":
            raise Unimplemented("ModelInfer RPC doesn't support models with decoupled transaction policy")
        self._accept(contract, request)
        return self.answer(request, await self.run(contract, request))

    async def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        contract = self._find(request.model_name, request.model_version)
        if contract.model != "stream":
            yield await self.infer(request)
            return
        self._accept(contract, request)
        values = to_array(request.inputs[0]).tolist()
        closes_with_data = bool(request.parameters.get("final_with_last", False)) and bool(values)
        for index, value in enumerate(values):
            if index == request.parameters.get("fail_after"):
                raise Internal("the model failed")
            if index == request.parameters.get("wait_after"):
                await self._hang()
            response = self.answer(request, [from_array("OUT", "INT32", np.array([value], np.int32))])
            response.final = closes_with_data and index == len(values) - 1
            self.streamed += 1
            yield response
        if len(values) == request.parameters.get("fail_after"):
            raise Internal("the model failed")
        if not closes_with_data:
            yield InferResponse(request.model_name, "1", [], request.id)

    def _accept(self, contract: Contract, request: InferRequest) -> None:
        """Takes inputs out of shared memory and keeps the request, if it is right."""
        for index, tensor in enumerate(request.inputs):
            where = request.regions.get(tensor.name)
            if where is not None:
                request.inputs[index] = replace(tensor, data=bytes(self.shared_memory.part(where)))
        contract.check(request)
        self.requests.append(request)

    def answer(self, request: InferRequest, outputs: list[Tensor]) -> InferResponse:
        """A response with what was asked for, in memory of this process or, without data, in a client's region."""
        if request.outputs:
            outputs = [output for wanted in request.outputs for output in outputs if output.name == wanted.name]
        regions = {wanted.name: wanted.region for wanted in request.outputs if wanted.region is not None}
        for index, output in enumerate(outputs):
            if output.name in regions:
                data = bytes(output.data)
                self.shared_memory.part(regions[output.name])[: len(data)] = data
                outputs[index] = replace(output, data=b"")
        response = ReusedResponse(request.model_name, "1", outputs, request.id)
        response.in_regions = frozenset(regions)
        return response

    async def run(self, contract: Contract, request: InferRequest) -> list[Tensor]:
        match contract.model:
            case "simple":
                a, b = (to_array(tensor) for tensor in sorted(request.inputs, key=lambda tensor: tensor.name))
                return [from_array("OUTPUT0", "INT32", a + b), from_array("OUTPUT1", "INT32", a - b)]
            case "big":
                size, fill = int(request.parameters["size"]), int(request.parameters["fill"])
                return [Tensor("OUT", "UINT8", (size,), bytearray(fill.to_bytes() * size))]
            case "hang":
                await self._hang()
            case "down":
                raise Unavailable("model 'down' failed to load", retry_after_s=2.5)
            case "bug":
                raise RuntimeError("a secret")
        tensor = request.inputs[0]
        return [Tensor("OUT", tensor.datatype, tensor.shape, tensor.data)]

    async def _hang(self) -> None:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def repository_index(self, ready: bool = False, name: str = "") -> list[IndexEntry]:
        entries = [IndexEntry("simple", "1", "READY")]
        if not ready:
            entries += [IndexEntry("cold"), IndexEntry("bad", "1", "UNAVAILABLE", "unloaded")]
        return [entry for entry in entries if name in ("", entry.name)]

    async def load_model(self, name: str, parameters: RepositoryParameters) -> None:
        if name == "nope":
            raise PollFailed("failed to load 'nope', failed to poll from model repository")
        if "foo" in parameters:
            raise InvalidArgument("unrecognized load parameter 'foo'.")
        self.calls.append(("load", name, parameters))

    async def unload_model(self, name: str, parameters: RepositoryParameters) -> None:
        self.calls.append(("unload", name, parameters))

    async def model_names(self) -> list[str]:
        return sorted(self.contracts)

    def refused(self, limit: Limit | None) -> None:
        if limit is not None:
            self.refusals.append(limit)

    async def model_statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        if name and (name not in self.contracts or version not in ("", "1")):
            raise NotFound(f"requested model '{name}' is not available")
        once = StatisticDuration(1, 2_000)
        return [
            ModelStatistics(
                model,
                "1",
                last_inference_ms=1_700_000_000_000,
                inference_count=3,
                execution_count=1,
                inference_stats=InferStatistics(success=once, queue=once, compute_infer=once),
                batch_stats=(BatchStatistics(3, compute_infer=once),),
            )
            for model in ([name] if name else ["simple", "word"])
        ]

    async def trace_settings(self, model: str = "") -> TraceSettings:
        self._check_traced(model)
        return self._trace_book.of(model)

    async def update_trace_settings(
        self, updates: Mapping[str, tuple[str, ...] | None], model: str = ""
    ) -> TraceSettings:
        self._check_traced(model)
        return self._trace_book.update(updates, model)

    def _check_traced(self, model: str) -> None:
        if model and model not in self.contracts:
            raise NotFound(f"Request for unknown model : {model}")

    def log_settings(self) -> LogSettings:
        return self._log_book.settings()

    def update_log_settings(self, updates: LogSettings) -> LogSettings:
        return self._log_book.update(updates)


def encode_file(data: bytes) -> str:
    """A file as a load call carries it."""
    return base64.b64encode(data).decode()

"""A data plane in memory, for tests of the transports."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

from roost.core.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec, from_array, to_array
from roost.proto import model_config_pb2 as mc
from roost.router.admission import ByteBudget
from roost.router.validation import Contract

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


class FakeDataPlane:
    """A few models.

    ``simple`` (sum and difference), ``id_<DATATYPE>``, ``word`` (one BYTES element), ``big`` (a large answer), ``hang``
    (until ``go`` is set), ``down`` (UNAVAILABLE) and ``bug`` (raises what nobody expects).
    """

    def __init__(self, body_bytes: int = 256 * MIB, request_timeout_s: float = 30.0) -> None:
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

    async def infer(self, request: InferRequest) -> InferResponse:
        contract = self._find(request.model_name, request.model_version)
        contract.check(request)
        self.requests.append(request)
        outputs = await self._run(contract, request)
        wanted = [output.name for output in request.outputs]
        if wanted:
            outputs = [output for name in wanted for output in outputs if output.name == name]
        return ReusedResponse(request.model_name, "1", outputs)

    async def _run(self, contract: Contract, request: InferRequest) -> list[Tensor]:
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

    async def repository_index(self, ready: bool = False) -> list[IndexEntry]:
        entries = [IndexEntry("simple", "1", "READY")]
        return entries if ready else [*entries, IndexEntry("cold"), IndexEntry("bad", "1", "UNAVAILABLE", "unloaded")]

    async def load_model(self, name: str, parameters: Mapping[str, bool | int | str | bytes]) -> None:
        if name == "nope":
            raise FailedPrecondition("failed to load 'nope', failed to poll from model repository")
        if "foo" in parameters:
            raise InvalidArgument("unrecognized load parameter 'foo'.")
        self.calls.append(("load", name, parameters))

    async def unload_model(self, name: str, parameters: Mapping[str, bool | int | str | bytes]) -> None:
        self.calls.append(("unload", name, parameters))


def encode_file(data: bytes) -> str:
    """A file as a load call carries it."""
    return base64.b64encode(data).decode()

"""The calls of ``inference.GRPCInferenceService`` that every server of the protocol has, and the model repository's."""

from __future__ import annotations

import time
from typing import Any

from roost.core.errors import Unimplemented
from roost.core.tensors import Buffer
from roost.proto import grpc_service_pb2 as pb
from roost.server import grpc_codec as codec
from roost.server import grpc_messages as messages
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_bursts import Bursts
from roost.server.grpc_calls import Calls, Handlers, Parts, header_of
from roost.server.grpc_plain import InferCodec
from roost.server.grpc_receive import ReceiveGate


class InferenceCalls:
    """Health, metadata and inference.

    Args:
        data_plane: What answers.
        calls: Makes the handlers.
        gate: Receives messages that may be large.
        control_gate: Receives the others.
        infer_codec: Reads and writes the messages of inference.
        bursts: Gathers the calls of ModelInfer; None where the transport hands over those of a turn together.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        calls: Calls,
        gate: ReceiveGate,
        control_gate: ReceiveGate,
        infer_codec: InferCodec,
        bursts: Bursts | None = None,
    ) -> None:
        self._data_plane = data_plane
        self._calls = calls
        self._gate = gate
        self._control_gate = control_gate
        self._codec = infer_codec
        self._bursts = bursts

    def handlers(self) -> Handlers:
        """The methods by name."""
        calls, gate = self._calls, self._control_gate
        infer = self._model_infer if self._bursts is None else self._bursts.gathered(self._model_infer)
        return {
            "ServerLive": calls.unread("ServerLive", "health", self._server_live),
            "ServerReady": calls.unread("ServerReady", "health", self._server_ready),
            "ServerMetadata": calls.unread("ServerMetadata", "metadata", self._server_metadata),
            "ModelReady": calls.received("ModelReady", "health", self._model_ready, gate),
            "ModelMetadata": calls.received("ModelMetadata", "metadata", self._model_metadata, gate),
            "ModelConfig": calls.received("ModelConfig", "model-config", self._model_config, gate),
            "ModelInfer": calls.received_large("ModelInfer", "inference", infer, self._gate),
        }

    def _server_live(self) -> bytes:
        return pb.ServerLiveResponse(live=self._data_plane.server_live()).SerializeToString()

    def _server_ready(self) -> bytes:
        return pb.ServerReadyResponse(ready=self._data_plane.server_ready()).SerializeToString()

    def _server_metadata(self) -> bytes:
        return messages.encode_server_metadata(self._data_plane.server_metadata())

    async def _model_ready(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.parse_message(pb.ModelReadyRequest, raw)
        ready = await self._data_plane.model_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    async def _model_metadata(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.parse_message(pb.ModelMetadataRequest, raw)
        return messages.encode_model_metadata(await self._data_plane.model_metadata(request.name, request.version))

    async def _model_config(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.parse_message(pb.ModelConfigRequest, raw)
        return messages.encode_model_config(await self._data_plane.model_config(request.name, request.version))

    async def _model_infer(self, raw: Buffer, context: Any, arrived: float) -> Parts:
        timeout_s = self._data_plane.request_timeout_s
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            timeout_s = min(timeout_s, time.monotonic() - arrived + remaining_s)
        request = self._codec.decode_infer(
            raw,
            arrived,
            timeout_s,
            caller=context.peer(),
            traceparent=header_of(context, "traceparent") or "",
            headers=self._calls.forwarded(context),
        )
        response = await self._data_plane.infer(request)
        kept = [response]  # its memory stays charged until it was sent
        context.add_done_callback(lambda _: kept.clear())
        return self._codec.encode_parts(response)[0]


class RepositoryCalls:
    """The model repository, which MLServer's clients know as a service of its own with the same messages.

    Args:
        data_plane: What answers.
        calls: Makes the handlers.
        gate: Receives messages that may be large.
        control_gate: Receives the others.
    """

    def __init__(self, data_plane: DataPlane, calls: Calls, gate: ReceiveGate, control_gate: ReceiveGate) -> None:
        self._data_plane = data_plane
        self._calls = calls
        self._gate = gate
        self._control_gate = control_gate

    def handlers(self) -> Handlers:
        """The methods by name."""
        received, group = self._calls.received, "model-repository"
        return {
            "RepositoryIndex": received("RepositoryIndex", group, self._index, self._control_gate),
            "RepositoryModelLoad": received("RepositoryModelLoad", group, self._load, self._gate),
            "RepositoryModelUnload": received("RepositoryModelUnload", group, self._unload, self._control_gate),
        }

    async def _index(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.parse_message(pb.RepositoryIndexRequest, raw)
        _refuse_repository(request.repository_name)
        return messages.encode_index(await self._data_plane.repository_index(request.ready))

    async def _load(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = messages.decode_repository_call(pb.RepositoryModelLoadRequest, raw)
        _refuse_repository(request.repository_name)
        await self._data_plane.load_model(request.model_name, request.parameters)
        return messages.encode_repository_answer(request.model_name)

    async def _unload(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = messages.decode_repository_call(pb.RepositoryModelUnloadRequest, raw)
        _refuse_repository(request.repository_name)
        await self._data_plane.unload_model(request.model_name, request.parameters)
        return messages.encode_repository_answer(request.model_name)


def _refuse_repository(repository_name: str) -> None:
    if repository_name:
        raise Unimplemented("'repository_name' specification is not supported")

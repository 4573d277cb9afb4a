"""The gRPC transport on grpc.aio: opens a port, and hands each call to the data plane as plain values.

Handlers take and give bytes, so bytes that are no message are answered like any other bad request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
from roost.core.errors import InvalidArgument, RoostError, Unimplemented
from roost.proto import grpc_service_pb2 as pb
from roost.proto.pool import SERVICE_NAME
from roost.server import grpc_codec as codec
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_errors import abort, as_value, unexpected
from roost.server.grpc_health import HEALTH_SERVICE_NAME, HealthService
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_receive import ReceiveGate
from roost.server.grpc_reflection import REFLECTION_SERVICE_NAME, ReflectionService

Call: TypeAlias = Callable[[bytes, Any, float], Awaitable[bytes]]
Handlers: TypeAlias = dict[str, grpc.RpcMethodHandler]

# Calls that ask about models must not wait behind large messages, nor a reflection stream that idles hold them up.
_CONTROL_RECEIVES: Final = 4
_REFLECTION_RECEIVES: Final = 4
_INFLATE_THREADS: Final = 2


class InferenceService:
    """The methods of ``inference.GRPCInferenceService``.

    Args:
        data_plane: What answers.
        gate: Receives messages that may be large.
        control_gate: Receives the others.
    """

    def __init__(self, data_plane: DataPlane, gate: ReceiveGate, control_gate: ReceiveGate) -> None:
        self._data_plane = data_plane
        self._gate = gate
        self._control_gate = control_gate

    def handlers(self) -> Handlers:
        """The service's methods by name, without serializers; those not yet served answer UNIMPLEMENTED."""
        gate, control_gate = self._gate, self._control_gate
        served = {
            "ServerLive": self._unread("ServerLive", self._server_live),
            "ServerReady": self._unread("ServerReady", self._server_ready),
            "ServerMetadata": self._unread("ServerMetadata", self._server_metadata),
            "ModelReady": self._received("ModelReady", self._model_ready, control_gate),
            "ModelMetadata": self._received("ModelMetadata", self._model_metadata, control_gate),
            "ModelConfig": self._received("ModelConfig", self._model_config, control_gate),
            "ModelInfer": self._received("ModelInfer", self._model_infer, gate),
            "RepositoryIndex": self._received("RepositoryIndex", self._repository_index, control_gate),
            "RepositoryModelLoad": self._received("RepositoryModelLoad", self._load_model, gate),
            "RepositoryModelUnload": self._received("RepositoryModelUnload", self._unload_model, control_gate),
        }
        methods = pb.DESCRIPTOR.services_by_name[SERVICE_NAME.rpartition(".")[2]].methods
        return {m.name: served.get(m.name) or _unimplemented(m.name, m.server_streaming) for m in methods}

    def _received(self, name: str, call: Call, gate: ReceiveGate) -> grpc.RpcMethodHandler:
        """Makes a handler that receives its message through a gate."""

        async def answer(context: Any) -> bytes | RoostError:
            arrived = time.monotonic()
            try:
                raw = await gate.receive(context)
                if raw is None:
                    raise InvalidArgument("the call ended without a message")
                self._take_bytes(len(raw), context)
                return await call(raw, context, arrived)
            except RoostError as error:
                return as_value(error)
            except Exception as error:  # the boundary of the request
                return unexpected(error, name)

        async def handle(_messages: Any, context: Any) -> bytes:
            result = await answer(context)
            return await abort(context, result) if isinstance(result, RoostError) else result

        return grpc.stream_unary_rpc_method_handler(handle)

    def _unread(self, name: str, call: Callable[[], bytes]) -> grpc.RpcMethodHandler:
        """Makes a handler for a request without content: it isn't received, so no flood or slow sender delays it."""

        def answer() -> bytes | RoostError:
            try:
                return call()
            except RoostError as error:
                return as_value(error)
            except Exception as error:  # the boundary of the request
                return unexpected(error, name)

        async def handle(_messages: Any, context: Any) -> bytes:
            result = answer()
            return await abort(context, result) if isinstance(result, RoostError) else result

        return grpc.stream_unary_rpc_method_handler(handle)

    def _take_bytes(self, size_bytes: int, context: Any) -> None:
        """Takes a message from the byte budget until its call is done, response sent."""
        bodies = self._data_plane.bodies
        bodies.acquire(size_bytes)
        context.add_done_callback(lambda _: bodies.release(size_bytes))

    def _server_live(self) -> bytes:
        return pb.ServerLiveResponse(live=self._data_plane.server_live()).SerializeToString()

    def _server_ready(self) -> bytes:
        return pb.ServerReadyResponse(ready=self._data_plane.server_ready()).SerializeToString()

    def _server_metadata(self) -> bytes:
        return codec.encode_server_metadata(self._data_plane.server_metadata())

    async def _model_ready(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.parse_message(pb.ModelReadyRequest, raw)
        ready = await self._data_plane.model_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    async def _model_metadata(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.parse_message(pb.ModelMetadataRequest, raw)
        return codec.encode_model_metadata(await self._data_plane.model_metadata(request.name, request.version))

    async def _model_config(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.parse_message(pb.ModelConfigRequest, raw)
        return codec.encode_model_config(await self._data_plane.model_config(request.name, request.version))

    async def _model_infer(self, raw: bytes, context: Any, arrived: float) -> bytes:
        timeout_s = self._data_plane.request_timeout_s
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            timeout_s = min(timeout_s, time.monotonic() - arrived + remaining_s)
        request = codec.decode_infer(
            raw, arrived, timeout_s, caller=context.peer(), traceparent=_header(context, "traceparent")
        )
        response = await self._data_plane.infer(request)
        kept = [response]  # its memory stays charged until it was sent
        context.add_done_callback(lambda _: kept.clear())
        return codec.encode_response(response)

    async def _repository_index(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.parse_message(pb.RepositoryIndexRequest, raw)
        _refuse_repository(request.repository_name)
        return codec.encode_index(await self._data_plane.repository_index(request.ready))

    async def _load_model(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.decode_repository_call(pb.RepositoryModelLoadRequest, raw)
        _refuse_repository(request.repository_name)
        await self._data_plane.load_model(request.model_name, request.parameters)
        return b""

    async def _unload_model(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = codec.decode_repository_call(pb.RepositoryModelUnloadRequest, raw)
        _refuse_repository(request.repository_name)
        await self._data_plane.unload_model(request.model_name, request.parameters)
        return b""


class GrpcServer:
    """A gRPC server that is built, then bound, then started, then stopped.

    Args:
        server: The grpc.aio server with its handlers.
        closing: Set when it stops.
        executor: Threads that end with it.
    """

    def __init__(self, server: grpc.aio.Server, closing: asyncio.Event, executor: ThreadPoolExecutor) -> None:
        self.server = server
        self._closing = closing
        self._executor = executor

    def bind(self, host: str, port: int) -> int:
        """Opens a port, any free one for 0, and returns its number; calls are answered once the server has started.

        Raises:
            OSError: If it is taken or the host is not ours.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound: int = self.server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(f"cannot listen for gRPC on {address}") from None
        return bound

    async def start(self) -> None:
        """Begins to answer."""
        await self.server.start()

    async def stop(self, grace_s: float | None) -> None:
        """Takes no further calls, waits for those in flight up to ``grace_s``, then cancels the others."""
        self._closing.set()
        await self.server.stop(grace_s)
        self._executor.shutdown(wait=False)


def build_grpc_server(data_plane: DataPlane, limits: GrpcLimits) -> GrpcServer:
    """Builds the server with all its services, neither bound nor started.

    Args:
        data_plane: What answers.
        limits: Limits and transport settings.
    """
    closing = asyncio.Event()
    executor = ThreadPoolExecutor(_INFLATE_THREADS, thread_name_prefix="roost-grpc-inflate")

    def gate(slots: int) -> ReceiveGate:
        return ReceiveGate(
            slots=slots,
            max_waiting=limits.max_waiting_receives,
            max_message_bytes=limits.max_message_bytes,
            timeout_s=data_plane.request_timeout_s,
            executor=executor,
        )

    server = grpc.aio.server(options=limits.channel_arguments(), compression=limits.compression())
    inference = InferenceService(data_plane, gate(limits.max_concurrent_receives), gate(_CONTROL_RECEIVES))
    names = (SERVICE_NAME, HEALTH_SERVICE_NAME, REFLECTION_SERVICE_NAME)
    _register(server, SERVICE_NAME, inference.handlers())
    _register(server, HEALTH_SERVICE_NAME, HealthService(data_plane, closing, limits.health_poll_s).handlers())
    _register(server, REFLECTION_SERVICE_NAME, ReflectionService(names, gate(_REFLECTION_RECEIVES)).handlers())
    return GrpcServer(server, closing, executor)


def _register(server: grpc.aio.Server, service_name: str, handlers: Handlers) -> None:
    # grpc.aio ignores registered handlers so far, faster transports do not accelerate generic ones: give both.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, handlers),))
    server.add_registered_method_handlers(service_name, handlers)


def _unimplemented(name: str, is_streaming: bool) -> grpc.RpcMethodHandler:
    async def handle(_messages: Any, context: Any) -> None:
        await abort(context, Unimplemented(f"{name} is not implemented by this server"))

    if is_streaming:
        return grpc.stream_stream_rpc_method_handler(handle)
    return grpc.stream_unary_rpc_method_handler(handle)


def _refuse_repository(repository_name: str) -> None:
    if repository_name:
        raise Unimplemented("'repository_name' specification is not supported")


def _header(context: Any, name: str) -> str:
    """A text header of a call, empty if it isn't there."""
    for key, value in context.invocation_metadata():
        if key == name:
            return str(value)
    return ""

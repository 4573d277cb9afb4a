"""The gRPC server: makes the methods, and serves them on the native transport or on grpc.aio.

Handlers take and give bytes, so bytes that are no message are answered like any other bad request.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import grpc
import grpc.aio
from roost.proto.pool import SERVICE_NAME
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_bursts import Bursts
from roost.server.grpc_calls import Calls, Handlers
from roost.server.grpc_errors import log_ended_calls_quietly
from roost.server.grpc_extensions import ExtensionCalls
from roost.server.grpc_health import HEALTH_SERVICE_NAME, HealthService
from roost.server.grpc_inference import InferenceCalls, RepositoryCalls
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_native import NativeService, NativeTransport
from roost.server.grpc_plain import InferCodec
from roost.server.grpc_receive import ReceiveGate, StreamGate
from roost.server.grpc_reflection import REFLECTION_SERVICE_NAME, ReflectionService
from roost.server.grpc_stream import StreamCalls
from roost.server.transport_options import TransportOptions

log = logging.getLogger(__name__)

# What clients of MLServer call; its messages are Triton's without the parameters.
MODEL_REPOSITORY_SERVICE_NAME: Final = "inference.model_repository.ModelRepositoryService"

# Calls that ask about models must not wait behind large messages, nor a reflection stream that idles hold them up.
_CONTROL_RECEIVES: Final = 4
_REFLECTION_RECEIVES: Final = 4
_INFLATE_THREADS: Final = 2


class Transport(Protocol):
    """What takes calls from a port to their handlers."""

    def bind(self, host: str, port: int) -> int:
        """Opens a port, any free one for 0, and returns its number.

        Raises:
            OSError: If it is taken or the host is not ours.
        """

    async def start(self) -> None:
        """Begins to answer."""

    async def stop(self, grace_s: float | None) -> None:
        """Takes no further calls, waits for those in flight up to ``grace_s``, then cancels the others."""


class AioTransport:
    """grpc.aio as a transport. Implements ``Transport``.

    Args:
        services: Handlers by service and method.
        limits: Limits and transport settings.
    """

    def __init__(self, services: dict[str, Handlers], limits: GrpcLimits) -> None:
        log_ended_calls_quietly()
        self._server = grpc.aio.server(options=limits.channel_arguments(), compression=limits.compression())
        for name, handlers in services.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    def bind(self, host: str, port: int) -> int:
        """See ``Transport``."""
        try:
            bound: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from None
        return bound

    async def start(self) -> None:
        """See ``Transport``."""
        await self._server.start()

    async def stop(self, grace_s: float | None) -> None:
        """See ``Transport``."""
        await self._server.stop(grace_s)


class GrpcServer:
    """A gRPC server that is built, then bound, then started, then stopped.

    Args:
        transport: Takes calls to their handlers.
        streams: The streams of requests, which would hold it up when it stops.
        closing: Set when it stops.
        executor: Threads that end with it.
    """

    def __init__(
        self, transport: Transport, streams: StreamCalls, closing: asyncio.Event, executor: ThreadPoolExecutor
    ) -> None:
        self.transport = transport
        self._streams = streams
        self._closing = closing
        self._executor = executor

    def bind(self, host: str, port: int) -> int:
        """Opens a port, any free one for 0, and returns its number; calls are answered once the server has started.

        Raises:
            OSError: If it is taken or the host is not ours.
        """
        try:
            return self.transport.bind(host, port)
        except OSError:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise OSError(f"cannot listen for gRPC on {address}") from None

    async def start(self) -> None:
        """Begins to answer."""
        await self.transport.start()

    async def stop(self, grace_s: float | None) -> None:
        """Takes no further calls, waits for those in flight up to ``grace_s``, then cancels the others.

        Streams receive no further requests; those they have received are in flight.
        """
        self._closing.set()
        self._streams.drain()
        await self.transport.stop(grace_s)
        self._executor.shutdown(wait=False)


def build_grpc_server(data_plane: DataPlane, limits: GrpcLimits, options: TransportOptions | None = None) -> GrpcServer:
    """Builds the server with all its services, neither bound nor started.

    Args:
        data_plane: What answers.
        limits: Limits and transport settings.
        options: What the operator chose besides.
    """
    options = options or TransportOptions()
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

    calls = Calls(data_plane, options)
    codec = InferCodec()
    large, control = gate(limits.max_concurrent_receives), gate(_CONTROL_RECEIVES)
    stream_gate = StreamGate(
        slots=limits.max_concurrent_receives,
        max_message_bytes=limits.max_message_bytes,
        silence_s=limits.stream_silence_s,
        executor=executor,
    )
    streams = StreamCalls(data_plane, calls, stream_gate, limits)
    use_native = limits.use_native()
    repository = RepositoryCalls(data_plane, calls, large, control).handlers()
    inference = (
        InferenceCalls(data_plane, calls, large, control, codec, None if use_native else Bursts()).handlers()
        | streams.handlers()
        | repository
        | ExtensionCalls(data_plane, calls, control).handlers()
    )
    described = (SERVICE_NAME, HEALTH_SERVICE_NAME, REFLECTION_SERVICE_NAME)
    services = {
        SERVICE_NAME: inference,
        MODEL_REPOSITORY_SERVICE_NAME: repository,
        HEALTH_SERVICE_NAME: HealthService(data_plane, calls, closing, limits.health_poll_s).handlers(),
        REFLECTION_SERVICE_NAME: ReflectionService(described, gate(_REFLECTION_RECEIVES)).handlers(),
    }
    if not use_native:
        return GrpcServer(AioTransport(services, limits), streams, closing, executor)
    paths = {f"/{name}/{method}": handler for name in services for method, handler in services[name].items()}
    service = NativeService(data_plane, calls, paths, limits, codec, options.compat_triton)
    return GrpcServer(NativeTransport(service), streams, closing, executor)

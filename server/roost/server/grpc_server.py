"""The gRPC transport on grpc.aio: opens a port, and hands each call to the data plane as plain values.

Handlers take and give bytes, so bytes that are no message are answered like any other bad request.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
import grpc.aio
from roost.proto.pool import SERVICE_NAME
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_calls import Calls, Handlers
from roost.server.grpc_errors import log_ended_calls_quietly
from roost.server.grpc_extensions import ExtensionCalls
from roost.server.grpc_health import HEALTH_SERVICE_NAME, HealthService
from roost.server.grpc_inference import InferenceCalls, RepositoryCalls
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_receive import ReceiveGate, StreamGate
from roost.server.grpc_reflection import REFLECTION_SERVICE_NAME, ReflectionService
from roost.server.grpc_stream import StreamCalls
from roost.server.transport_options import TransportOptions

# What clients of MLServer call; its messages are Triton's without the parameters.
MODEL_REPOSITORY_SERVICE_NAME: Final = "inference.model_repository.ModelRepositoryService"

# Calls that ask about models must not wait behind large messages, nor a reflection stream that idles hold them up.
_CONTROL_RECEIVES: Final = 4
_REFLECTION_RECEIVES: Final = 4
_INFLATE_THREADS: Final = 2


class GrpcServer:
    """A gRPC server that is built, then bound, then started, then stopped.

    Args:
        server: The grpc.aio server with its handlers.
        streams: The streams of requests, which would hold it up when it stops.
        closing: Set when it stops.
        executor: Threads that end with it.
    """

    def __init__(
        self, server: grpc.aio.Server, streams: StreamCalls, closing: asyncio.Event, executor: ThreadPoolExecutor
    ) -> None:
        self.server = server
        self._streams = streams
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
        """Takes no further calls, waits for those in flight up to ``grace_s``, then cancels the others.

        Streams receive no further requests; those they have received are in flight.
        """
        self._closing.set()
        self._streams.drain()
        await self.server.stop(grace_s)
        self._executor.shutdown(wait=False)


def build_grpc_server(data_plane: DataPlane, limits: GrpcLimits, options: TransportOptions | None = None) -> GrpcServer:
    """Builds the server with all its services, neither bound nor started.

    Args:
        data_plane: What answers.
        limits: Limits and transport settings.
        options: What the operator chose besides.
    """
    log_ended_calls_quietly()
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
    calls = Calls(data_plane, options or TransportOptions())
    large, control = gate(limits.max_concurrent_receives), gate(_CONTROL_RECEIVES)
    stream_gate = StreamGate(
        slots=limits.max_concurrent_receives,
        max_message_bytes=limits.max_message_bytes,
        silence_s=limits.stream_silence_s,
        executor=executor,
    )
    streams = StreamCalls(data_plane, calls, stream_gate, limits)
    repository = RepositoryCalls(data_plane, calls, large, control).handlers()
    inference = (
        InferenceCalls(data_plane, calls, large, control).handlers()
        | streams.handlers()
        | repository
        | ExtensionCalls(data_plane, calls, control).handlers()
    )
    described = (SERVICE_NAME, HEALTH_SERVICE_NAME, REFLECTION_SERVICE_NAME)
    _register(server, SERVICE_NAME, inference)
    _register(server, MODEL_REPOSITORY_SERVICE_NAME, repository)
    _register(server, HEALTH_SERVICE_NAME, HealthService(data_plane, calls, closing, limits.health_poll_s).handlers())
    _register(server, REFLECTION_SERVICE_NAME, ReflectionService(described, gate(_REFLECTION_RECEIVES)).handlers())
    return GrpcServer(server, streams, closing, executor)


def _register(server: grpc.aio.Server, service_name: str, handlers: Handlers) -> None:
    # grpc.aio ignores registered handlers so far, faster transports do not accelerate generic ones: give both.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, handlers),))
    server.add_registered_method_handlers(service_name, handlers)

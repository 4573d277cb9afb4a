"""The native gRPC transport: HTTP/2 and gRPC in this process's event loop, for what grpc.aio takes too long for.

It answers the same methods with the same handlers and has the same limits; inference that needs nothing but its run
goes the lean way, see ``grpc_lean``.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Mapping
from typing import Any, Final

import grpc
from roost.core.errors import RoostError
from roost.proto.pool import SERVICE_NAME
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_calls import Calls
from roost.server.grpc_head import CallHead
from roost.server.grpc_lean import METHOD, Gatherings, LeanHead, LeanInfer
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_native_connection import GrpcConnection
from roost.server.grpc_plain import InferCodec
from roost.server.http2.shared import Shared

_INFER_PATH: Final = f"/{SERVICE_NAME}/{METHOD}"
_BACKLOG: Final = 1024


class NativeService:
    """What the connections of a server have in common.

    Args:
        data_plane: What answers.
        calls: Who may call.
        handlers: The methods by path.
        limits: Limits and transport settings.
        codec: Reads and writes messages of inference.
        compat_triton: Whether errors have Triton's statuses.

    Attributes:
        shared: What is theirs together.
        connections: Those that are open.
        is_draining: Whether they are to end, as are those that still come.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        calls: Calls,
        handlers: Mapping[str, grpc.RpcMethodHandler],
        limits: GrpcLimits,
        codec: InferCodec,
        compat_triton: bool,
    ) -> None:
        self.data_plane = data_plane
        self.handlers = handlers
        self.limits = limits
        self.codec = codec
        self.compat_triton = compat_triton
        self.shared = Shared()
        self.connections: set[GrpcConnection] = set()
        self.is_draining = False
        self.lean = LeanInfer(data_plane, codec, limits.max_message_bytes)
        self.gatherings = Gatherings(limits.max_concurrent_receives + limits.max_waiting_receives)
        self._calls = calls
        self._check = calls.guard("inference")
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()

    def prepare(self, head: CallHead) -> None:
        """Works out what inference wants of the headers of a call, if it may go the lean way."""
        if head.path != _INFER_PATH or head.http_status or head.is_malformed or head.is_too_large:
            return
        context = _HeadersAlone(head)
        try:
            if self._check is not None:
                self._check(context)
        except RoostError:
            return  # an ordinary call says so
        head.extra = LeanHead(head, self._calls.forwarded(context))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs the handler of a call, which ends with the server at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def on_closed(self, connection: GrpcConnection) -> None:
        """A connection is no more."""
        self.connections.discard(connection)
        if not self.connections:
            self._closed.set()

    async def drain(self, grace_s: float | None) -> None:
        """Ends all connections, gracefully for as long as they may take."""
        self.is_draining = True
        for connection in list(self.connections):
            connection.drain()
        try:
            async with asyncio.timeout(grace_s or 0):
                while self.connections:
                    self._closed.clear()
                    await self._closed.wait()
        except TimeoutError:
            pass
        for connection in list(self.connections):
            connection.abort()
        while self._tasks:
            await asyncio.wait(self._tasks)


class _HeadersAlone:
    """What restrictions and forwarding look at."""

    def __init__(self, head: CallHead) -> None:
        self._head = head

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._head.metadata


class NativeTransport:
    """Opens a port for a service. Implements ``grpc_server.Transport``.

    Args:
        service: Answers.
    """

    def __init__(self, service: NativeService) -> None:
        self.service = service
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None

    def bind(self, host: str, port: int) -> int:
        """See ``grpc_server.Transport``."""
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        return int(listener.getsockname()[1])

    async def start(self) -> None:
        """See ``grpc_server.Transport``."""
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        self._server = await loop.create_server(
            lambda: GrpcConnection(self.service), sock=self._listener, backlog=_BACKLOG
        )

    async def stop(self, grace_s: float | None) -> None:
        """See ``grpc_server.Transport``."""
        if self._server is not None:
            self._server.close()
        elif self._listener is not None:
            self._listener.close()
        await self.service.drain(grace_s)

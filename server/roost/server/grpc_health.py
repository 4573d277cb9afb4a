"""The standard health service over gRPC: the server's readiness, whichever service a client asks for, as in Triton."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2
from roost.server.data_plane_protocol import DataPlane

HEALTH_SERVICE_NAME: Final = "grpc.health.v1.Health"

_SERVING: Final[bytes] = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVING
).SerializeToString()
_NOT_SERVING: Final[bytes] = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.NOT_SERVING
).SerializeToString()


class HealthService:
    """Answers health checks; since the service asked for makes no difference, their messages are not even read.

    Args:
        data_plane: Whose readiness is reported.
        closing: Set when the server stops; ends the watches, which would hold it up for the whole grace period.
        poll_s: How often a watch looks at the state.
    """

    def __init__(self, data_plane: DataPlane, closing: asyncio.Event, poll_s: float) -> None:
        self._data_plane = data_plane
        self._closing = closing
        self._poll_s = poll_s

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """The service's methods by name, without serializers."""
        return {
            "Check": grpc.stream_unary_rpc_method_handler(self._check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }

    async def _check(self, _messages: Any, _context: Any) -> bytes:
        return self._status()

    async def _watch(self, _messages: Any, context: Any) -> None:
        """Sends the state and each change of it, until the client goes (then it is cancelled) or the server stops."""
        sent = b""
        while not self._closing.is_set():
            status = self._status()
            if status != sent:
                await context.write(status)
                sent = status
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._closing.wait()
            except TimeoutError:
                continue
        if sent != _NOT_SERVING:
            await context.write(_NOT_SERVING)

    def _status(self) -> bytes:
        return _SERVING if self._data_plane.server_ready() else _NOT_SERVING

"""The standard health service over gRPC: the server's readiness, whichever service a client asks for, as in Triton."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2
from roost.core.errors import RoostError
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_calls import Calls, Handlers
from roost.server.grpc_errors import as_value

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
        calls: Who may ask, and how failures leave.
        closing: Set when the server stops; ends the watches, which would hold it up for the whole grace period.
        poll_s: How often a watch looks at the state.
    """

    def __init__(self, data_plane: DataPlane, calls: Calls, closing: asyncio.Event, poll_s: float) -> None:
        self._data_plane = data_plane
        self._calls = calls
        self._check = calls.guard("health")
        self._closing = closing
        self._poll_s = poll_s

    def handlers(self) -> Handlers:
        """The service's methods by name, without serializers."""
        return {
            "Check": self._calls.unread("Check", "health", self._status),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }

    async def _watch(self, _messages: Any, context: Any) -> None:
        """Sends the state and each change of it, until the client goes (then it is cancelled) or the server stops."""
        try:
            if self._check is not None:
                self._check(context)
        except RoostError as error:
            refusal = as_value(error)
        else:
            await self._send_changes(context)
            return
        await self._calls.abort(context, refusal, "Watch")

    async def _send_changes(self, context: Any) -> None:
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

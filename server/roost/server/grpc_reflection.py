"""Reflection over gRPC, so that generic clients can list and call what is served without ``.proto`` files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection_aio
from roost.core.errors import RoostError
from roost.proto.pool import POOL
from roost.server.grpc_codec import parse_message
from roost.server.grpc_errors import abort, as_value
from roost.server.grpc_receive import ReceiveGate
from roost.server.unexpected import unexpected

REFLECTION_SERVICE_NAME: Final = "grpc.reflection.v1alpha.ServerReflection"


class ReflectionService:
    """Describes the services of the private descriptor pool.

    Args:
        service_names: Full names of the services to list.
        gate: Where questions are received; an open stream that asks nothing holds one of its slots.
    """

    def __init__(self, service_names: Iterable[str], gate: ReceiveGate) -> None:
        self._servicer = reflection_aio.ReflectionServicer(service_names, pool=POOL)
        self._gate = gate

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """The service's methods by name, without serializers."""
        return {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self._answer)}

    async def _answer(self, _messages: Any, context: Any) -> None:
        failure = await self._answer_all(context)
        if failure is not None:
            await abort(context, failure)

    async def _answer_all(self, context: Any) -> RoostError | None:
        try:
            async for answer in self._servicer.ServerReflectionInfo(self._questions(context), context):
                await context.write(answer.SerializeToString())
        except RoostError as error:
            return as_value(error)
        except Exception as error:  # the boundary of the request
            return unexpected(error, "ServerReflectionInfo")
        return None

    async def _questions(self, context: Any) -> AsyncIterator[Any]:
        while (raw := await self._gate.receive(context)) is not None:
            yield parse_message(reflection_pb2.ServerReflectionRequest, bytes(raw))

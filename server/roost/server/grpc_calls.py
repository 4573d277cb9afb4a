"""What the gRPC methods have in common: who may call, how a message is received and charged, how failures leave."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from roost.core.errors import InvalidArgument, RoostError, limit_of
from roost.core.tensors import Buffer
from roost.server.data_plane_protocol import DataPlane
from roost.server.forwarding import forwarded
from roost.server.grpc_errors import abort, as_value, status_of
from roost.server.grpc_receive import ReceiveGate
from roost.server.transport_options import TransportOptions
from roost.server.unexpected import unexpected

Call: TypeAlias = Callable[[bytes, Any, float], Awaitable[bytes]]
Parts: TypeAlias = Sequence[Buffer]
LargeCall: TypeAlias = Callable[[Buffer, Any, float], Awaitable[Parts]]
Guard: TypeAlias = Callable[[Any], None]
Handlers: TypeAlias = dict[str, grpc.RpcMethodHandler]

_RESTRICTED_PREFIX: Final = "triton-grpc-protocol-"


class Calls:
    """Makes handlers of methods, without serializers.

    Args:
        data_plane: Whose byte budget messages are taken from.
        options: What the operator chose.
    """

    def __init__(self, data_plane: DataPlane, options: TransportOptions) -> None:
        self._data_plane = data_plane
        self._options = options

    def received(self, name: str, group: str, call: Call, gate: ReceiveGate) -> grpc.RpcMethodHandler:
        """Makes a handler that receives its message through a gate.

        Args:
            name: The method.
            group: The group of calls that it belongs to, for restrictions.
            call: Answers; gets the message, the call's context and when it arrived.
            gate: Receives the message.
        """

        async def answer(raw: Buffer, context: Any, arrived: float) -> Parts:
            return (await call(bytes(raw), context, arrived),)

        return self.received_large(name, group, answer, gate)

    def received_large(self, name: str, group: str, call: LargeCall, gate: ReceiveGate) -> grpc.RpcMethodHandler:
        """The same for messages that are not copied: where they lie in memory, and answers in parts."""

        async def answer(context: Any) -> Parts:
            arrived = time.monotonic()
            return await call(await self._receive(context, gate), context, arrived)

        return self._handler(name, group, answer)

    def unread(self, name: str, group: str, call: Callable[[], bytes]) -> grpc.RpcMethodHandler:
        """Makes a handler for a request without content: it isn't received, so no flood or slow sender delays it."""

        async def answer(_context: Any) -> Parts:
            return (call(),)

        return self._handler(name, group, answer)

    def _handler(self, name: str, group: str, answer: Callable[[Any], Awaitable[Parts]]) -> grpc.RpcMethodHandler:
        check = self.guard(group)

        async def handle(_messages: Any, context: Any) -> Parts:
            try:
                if check is not None:
                    check(context)
                return await answer(context)
            except RoostError as error:
                failure = as_value(error)
            except Exception as error:  # the boundary of the request
                failure = unexpected(error, name)
            await self.abort(context, failure, name)

        return grpc.stream_unary_rpc_method_handler(handle, response_serializer=b"".join)

    def guard(self, group: str) -> Guard | None:
        """What calls of a group must pass before anything of them is read; None if everybody may make them."""
        restrictions = self._options.restrictions
        if group not in restrictions.rules:
            return None
        return lambda context: restrictions.check(group, partial(header_of, context), _RESTRICTED_PREFIX)

    def forwarded(self, context: Any) -> dict[str, str] | None:
        """The headers of a call that models get; None if there are none."""
        pattern = self._options.forward_headers
        if pattern is None:
            return None
        items = ((name, value) for name, value in context.invocation_metadata() if isinstance(value, str))
        return forwarded(pattern, items)

    async def abort(self, context: Any, error: RoostError, name: str) -> NoReturn:
        """Ends a call of a method with the status of an error; see ``grpc_errors.abort``."""
        await abort(context, error, status_of(error, name, self._options.compat_triton))

    async def _receive(self, context: Any, gate: ReceiveGate) -> Buffer:
        try:
            raw = await gate.receive(context)
            if raw is None:
                raise InvalidArgument("the call ended without a message")
            self._take_bytes(len(raw), context)
        except RoostError as error:
            self._data_plane.refused(limit_of(error))
            raise
        return raw

    def _take_bytes(self, size_bytes: int, context: Any) -> None:
        """Takes a message from the byte budget until its call is done, response sent."""
        bodies = self._data_plane.bodies
        bodies.acquire(size_bytes)
        context.add_done_callback(lambda _: bodies.release(size_bytes))


def header_of(context: Any, name: str) -> str | None:
    """A text header of a call; None if it isn't there."""
    for key, value in context.invocation_metadata():
        if key == name:
            return str(value)
    return None

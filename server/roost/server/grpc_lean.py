"""The lean path of ModelInfer: a request that came whole goes from its bytes to its model without a task.

What needs more than a run of a model that is there is opened as an ordinary call, and starts anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from roost.core.errors import RoostError, limit_of
from roost.core.requests import InferResponse, Ticket
from roost.core.tensors import Buffer
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_errors import as_value
from roost.server.grpc_frames import PREFIX_BYTES
from roost.server.grpc_head import CallHead, find
from roost.server.grpc_plain import InferCodec
from roost.server.http2 import frames
from roost.server.http2.streams import IncomingStream, Stream, keep_piece
from roost.server.unexpected import unexpected

if TYPE_CHECKING:
    from roost.server.grpc_native_connection import GrpcConnection

METHOD: Final = "ModelInfer"
_MAX_GATHERED_BYTES: Final = frames.DEFAULT_WINDOW - PREFIX_BYTES
_GATHERING_S: Final = 0.25


class LeanHead:
    """What the headers of a call say to inference.

    Attributes:
        traceparent: Its trace context.
        forwarded: The headers that the model gets.
    """

    __slots__ = ("forwarded", "traceparent")

    def __init__(self, head: CallHead, forwarded: Mapping[str, str] | None) -> None:
        self.traceparent = find(head.metadata, "traceparent") or ""
        self.forwarded = forwarded


class LeanCall(Stream):
    """A request in the data plane, whose message stays charged until its answer is sent."""

    __slots__ = ("_connection", "_deadline", "_response", "_size_bytes", "ticket")

    def __init__(self, connection: GrpcConnection, stream_id: int, size_bytes: int, deadline: float | None) -> None:
        self.stream_id = stream_id
        self.granted_bytes = 0
        self.ticket: Ticket | None = None
        self._connection = connection
        self._size_bytes = size_bytes
        self._deadline = deadline
        self._response: InferResponse | None = None

    def done(self, outcome: InferResponse | RoostError) -> None:
        """Takes the outcome, once."""
        self.ticket = None
        connection = self._connection
        try:
            if isinstance(outcome, RoostError):
                self.fail(outcome)
                return
            parts, size_bytes = connection.service.codec.encode_parts(outcome)
            self._response = outcome  # its memory stays charged until it was sent
            connection.respond(self, parts, size_bytes, True, self.over)
        except RoostError as error:
            self.fail(as_value(error))
        except Exception as error:  # the boundary of the request
            self.fail(unexpected(error, METHOD))

    def fail(self, error: RoostError) -> None:
        """Ends the call with an error."""
        self._connection.fail_call(self, error, METHOD, self._deadline)
        self.over()

    def on_reset(self) -> None:
        """Nobody waits for the answer any more."""
        if self.ticket is not None:
            self.ticket.cancel()
            self.ticket = None
        self.over()

    def over(self) -> None:
        """The answer was sent, or there is nobody to send it to."""
        if self._size_bytes >= 0:
            self._connection.service.data_plane.bodies.release(self._size_bytes)
            self._size_bytes = -1
            self._response = None
            self._connection.forget(self)


class Gathering(IncomingStream):
    """A request that comes in several pieces, none of them asked for.

    Args:
        connection: Where it comes.
        stream_id: Its number there.
        head: Its headers.
        on_end: Called when it is over, in whichever way.
    """

    __slots__ = ("_connection", "_head", "_on_end", "_pieces", "_size_bytes", "began")

    def __init__(
        self, connection: GrpcConnection, stream_id: int, head: CallHead, on_end: Callable[[Gathering], None]
    ) -> None:
        super().__init__(stream_id)
        self.began = connection.heard
        self._connection = connection
        self._head = head
        self._on_end = on_end
        self._pieces: list[Buffer] = []
        self._size_bytes = 0

    def on_data(self, piece: Buffer, counted_bytes: int, is_last: bool) -> None:
        """See ``IncomingStream``."""
        keep_piece(self._pieces, piece)
        self._size_bytes += counted_bytes
        if is_last and self._size_bytes <= frames.DEFAULT_WINDOW:
            data = b"".join(self._pieces)
            self._on_end(self)
            del self._connection.streams[self.stream_id]
            lean, granted_bytes = self._connection.service.lean, self.granted_bytes
            if lean.take(self._connection, self.stream_id, self._head, data, self.began):
                call = self._connection.streams.get(self.stream_id)
                if call is not None:
                    call.granted_bytes += granted_bytes
                return
        if is_last or self._size_bytes >= frames.DEFAULT_WINDOW or self._is_large():
            self.open(is_last)

    def open(self, is_complete: bool = False) -> None:
        """Makes it an ordinary call."""
        self._on_end(self)
        call = self._connection.open_call(self.stream_id, self._head, False)
        call.granted_bytes = self.granted_bytes
        self._connection.streams[self.stream_id] = call
        counted_bytes = self._size_bytes  # padding too
        for index, piece in enumerate(self._pieces, 1):
            call.on_data(piece, counted_bytes, is_complete and index == len(self._pieces))
            counted_bytes = 0

    def on_reset(self) -> None:
        """See ``IncomingStream``."""
        self._on_end(self)

    def _is_large(self) -> bool:
        first = self._pieces[0]
        return len(first) >= PREFIX_BYTES and int.from_bytes(first[1:PREFIX_BYTES], "big") > _MAX_GATHERED_BYTES


class Gatherings:
    """The requests that come in pieces: bounded in number, and none of them for long before it is an ordinary call.

    Args:
        max_count: How many there may be.
    """

    def __init__(self, max_count: int) -> None:
        self._max_count = max_count
        self._open: dict[Gathering, None] = {}  # in the order in which they began, so that one timer serves all
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: GrpcConnection, stream_id: int, head: CallHead) -> Gathering | None:
        """Begins with one; None if there are too many."""
        if len(self._open) >= self._max_count:
            return None
        gathering = Gathering(connection, stream_id, head, self._end)
        self._open[gathering] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHERING_S, self._expire)
        return gathering

    def _end(self, gathering: Gathering) -> None:
        self._open.pop(gathering, None)

    def _expire(self) -> None:
        self._timer = None
        oldest = time.monotonic() - _GATHERING_S
        for gathering in list(self._open):
            if gathering.began > oldest:
                wait_s = gathering.began - oldest
                self._timer = asyncio.get_running_loop().call_later(wait_s, self._expire)
                return
            gathering.open()


class LeanInfer:
    """Takes whole requests.

    Args:
        data_plane: Answers them.
        codec: Reads and writes their messages.
        max_message_bytes: Larger ones are refused.
    """

    def __init__(self, data_plane: DataPlane, codec: InferCodec, max_message_bytes: int) -> None:
        self.data_plane = data_plane
        self.codec = codec
        self._max_message_bytes = max_message_bytes

    def take(self, connection: GrpcConnection, stream_id: int, head: CallHead, data: bytes, received: float) -> bool:
        """Takes a request whose first byte came at some time; False if it needs an ordinary call."""
        size_bytes = len(data) - PREFIX_BYTES
        if data[:1] != b"\0" or int.from_bytes(data[1:5], "big") != size_bytes or size_bytes > self._max_message_bytes:
            return False
        extra: LeanHead = head.extra
        plane = self.data_plane
        timeout_s = plane.request_timeout_s
        deadline = None
        if head.timeout_s is not None:
            deadline = received + head.timeout_s
            timeout_s = min(timeout_s, head.timeout_s)
        call = LeanCall(connection, stream_id, size_bytes, deadline)
        try:
            plane.bodies.acquire(size_bytes)
        except RoostError as error:
            plane.refused(limit_of(error))
            connection.fail_call(call, as_value(error), METHOD, deadline)
            return True
        try:
            request = self.codec.decode_infer(
                data[PREFIX_BYTES:],
                received,
                timeout_s,
                caller=connection.peer,
                traceparent=extra.traceparent,
                headers=extra.forwarded,
            )
            ticket = plane.begin(request, call.done)
        except RoostError as error:
            call.fail(as_value(error))
            return True
        except Exception as error:  # the boundary of the request
            call.fail(unexpected(error, METHOD))
            return True
        if ticket is None:
            plane.bodies.release(size_bytes)
            return False
        call.ticket = ticket
        if connection.fresh_grants:
            call.granted_bytes = connection.fresh_grants.pop(stream_id, 0)
        connection.streams[stream_id] = call
        return True

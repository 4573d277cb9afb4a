"""One call of the native gRPC transport, with what handlers use of ``grpc.aio.ServicerContext``.

So the methods are the same ones as on grpc.aio. Messages beyond the first 64 KiB of a call are asked for when the
handler reads, which it does when there is room.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import grpc.aio
import numpy as np
from roost.core.errors import Limit
from roost.core.tensors import Buffer
from roost.server import grpc_frames
from roost.server.grpc_head import CallHead
from roost.server.http2 import frames
from roost.server.http2.frames import ErrorCode
from roost.server.http2.streams import FillingStream, keep_piece
from roost.server.unexpected import unexpected

if TYPE_CHECKING:
    from roost.server.grpc_native_connection import GrpcConnection

_PACKED: Final = ("gzip", "deflate")
_PATIENCE_S: Final = 0.01
_ALL_TAKEN: Final = -2  # instead of the bytes that a message misses: no further message is taken


class Call(FillingStream):
    """A call whose handler runs in a task.

    Args:
        connection: Where it came.
        stream_id: Its number there.
        head: Its headers.
        handler: Answers it.
        is_complete: Whether the client sends no message.
    """

    __slots__ = (
        "_answering", "_callbacks", "_connection", "_credit_bytes", "_deadline", "_ending", "_handler", "_has_begun",
        "_head", "_is_complete", "_is_over", "_messages", "_missing_bytes", "_pieces", "_prefix", "_reader", "_task",
        "_timer", "_whole",
    )  # fmt: skip

    def __init__(
        self,
        connection: GrpcConnection,
        stream_id: int,
        head: CallHead,
        handler: grpc.RpcMethodHandler,
        is_complete: bool,
    ) -> None:
        super().__init__(stream_id)
        self._connection = connection
        self._head = head
        self._handler = handler
        self._is_complete = is_complete
        self._is_over = False
        self._has_begun = False  # the response
        self._answering = True  # the handler
        self._ending: tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]] | None = None
        self._messages: deque[Buffer] = deque()
        self._prefix = b""
        self._pieces: list[Buffer] = []
        self._whole: memoryview | None = None  # where a message goes that was asked for
        self._missing_bytes = -1  # of the message that comes; -1 while its prefix is not complete
        self._credit_bytes = frames.DEFAULT_WINDOW  # what the client may send
        self._reader: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._deadline = None if head.timeout_s is None else connection.heard + head.timeout_s
        self._timer: asyncio.TimerHandle | None = None
        if head.timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(head.timeout_s, self._expire)
        self._task = connection.spawn(self._answer())

    # -- what handlers use ------------------------------------------------------------------------------------------

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What the client sent along."""
        return self._head.metadata

    def peer(self) -> str:
        """Who calls, in gRPC's notation."""
        return self._connection.peer

    def time_remaining(self) -> float | None:
        """Seconds until the call's own deadline; None if it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Has something called when the call is over and its handler has ended."""
        self._callbacks.append(callback)

    async def read(self) -> Any:
        """The next message, packed if the client has packed it; ``grpc.aio.EOF`` when it has sent all.

        One that is larger than what clients send unasked is a view on memory of its own.
        """
        while not self._messages:
            if self._is_complete or self._is_over:
                return grpc.aio.EOF
            self._ask()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._messages.popleft()

    async def write(self, message: bytes) -> None:
        """Sends a message; returns when it was handed to the socket, as fast as the client reads."""
        if self._is_over:
            raise grpc.aio.UsageError("the call is over")
        sent = asyncio.Event()
        pieces = (grpc_frames.prefix(len(message)), message)
        self._connection.output.send(self, self._begin(), pieces, b"", sent.set)
        await sent.wait()

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, str], ...] = ()
    ) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """
        self._end(code, details, trailing_metadata)
        raise grpc.aio.AbortError("aborted")

    # -- what the connection brings ---------------------------------------------------------------------------------

    def on_data(self, piece: Buffer, counted_bytes: int, is_last: bool) -> None:
        """See ``FillingStream``."""
        if self._is_over:
            return
        if self._ending is not None:
            if is_last:
                self._is_complete = True
                self._send_ending()
            return
        self._credit_bytes -= counted_bytes
        if self._credit_bytes < 0 or self._is_complete:
            code = ErrorCode.STREAM_CLOSED if self._is_complete else ErrorCode.FLOW_CONTROL_ERROR
            self._connection.reset(self, code)
            return
        if self._whole is not None and not is_last and counted_bytes == len(piece) < self._missing_bytes:
            self._fill(self._whole, piece)
            return
        self._take(memoryview(piece))
        if is_last:
            self._is_complete = True
            if self._prefix:
                self._end(grpc.StatusCode.INTERNAL, "the call ended in the middle of a message")
        if self._reader is not None and not self._reader.done():
            if self._messages or is_last:
                self._reader.set_result(None)
            else:
                self._ask()

    def on_frames(self, data: memoryview, at: int, length: int, count: int) -> int:
        """See ``FillingStream``."""
        count = min(count, (self._missing_bytes - 1) // length, self._credit_bytes // length)
        if self._whole is None or not count:
            return 0
        size_bytes = length * count
        stride = frames.HEAD_BYTES + length
        sent = np.frombuffer(data, np.uint8, stride * count, at).reshape(count, stride)
        place = np.frombuffer(self._whole, np.uint8, size_bytes, len(self._whole) - self._missing_bytes)
        place.reshape(count, length)[:] = sent[:, frames.HEAD_BYTES :]
        self._missing_bytes -= size_bytes
        self._credit_bytes -= size_bytes
        return count

    def on_reset(self) -> None:
        """See ``FillingStream``."""
        self._is_complete = True
        self._over()

    def _take(self, piece: memoryview) -> None:
        """Takes messages out of data, which may have many of them or little of one."""
        while len(piece) and self._missing_bytes != _ALL_TAKEN and self._ending is None and not self._is_over:
            piece = self._take_message(piece) if self._missing_bytes >= 0 else self._take_prefix(piece)

    def _take_prefix(self, piece: memoryview) -> memoryview:
        wanted = grpc_frames.PREFIX_BYTES - len(self._prefix)
        self._prefix += bytes(piece[:wanted])
        if len(self._prefix) == grpc_frames.PREFIX_BYTES:
            self._missing_bytes = int.from_bytes(self._prefix[1:], "big")
            self._check_prefix()
            if not self._missing_bytes:
                self._take_message(memoryview(b""))
        return piece[wanted:]

    def _check_prefix(self) -> None:
        max_bytes = self._connection.max_message_bytes
        if self._missing_bytes > max_bytes:
            self._connection.refused(Limit.TOO_LARGE)
            text = f"SERVER: Received message larger than max ({self._missing_bytes} vs. {max_bytes})"
            self._end(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        elif self._prefix[0] == 1 and self._head.encoding not in _PACKED:
            self._end(
                grpc.StatusCode.UNIMPLEMENTED, f"messages packed as {self._head.encoding!r:.40} are not supported"
            )
        elif self._prefix[0] > 1:
            self._end(grpc.StatusCode.INTERNAL, "a message has an unknown flag")

    def _take_message(self, piece: memoryview) -> memoryview:
        part = piece[: self._missing_bytes]
        if self._whole is not None:
            self._fill(self._whole, part)
        else:
            keep_piece(self._pieces, part)
            self._missing_bytes -= len(part)
        if not self._missing_bytes:
            self._messages.append(b"".join(self._pieces) if self._whole is None else self._whole)
            self._pieces.clear()
            self._drop_whole()
            self._prefix = b""
            # Others that come behind the message of a unary call would only take memory.
            self._missing_bytes = -1 if self._handler.response_streaming else _ALL_TAKEN
        return piece[len(part) :]

    def _fill(self, whole: memoryview, piece: Buffer) -> None:
        """Puts a part of a message where it belongs."""
        at = len(whole) - self._missing_bytes
        whole[at : at + len(piece)] = piece
        self._missing_bytes -= len(piece)

    def _ask(self) -> None:
        """Lets the client send the rest of the message that comes, or 64 KiB."""
        wanted = max(self._missing_bytes, frames.DEFAULT_WINDOW)
        if self._credit_bytes < min(wanted, frames.DEFAULT_WINDOW // 2) or self._credit_bytes < self._missing_bytes:
            self._connection.output.write(frames.window_update(self.stream_id, wanted - self._credit_bytes))
            self._credit_bytes = wanted
            if self._missing_bytes > frames.DEFAULT_WINDOW and self._whole is None:
                self._make_room()

    def _make_room(self) -> None:
        """Gets the memory of a large message, so that it needs no other; no page of it is touched before data comes."""
        begun = b"".join(self._pieces)
        try:
            self._whole = np.empty(len(begun) + self._missing_bytes, np.uint8).data
        except MemoryError:
            return  # a system that promises no more than it has: pieces take no more than what has come
        self._pieces.clear()
        self._whole[: len(begun)] = begun
        self._connection.filling[self.stream_id] = self

    def _drop_whole(self) -> None:
        if self._whole is not None:
            self._whole = None
            self._connection.filling.pop(self.stream_id, None)

    # -- answering --------------------------------------------------------------------------------------------------

    async def _answer(self) -> None:
        try:
            if self._handler.response_streaming:
                await self._handler.stream_stream(None, self)
                self._end(grpc.StatusCode.OK)
            else:
                self._respond(await self._handler.stream_unary(None, self))
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            self._end(grpc.StatusCode.CANCELLED, "the server has cancelled the call")
            raise
        except Exception as error:  # the boundary of the call; handlers answer what they foresee
            self._end(grpc.StatusCode.INTERNAL, unexpected(error, self._head.path).message)
        finally:
            self._answering = False
            if self._is_over:
                self._call_back()

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return grpc_frames.response_headers(self.stream_id)

    def _respond(self, parts: Sequence[Buffer]) -> None:
        if not self._is_over:
            size_bytes = sum(memoryview(part).nbytes for part in parts)
            self._connection.respond(self, parts, size_bytes, self._is_complete, self._over)
            self._has_begun = True

    def _end(self, code: grpc.StatusCode, details: str = "", metadata: tuple[tuple[str, str], ...] = ()) -> None:
        if self._is_over or self._ending is not None:
            return
        self._ending = (code, details, metadata)
        if self._is_complete or self._has_begun:
            self._send_ending()
        else:
            # Libraries take a status for a failure of their own if it is there before they have sent the request.
            asyncio.get_running_loop().call_later(_PATIENCE_S, self._send_ending)

    def _send_ending(self) -> None:
        if self._ending is not None and not self._is_over:
            self._connection.end(self, *self._ending, self._is_complete, is_first=not self._has_begun)
            self._over()

    def _expire(self) -> None:
        if self._has_begun:
            self._connection.reset(self, ErrorCode.CANCEL)
        else:
            self._end(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _over(self) -> None:
        """The call is over, whoever has ended it: all was sent, or nobody listens."""
        if self._is_over:
            return
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._messages.clear()
        self._pieces.clear()
        self._drop_whole()
        self._connection.forget(self)
        if not self._answering:
            self._call_back()
        elif asyncio.current_task() is not self._task:
            self._task.cancel()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

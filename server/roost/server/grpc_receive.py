"""Step 0 of the data path over gRPC: how many messages may come in at once, how large, and for how long.

grpc.aio calls the handler of a unary method only after it has received the whole message, too late to bound anything.
So every method is registered as one that takes a stream, which looks the same on the wire, and its handler reads the
one message itself, here, when there is room for it. Until then HTTP/2 flow control keeps all but the first 64 KiB of a
message with its sender.

Compressed messages are unpacked here too: gRPC's core would do it without any bound before it looks at the size.
"""

from __future__ import annotations

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc.aio
from roost.core.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from roost.core.units import format_bytes

# Unpacking more than this (it may grow a thousandfold) blocks the event loop for too long.
_INLINE_INFLATE_BYTES = 4096
_GZIP = b"\x1f\x8b\x08"
_ZLIB_FIRST = 0x78


@dataclass(eq=False, slots=True)
class _Arrival:
    """A call whose message is not there yet."""

    task: asyncio.Task[Any]
    expires: float
    is_expired: bool = False


class ReceiveGate:
    """Lets a bounded number of messages in at once; the others wait at their senders.

    While a message is received it may be in memory twice (the core's pieces and the whole), so calls take at most
    ``2 * slots * max_message_bytes`` here.

    Args:
        slots: How many calls may receive at once.
        max_waiting: How many more may wait; any further one is refused.
        max_message_bytes: Limit of an unpacked message.
        timeout_s: How long a call may take from its arrival until its message is there.
        executor: Where large compressed messages are unpacked.
    """

    def __init__(
        self, *, slots: int, max_waiting: int, max_message_bytes: int, timeout_s: float, executor: ThreadPoolExecutor
    ) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._max_pending = slots + max_waiting
        self._max_message_bytes = max_message_bytes
        self._timeout_s = timeout_s
        self._executor = executor
        # In the order of arrival, so also of expiry: one timer serves all, and an ordinary call never touches it.
        self._pending: dict[_Arrival, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self, context: Any) -> bytes | None:
        """Receives the next message of a call, unpacked; None when the client has sent all.

        Raises:
            ResourceExhausted: If too many calls wait already, or the message is too large once unpacked.
            DeadlineExceeded: If the message did not come in time.
            InvalidArgument: If it is compressed and damaged.
        """
        arrival = self._enter()
        try:
            async with self._slots:
                raw = await context.read()
                if raw is grpc.aio.EOF:
                    return None
                return await self._unpack(raw)
        except asyncio.CancelledError:
            if arrival.is_expired and arrival.task.uncancel() == 0:
                raise DeadlineExceeded(f"the message was not received within {self._timeout_s:g} s") from None
            raise
        finally:
            del self._pending[arrival]

    def _enter(self) -> _Arrival:
        if len(self._pending) >= self._max_pending:
            raise ResourceExhausted(f"{len(self._pending)} messages are being received already", retry_after_s=1.0)
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        arrival = _Arrival(task, loop.time() + self._timeout_s)
        self._pending[arrival] = None
        if self._timer is None:
            self._timer = loop.call_at(arrival.expires, self._expire)
        return arrival

    def _expire(self) -> None:
        """Ends the calls whose time is up, and sets the timer for the next one if there is any."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        for arrival in self._pending:
            if arrival.expires > now:
                self._timer = loop.call_at(arrival.expires, self._expire)
                return
            if not arrival.is_expired:
                arrival.is_expired = True
                arrival.task.cancel()

    async def _unpack(self, raw: bytes) -> bytes:
        if not _is_packed(raw):
            return raw
        if len(raw) <= _INLINE_INFLATE_BYTES:
            return inflate(raw, self._max_message_bytes)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, inflate, raw, self._max_message_bytes)


def _is_packed(raw: bytes) -> bool:
    """Whether a message is compressed.

    gRPC's flag for it does not reach handlers, but no message of ours starts like this: gzip's first byte is no
    protobuf tag at all, and zlib's is one of a field 15 that none of our requests has.
    """
    if raw[:3] == _GZIP:
        return True
    return len(raw) > 2 and raw[0] == _ZLIB_FIRST and int.from_bytes(raw[:2], "big") % 31 == 0


def inflate(raw: bytes, max_bytes: int) -> bytes:
    """Unpacks a gzip or deflate message, and no more of it than allowed.

    Raises:
        ResourceExhausted: If it has more than ``max_bytes``.
        InvalidArgument: If it is damaged.
    """
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        data = unpacker.decompress(raw, max_bytes)
        if not unpacker.eof and unpacker.decompress(unpacker.unconsumed_tail, 1):
            raise ResourceExhausted(f"the unpacked message is larger than the limit of {format_bytes(max_bytes)}")
    except zlib.error:
        raise InvalidArgument("the compressed message is damaged") from None
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidArgument("the compressed message is damaged")
    return data

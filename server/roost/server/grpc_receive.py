"""Step 0 of the data path over gRPC: how many messages may come in at once, how large, and for how long.

grpc.aio calls the handler of a unary method only after it has received the whole message, too late to bound anything.
So every method is registered as one that takes a stream, which looks the same on the wire, and its handler reads the
one message itself, here, when there is room for it. Until then HTTP/2 flow control keeps all but the first 64 KiB of a
message with its sender.

Compressed messages are unpacked here too: gRPC's core would do it without any bound before it looks at the size.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
from roost.core.errors import DeadlineExceeded, InvalidArgument, Limit, ResourceExhausted
from roost.core.tensors import Buffer
from roost.core.units import format_bytes

# Unpacking more than this (it may grow a thousandfold) blocks the event loop for too long.
_INLINE_INFLATE_BYTES = 4096
# Streams whose messages are all smaller than this wait for the next one without a slot: HTTP/2 lets every call have as
# much on the way anyway.
_SMALL_BYTES = 65_536
_GZIP = b"\x1f\x8b\x08"
_ZLIB_FIRST = b"\x78"


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
        # Tasks and when they began, in this order, so one timer serves all and an ordinary call never touches it.
        self._pending: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self, context: Any) -> Buffer | None:
        """Receives the next message of a call, unpacked; None when the client has sent all.

        Raises:
            ResourceExhausted: If too many calls wait already, or the message is too large once unpacked.
            DeadlineExceeded: If the message did not come in time.
            InvalidArgument: If it is compressed and damaged.
        """
        task = self._enter()
        try:
            await self._slots.acquire()
            try:
                raw = await context.read()
                if raw is grpc.aio.EOF:
                    return None
                return await unpack(raw, self._max_message_bytes, self._executor) if _is_packed(raw) else raw
            finally:
                self._slots.release()
        except asyncio.CancelledError:
            if task in self._expired and task.uncancel() == 0:
                text = f"the message was not received within {self._timeout_s:g} s"
                raise DeadlineExceeded(text, limit=Limit.RECEIVE_TIMEOUT) from None
            raise
        finally:
            del self._pending[task]
            if self._expired:
                self._expired.discard(task)

    def _enter(self) -> asyncio.Task[Any]:
        if len(self._pending) >= self._max_pending:
            text = f"{len(self._pending)} messages are being received already"
            raise ResourceExhausted(text, retry_after_s=1.0, limit=Limit.RECEIVES)
        task = asyncio.current_task()
        assert task is not None
        self._pending[task] = time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)
        return task

    def _expire(self) -> None:
        """Ends the calls whose time is up, and sets the timer for the next one if there is any."""
        self._timer = None
        oldest = time.monotonic() - self._timeout_s
        for task, began in self._pending.items():
            if began > oldest:
                self._timer = asyncio.get_running_loop().call_later(began - oldest, self._expire)
                return
            if task not in self._expired:
                self._expired.add(task)
                task.cancel()


class StreamGate:
    """Receives the messages of streams, which may also be silent for as long as they like.

    What waits for a message may get one of any size, so whoever waits should hold one of a few slots; but nobody can
    tell a silent client from a slow one, and silent streams must not keep others from sending. So a stream takes a
    slot for its first message, and again once a message was large, and gives it back when the message is there or
    did not come for a while. Clients that send what they have at once hold at most
    ``2 * slots * max_message_bytes`` here; those that wait, or are slower, are bounded by the number of streams alone.

    Args:
        slots: How many streams may wait at once for a message that may be large.
        max_message_bytes: Limit of an unpacked message.
        silence_s: How long a silent stream may keep a slot from others.
        executor: Where large compressed messages are unpacked.
    """

    def __init__(self, *, slots: int, max_message_bytes: int, silence_s: float, executor: ThreadPoolExecutor) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._silence_s = silence_s
        self._max_message_bytes = max_message_bytes
        self._executor = executor

    async def receive(self, context: Any, expected_bytes: int | None) -> Buffer | None:
        """Receives the next message of a call, unpacked; None when the client has sent all.

        Args:
            context: The call.
            expected_bytes: The size of its largest message so far; None if there was none.

        Raises:
            ResourceExhausted: If the message is too large once unpacked.
            InvalidArgument: If it is compressed and damaged.
        """
        if expected_bytes is not None and expected_bytes <= _SMALL_BYTES:
            raw = await context.read()
        else:
            await self._slots.acquire()
            slot = _Slot(self._slots, self._silence_s)
            try:
                raw = await context.read()
            finally:
                slot.give_back()
        if raw is grpc.aio.EOF:
            return None
        return await unpack(raw, self._max_message_bytes, self._executor) if _is_packed(raw) else raw


class _Slot:
    """One slot, held until it is given back or the time is over, whichever comes first."""

    def __init__(self, slots: asyncio.Semaphore, time_s: float) -> None:
        self._slots = slots
        self._timer = asyncio.get_running_loop().call_later(time_s, self.give_back)
        self._is_held = True

    def give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._timer.cancel()
            self._slots.release()


async def unpack(raw: Buffer, max_bytes: int, executor: ThreadPoolExecutor) -> bytes:
    """Unpacks a compressed message, in a thread unless it is small; see ``inflate``."""
    if len(raw) <= _INLINE_INFLATE_BYTES:
        return inflate(raw, max_bytes)
    return await asyncio.get_running_loop().run_in_executor(executor, inflate, raw, max_bytes)


def _is_packed(raw: Buffer) -> bool:
    """Whether a message is compressed.

    gRPC's flag for it does not reach handlers, but no message of ours starts like this: gzip's first byte is no
    protobuf tag at all, and zlib's is one of a field 15 that none of our requests has.
    """
    first = bytes(raw[:3])
    return first == _GZIP or (
        first[:1] == _ZLIB_FIRST and len(first) == 3 and int.from_bytes(first[:2], "big") % 31 == 0
    )


def inflate(raw: Buffer, max_bytes: int) -> bytes:
    """Unpacks a gzip or deflate message, and no more of it than allowed.

    Raises:
        ResourceExhausted: If it has more than ``max_bytes``.
        InvalidArgument: If it is damaged.
    """
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        data = unpacker.decompress(raw, max_bytes)
        if not unpacker.eof and unpacker.decompress(unpacker.unconsumed_tail, 1):
            text = f"the unpacked message is larger than the limit of {format_bytes(max_bytes)}"
            raise ResourceExhausted(text, limit=Limit.TOO_LARGE)
    except zlib.error:
        raise InvalidArgument("the compressed message is damaged") from None
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidArgument("the compressed message is damaged")
    return data

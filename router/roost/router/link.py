"""Step 7 of the data path, the router's end: frames to and from one worker over a Unix socket."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Any, Protocol, cast

from roost.core import frames
from roost.core.errors import Internal, ResourceExhausted, RoostError, Unavailable, error_of
from roost.core.frames import Credit, FrameError, FrameType, Header, Run, WireTensor
from roost.core.tensors import Buffer, Tensor
from roost.router.admission import AnswerMemory, ByteBudget
from roost.router.arena import Arena
from roost.router.places import ARENA_FROM_BYTES, Places

log = logging.getLogger(__name__)

READ_BUFFER_BYTES = 1 << 18
JOIN_BYTES = 32 << 10
"""Copying so little costs less than handing the pieces over one by one."""
PERIOD_S = 10.0
"""What of the arena was not in use for so long is given back to the system."""
_STEP_S = 0.005
HEARTBEAT_INTERVAL_S = 2.0
HEARTBEAT_TIMEOUT_S = 10.0


class LinkLost(Unavailable):
    """The worker went before it answered."""


class Link(Protocol):
    """What the mesh says to a worker."""

    def next_number(self) -> int:
        """A number for a new request, unique on this link."""

    @property
    def arena_bytes(self) -> int:
        """How much of the memory that is shared with the worker is in use."""

    def send_run(self, number: int, run: Run, outputs: Sequence[WireTensor] = ()) -> None:
        """Sends a run.

        Args:
            number: Its number.
            run: The run; an input's data may be several buffers, which lie one after the other.
            outputs: What it will answer, as far as shapes are known beforehand; their data count for nothing.
        """

    def has_started(self, number: int) -> bool:
        """Whether the worker had begun with a run, asked once it is lost."""

    def stage(self, size_bytes: int) -> memoryview | None:
        """Memory for a large input that needs no copy any more when it is sent over this link.

        It stays as long as anybody views it. None if there is none to spare, or the input is too small for it.
        """

    def send_cancel(self, number: int) -> None:
        """Tells the worker that nobody waits for a run or load any more."""

    def send_credit(self, number: int, credit: Credit) -> None:
        """Lets the stream of a run go on."""

    def send_answer(self, number: int, answer: Sequence[Tensor] | RoostError) -> None:
        """Answers a call of a model: the outputs of the one that it asked, or why there are none."""

    async def call(self, type_: FrameType, payload: dict[str, Any], *, number: int | None = None) -> dict[str, Any]:
        """Sends a control request and waits for its answer; cancelling it tells the worker so.

        Args:
            type_: What is asked for.
            payload: The fields of the request.
            number: A number from ``next_number``, for whoever wants to cancel it and wait for the answer all the same.

        Raises:
            RoostError: What the worker answered.
            LinkLost: If there is no worker any more to answer.
        """

    async def hung(self) -> None:
        """Returns when the worker has answered nothing for some time although it was asked."""

    def abort(self) -> None:
        """Closes the link at once, which ends the worker."""


class LinkListener(Protocol):
    """Who is told what a worker says. Calls come on the event loop and must not raise."""

    answers: ByteBudget  # what large answers are charged to

    def on_hello(self, hello: dict[str, Any]) -> None:
        """The worker is up."""

    def on_response(self, run: int, response: frames.Response) -> None:
        """A run has answered; the tensors are views on memory that is theirs alone."""

    def on_run_error(self, run: int, error: Exception) -> None:
        """A run has failed."""

    def on_response_refused(self, run: int, error: RoostError) -> None:
        """There was no memory for a response of a stream, which goes on."""

    def on_call(self, number: int, call: frames.Call | None) -> None:
        """A model asks another one; None: it does not wait for the answer any more."""

    def on_lost(self, link: Link) -> None:
        """The worker is gone, or talks nonsense; called once."""


class WorkerLink(asyncio.BufferedProtocol):
    """The router's end of the link to one worker.

    Small frames are read many at a time into one buffer and copied out; a large payload is read straight into
    memory of its own, so that its tensors are never copied again. Large tensors of known size are no part of a frame:
    they lie in the arena.

    Args:
        listener: Who is told what the worker says.
        arena: The memory that it shares with the router.
    """

    def __init__(self, listener: LinkListener, arena: Arena) -> None:
        self._listener = listener
        self._arena = arena
        self._places = Places(arena)
        self._tidier: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self._filled = 0
        self._header: Header | None = None  # of the large payload that is being read
        self._payload: bytearray | None = None  # None while one is read that there is no memory for
        self._payload_filled = 0
        self._refusal: RoostError | None = None
        self._reads = 0

    def next_number(self) -> int:
        """A number for a new request, unique on this link."""
        return next(self._numbers)

    @property
    def arena_bytes(self) -> int:
        """How much of the memory that is shared with the worker is in use."""
        return self._arena.used_bytes

    def send_run(self, number: int, run: Run, outputs: Sequence[WireTensor] = ()) -> None:
        """Sends a run; nothing happens if the worker is gone, as ``on_lost`` reports all that was under way.

        One that no frame can be made of fails like any other, a moment later.
        What is inline and large is not copied: it has to stay as it is until the run has ended.
        """
        if self._transport is None or self._transport.is_closing():
            return
        try:
            if self._arena.size_bytes:
                run = self._places.lay_out(number, run, outputs)
                if self._tidier is None and self._arena.cooling:
                    self._tidy_later(PERIOD_S)
            frame = frames.run_frame(number, run)
        except Exception:
            log.exception("a run could not be put into a frame")
            failure = Internal("the request could not be handed to a worker, see the server's log")
            asyncio.get_running_loop().call_soon(self._on_error, number, failure)
            return
        self._write(frame)

    def has_started(self, number: int) -> bool:
        """Whether the worker had begun with a run, asked once it is lost."""
        return self._arena.has_begun(number)

    def stage(self, size_bytes: int) -> memoryview | None:
        """Memory for a large input that needs no copy any more when it is sent over this link; see ``Link``."""
        if size_bytes < ARENA_FROM_BYTES or self._transport is None or self._transport.is_closing():
            return None
        return self._arena.stage(size_bytes)

    def send_cancel(self, number: int) -> None:
        """Tells the worker that nobody waits for a run or load any more."""
        self._write([frames.control_frame(FrameType.CANCEL, number)])

    def send_credit(self, number: int, credit: Credit) -> None:
        """Lets the stream of a run go on; one that has ended meanwhile is fine."""
        self._write([frames.credit_frame(number, credit)])

    def send_answer(self, number: int, answer: Sequence[Tensor] | RoostError) -> None:
        """Answers a call of a model; what is large is not copied, and stays as it is until it is written."""
        if isinstance(answer, RoostError):
            self._write([frames.error_frame(number, answer.code, answer.message)])
        else:
            self._write(frames.response_buffers(number, answer, frames.StepTimes()))

    async def call(self, type_: FrameType, payload: dict[str, Any], *, number: int | None = None) -> dict[str, Any]:
        """Sends a control request and waits for its answer; cancelling it tells the worker so.

        Args:
            type_: What is asked for.
            payload: The fields of the request.
            number: A number from ``next_number``, for whoever wants to cancel it and wait for the answer all the same.

        Raises:
            RoostError: What the worker answered.
            LinkLost: If there is no worker any more to answer.
        """
        if self._transport is None or self._transport.is_closing():
            raise LinkLost("the worker is gone")
        number = self.next_number() if number is None else number
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self._write([frames.control_frame(type_, number, payload)])
            return await future
        finally:
            if self._calls.pop(number, None) is not None and future.cancelled():
                self.send_cancel(number)

    async def hung(self) -> None:
        """Returns when the worker has sent nothing for ``HEARTBEAT_TIMEOUT_S`` although it was asked to."""
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            reads = self._reads
            try:
                async with asyncio.timeout(HEARTBEAT_TIMEOUT_S):
                    await self.call(FrameType.PING, {})
            except TimeoutError:
                if reads == self._reads:  # else it is busy sending a large answer
                    return
            except LinkLost:
                return

    def abort(self) -> None:
        """Closes the link at once, which ends the worker."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, buffers: Sequence[Buffer]) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        elif sum(map(len, buffers)) <= JOIN_BYTES:
            self._transport.write(b"".join(buffers))
        else:
            self._transport.writelines(buffers)

    def _tidy_later(self, delay_s: float) -> None:
        self._tidier = asyncio.get_running_loop().call_later(delay_s, self._tidy)

    def _tidy(self) -> None:
        """Gives pages of the arena back that nobody needs any more, a few at a time."""
        self._tidier = None
        if self._arena.give_back():
            self._tidy_later(_STEP_S)
        elif self._arena.cooling:
            self._arena.end_period()
            self._tidy_later(PERIOD_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.BaseProtocol``."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not instances of it

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.BaseProtocol``."""
        for future in self._calls.values():
            if not future.done():
                future.set_exception(LinkLost("the worker was lost"))
        self._calls.clear()
        if self._tidier is not None:
            self._tidier.cancel()
        self._listener.on_lost(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See ``asyncio.BufferedProtocol``."""
        if self._header is None:
            return self._buffer[self._filled :]
        if self._payload is None:
            return self._buffer[: self._header.length - self._payload_filled]
        return memoryview(self._payload)[self._payload_filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """See ``asyncio.BufferedProtocol``."""
        self._reads += 1
        try:
            if self._header is not None:
                self._payload_filled += nbytes
                if self._payload_filled == self._header.length:
                    self._end_large(self._header)
                return
            self._filled += nbytes
            self._take_frames()
        except FrameError:
            log.exception("a worker sent what is no frame: the link is closed")
            assert self._transport is not None
            self._transport.abort()

    def _take_frames(self) -> None:
        """Hands out all whole frames of the buffer and moves the rest to its start."""
        position = 0
        view = self._buffer[: self._filled]
        while self._filled - position >= frames.HEADER_BYTES:
            header = frames.unpack_header(view, at=position)
            start = position + frames.HEADER_BYTES
            end = start + header.length
            if end > self._filled:
                if header.length > READ_BUFFER_BYTES // 2:
                    self._begin_large(header, view[start:])
                    self._filled = 0
                    return
                break
            if header.flags & frames.MORE_FOLLOW:
                self._take_part(header, view[start:end])
            else:
                self._dispatch(header, bytes(view[start:end]))
            position = end
        rest = self._filled - position
        if position and rest:
            self._buffer[:rest] = bytes(view[position:])
        self._filled = rest

    def _take_part(self, header: Header, payload: memoryview) -> None:
        """Takes a response of a stream: it is charged whatever its size, as its client may let it wait."""
        try:
            memory = AnswerMemory(len(payload), self._listener.answers)
        except ResourceExhausted as error:
            self._listener.on_response_refused(header.request, error)
            return
        memory[:] = payload
        self._dispatch(header, memory)

    def _begin_large(self, header: Header, beginning: memoryview) -> None:
        self._header = header
        self._payload_filled = len(beginning)
        try:
            self._payload = AnswerMemory(header.length, self._listener.answers)
        except ResourceExhausted as error:
            self._refusal = error  # it is read all the same, into nothing, as what comes behind it is wanted
            return
        self._payload[: len(beginning)] = beginning

    def _end_large(self, header: Header) -> None:
        payload, self._payload = self._payload, None
        refusal, self._refusal = self._refusal, None
        self._header = None
        if refusal is not None and header.flags & frames.MORE_FOLLOW:
            self._listener.on_response_refused(header.request, refusal)
        elif refusal is not None:
            self._on_error(header.request, refusal)
        elif payload is not None:
            self._dispatch(header, payload)

    def _dispatch(self, header: Header, payload: Buffer) -> None:
        match header.type:
            case FrameType.RESPONSE:
                self._on_response(header.request, frames.parse_response(payload))
            case FrameType.STATUS | FrameType.PONG:
                future = self._calls.get(header.request)
                if future is not None and not future.done():
                    future.set_result(frames.parse_control(payload))
            case FrameType.ERROR:
                self._on_error(header.request, error_of(*frames.parse_error(payload)))
            case FrameType.HELLO:
                self._listener.on_hello(frames.parse_control(payload))
            case FrameType.CALL:
                self._listener.on_call(header.request, frames.parse_call(payload))
            case FrameType.CANCEL:
                self._listener.on_call(header.request, None)
            case _:
                log.debug("a worker sent a %s frame, which is not used yet", header.type.name)

    def _on_response(self, number: int, response: frames.Response) -> None:
        try:
            self._places.resolve(number, response, self._listener.answers)
        except ResourceExhausted as error:
            if response.final:
                self._on_error(number, error)
            else:
                self._listener.on_response_refused(number, error)
        else:
            self._listener.on_response(number, response)

    def _on_error(self, number: int, error: Exception) -> None:
        future = self._calls.get(number)
        if future is None:
            self._places.end(number)
            self._listener.on_run_error(number, error)
        elif not future.done():
            future.set_exception(error)

"""Many requests and their answers over one gRPC call: ``ModelStreamInfer``, with Triton's rules.

Requests of one stream run at the same time. Ordinary models, which answer once, are answered in the order in which
their requests came; what decoupled models answer goes out as it comes. A request that fails is answered with its error
and the stream goes on, unless the client asked for the real status.

Each stream has a bounded number of requests in flight, and answers are taken from a model no faster than the client
reads. So a client that sends and never reads fills its window, and then nothing of it is received any more.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from roost.core.errors import Code, Limit, ResourceExhausted, RoostError, Unavailable, limit_of
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Buffer
from roost.server import grpc_codec as codec
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_calls import Calls, header_of
from roost.server.grpc_errors import as_value
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_receive import StreamGate
from roost.server.grpc_turns import Turns
from roost.server.unexpected import unexpected

STREAM_METHOD: Final = "ModelStreamInfer"
_ERRORS_HEADER: Final = "triton_grpc_error"


class StreamCalls:
    """Serves the method and knows the streams that are open.

    Args:
        data_plane: What answers.
        calls: Who may call, and how failures leave.
        gate: Receives the messages.
        limits: How many streams there may be, and how many requests in each.
    """

    def __init__(self, data_plane: DataPlane, calls: Calls, gate: StreamGate, limits: GrpcLimits) -> None:
        self._data_plane = data_plane
        self._calls = calls
        self._gate = gate
        self._limits = limits
        self._check = calls.guard("inference")
        self._streams: set[InferStream] = set()
        self._is_draining = False

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """The method by its name."""
        return {STREAM_METHOD: grpc.stream_stream_rpc_method_handler(self._handle)}

    def drain(self) -> None:
        """From now on requests are refused; streams end when those that they have received are answered."""
        self._is_draining = True
        for stream in self._streams:
            stream.drain()

    async def _handle(self, _messages: Any, context: Any) -> None:
        failure = await self._serve(context)
        if failure is not None:
            await self._calls.abort(context, failure, STREAM_METHOD)

    def _admit(self) -> None:
        error: RoostError | None = None
        if self._is_draining:
            error = _stopping()
        elif len(self._streams) >= self._limits.max_streams:
            text = f"{len(self._streams)} streams are open already"
            error = ResourceExhausted(text, retry_after_s=1.0, limit=Limit.RECEIVES)
        if error is not None:
            self._data_plane.refused(error.limit)
            raise error

    async def _serve(self, context: Any) -> RoostError | None:
        try:
            if self._check is not None:
                self._check(context)
            self._admit()
            stream = InferStream(self._data_plane, self._calls, self._gate, context, self._limits.max_stream_requests)
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)
        except RoostError as error:
            return as_value(error)
        except grpc.aio.BaseError:  # the call has ended, which only grpc.aio needs to know
            raise
        except Exception as error:  # the boundary of the call
            return unexpected(error, STREAM_METHOD)
        return None


@dataclass(slots=True)
class _Asked:
    """A request, or why it could not be received, and its place in the order; then also what is known of it."""

    received: Buffer | RoostError
    turn: int
    is_late: bool
    id: str = ""
    model: str = ""


class InferStream:
    """One stream.

    Args:
        data_plane: What answers.
        calls: Knows which headers models get.
        gate: Receives the messages.
        context: The call.
        max_requests: How many requests may be in flight.
    """

    def __init__(self, data_plane: DataPlane, calls: Calls, gate: StreamGate, context: Any, max_requests: int) -> None:
        self._data_plane = data_plane
        self._gate = gate
        self._context = context
        self._window = asyncio.Semaphore(max_requests)
        self._turns = Turns()
        self._writing = asyncio.Lock()
        self._reader: asyncio.Task[Any] | None = None
        self._accepted = 0  # requests in flight that are to be answered even if the server stops
        self._is_draining = False
        self._decoupled: set[str] = set()  # models that were seen to be
        self._caller = context.peer()
        self._traceparent = header_of(context, "traceparent") or ""
        self._headers = calls.forwarded(context)
        self._errors_end_call = header_of(context, _ERRORS_HEADER) == "true"
        remaining_s = context.time_remaining()
        self._ends = math.inf if remaining_s is None else time.monotonic() + remaining_s

    async def run(self) -> None:
        """Answers requests until the client has sent all; cancelling it cancels the requests in flight.

        Raises:
            Unavailable: If the server stops; what was received is answered then.
            RoostError: That of the first request that fails, if the client asked for it.
            grpc.aio.BaseError: If the call is over.
        """
        failure: Exception | None = None
        is_complete = False
        try:
            async with asyncio.TaskGroup() as group:
                is_complete = await self._receive_all(group)
        except ExceptionGroup as errors:
            failure = errors.exceptions[0]
        if failure is not None:
            raise failure
        if not is_complete:
            raise _stopping()

    def drain(self) -> None:
        """Answers what was received; what comes meanwhile is refused, and then the stream ends."""
        self._is_draining = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._is_draining and not self._accepted and self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _receive_all(self, group: asyncio.TaskGroup) -> bool:
        """Starts a task for each request; returns whether the client had sent all when it stopped."""
        task = self._reader = asyncio.current_task()
        assert task is not None
        largest_bytes: int | None = None
        try:
            while True:
                await self._window.acquire()
                received: Buffer | RoostError | None
                try:
                    received = await self._gate.receive(self._context, largest_bytes)
                except RoostError as error:
                    self._data_plane.refused(limit_of(error))
                    received = as_value(error)
                if received is None:
                    return True
                if not isinstance(received, RoostError):
                    largest_bytes = max(largest_bytes or 0, len(received))
                asked = _Asked(received, self._turns.take(), self._is_draining)
                del received  # while the next one is awaited, this one's memory belongs to its task alone
                self._accepted += not asked.is_late
                group.create_task(self._handle(asked))
                del asked
        except asyncio.CancelledError:
            if self._is_draining and task.uncancel() == 0:
                return False
            raise
        finally:
            self._reader = None

    async def _handle(self, asked: _Asked) -> None:
        try:
            failure = await self._answer(asked)
            asked.received = b""  # a client that does not read can't hold uncharged memory
            if failure is not None:
                await self._send_failure(asked, failure)
        finally:
            self._turns.end(asked.turn)
            self._window.release()
            self._accepted -= not asked.is_late
            self._end_if_done()

    async def _answer(self, asked: _Asked) -> RoostError | None:
        try:
            await self._run(asked)
        except RoostError as error:
            return as_value(error)
        except grpc.aio.BaseError:  # the call is over
            raise
        except Exception as error:  # the boundary of the request
            return unexpected(error, STREAM_METHOD)
        return None

    async def _send_failure(self, asked: _Asked, failure: RoostError) -> None:
        await self._turns.come(asked.turn)
        if self._errors_end_call:
            raise failure
        failed_model = asked.model if failure.code is Code.INTERNAL else ""
        await self._send(codec.encode_stream_error(failure.message, asked.id, failed_model))

    async def _run(self, asked: _Asked) -> None:
        """Answers a request, whose message stays charged until all of its answers are sent."""
        if isinstance(asked.received, RoostError):
            raise asked.received
        message, raws = codec.parse_infer(asked.received)
        asked.id, asked.model = message.id, message.model_name
        if asked.is_late:
            self._data_plane.refused(Limit.DRAINING)
            raise _stopping()
        if asked.model in self._decoupled:
            self._turns.end(asked.turn)
        arrived = time.monotonic()
        size_bytes = len(asked.received)
        self._take_bytes(size_bytes)
        try:
            request, wants_empty_final = codec.read_infer(
                message,
                raws,
                arrived,
                min(self._data_plane.request_timeout_s, self._ends - arrived),
                caller=self._caller,
                traceparent=self._traceparent,
                headers=self._headers,
            )
            await self._respond(request, wants_empty_final, asked.turn)
        finally:
            self._data_plane.bodies.release(size_bytes)

    def _take_bytes(self, size_bytes: int) -> None:
        try:
            self._data_plane.bodies.acquire(size_bytes)
        except RoostError as error:
            self._data_plane.refused(limit_of(error))
            raise

    async def _respond(self, request: InferRequest, wants_empty_final: bool, turn: int) -> None:
        """Runs a request and sends what it is answered, each answer before the next one is taken."""
        async with aclosing(self._data_plane.infer_stream(request)) as responses:
            async for response in responses:
                is_end = response.final and not response.outputs
                if is_end or not response.final:
                    self._decoupled.add(request.model_name)
                    self._turns.end(turn)
                else:
                    await self._turns.come(turn)
                if not is_end:
                    await self._send(codec.encode_stream_response(response))
                elif wants_empty_final:
                    last = InferResponse(request.model_name, request.model_version, [], request.id)
                    await self._send(codec.encode_stream_response(last))
                del response  # or its memory would stay charged while the next one is awaited

    async def _send(self, message: bytes) -> None:
        async with self._writing:
            await self._context.write(message)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", retry_after_s=1.0, limit=Limit.DRAINING)

"""The lean path: plain inference requests without what HTTP servers have for all others.

What all connections share; ``lean_protocol`` has what each does by itself.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from aiohttp import web
from roost.core.errors import DeadlineExceeded, Limit, ResourceExhausted, RoostError
from roost.core.requests import Done, InferResponse, RequestContext, Ticket
from roost.core.tensors import Buffer
from roost.server.data_plane_protocol import DataPlane
from roost.server.forwarding import in_any_case
from roost.server.later import Later
from roost.server.rest.codec import RestInferRequest
from roost.server.rest.codec_quick import decode_plain
from roost.server.rest.codec_quick_out import write_plain
from roost.server.rest.codec_response import large_outputs, write_response
from roost.server.rest.compression import IDENTITY, compress_small
from roost.server.rest.errors import response_of
from roost.server.rest.lean_answers import HeadWriter, prepare
from roost.server.rest.lean_heads import Head, HeadMemo, Kind
from roost.server.rest.lean_turn import Turn
from roost.server.rest.lean_writing import Outbox
from roost.server.rest.limits import RestLimits
from roost.server.transport_options import TransportOptions

# How much of what is new counts in how long requests of a kind may take; less time is learned slowly, more at once.
_LEARNING_RATE = 1 / 16
# One that is late and allowed less than this share of what others do says nothing about them.
_TYPICAL_SHARE = 1 / 2
_NOTHING = memoryview(b"")
_LATE = ResourceExhausted("the server is behind: the answer would come too late", retry_after_s=1.0, limit=Limit.LAG)


class Answered(NamedTuple):
    """A request whose answer is there, but needs more than the lean path to be sent.

    Attributes:
        request: The request.
        response: Its answer.
        body_bytes: What its body holds of the budget; whoever takes this gives it back.
    """

    request: RestInferRequest
    response: InferResponse
    body_bytes: int


class LeanPath:
    """What serves plain inference requests, if the operator did not restrict them.

    Args:
        data_plane: Where they go.
        limits: Those of the transport.
        options: Those of the transport.

    Attributes:
        heads: The heads that are known.
        outbox: Where small answers wait for the end of the loop's turn.
        turn: Tells which requests are late. How much time one may take, its client says only in its body; before that
            is read, it is taken to allow as much as others of its kind, and those that say nothing as the server does.
        served: How many requests were answered.
        acquire: Takes bytes of the budget for bodies.
        release: Gives them back.
        request_timeout_s: How long a body may take to arrive.
    """

    def __init__(self, data_plane: DataPlane, limits: RestLimits, options: TransportOptions) -> None:
        self.heads = HeadMemo(limits.max_body_bytes, data_plane.request_timeout_s, in_any_case(options.forward_headers))
        self._answers = HeadWriter()
        self.outbox = Outbox()
        self.turn = Turn()
        self.served = 0
        self.acquire = data_plane.bodies.acquire
        self.release = data_plane.bodies.release
        self.request_timeout_s = data_plane.request_timeout_s
        self._data_plane = data_plane
        self._triton_call = "infer" if options.compat_triton else None
        self._late = prepare(response_of(_LATE, self._triton_call))

    def begin(
        self, head: Head, data: Buffer, start: int, received: float, caller: str, done: Done
    ) -> tuple[RestInferRequest, Ticket] | None:
        """Reads a request and begins it.

        Args:
            head: What its head says.
            data: Bytes in which its body is.
            start: Where in them it begins.
            received: When it came.
            caller: Who sent it.
            done: Called with what becomes of it, not from within this call.

        Returns:
            The request and what cancels it; None if it is not plain, or wrong.

        Raises:
            RoostError: If it is refused at once.
        """
        context = RequestContext(received, received + self.request_timeout_s, caller, 0, head.traceparent)
        json_end, end = start + head.json_bytes, start + head.body_bytes
        kind = head.kind
        rest = memoryview(data)[json_end:end] if json_end < end else _NOTHING
        request = decode_plain(bytes(data[start:json_end]), rest, kind.model, kind.version, context)
        if request is None:
            return None
        more_s = context.deadline - received - kind.allowance_s
        kind.allowance_s += more_s if more_s > 0 else more_s * _LEARNING_RATE
        ticket = self._data_plane.begin(request, done)
        if ticket is None:
            ticket = Later(self._data_plane.infer(request), done)
        kind.window.under_way += 1
        return request, ticket

    def ended(self, kind: Kind, request: RestInferRequest, outcome: InferResponse | RoostError | None) -> None:
        """Follows once on each request that was begun.

        Args:
            kind: Of which kind it was.
            request: The request.
            outcome: What became of it; None if its client is gone.
        """
        context = request.context
        is_late = None if outcome is None else isinstance(outcome, DeadlineExceeded)
        if is_late and context.deadline - context.received < _TYPICAL_SHARE * kind.allowance_s:
            is_late = None
        # Nobody who is under way came later than the last one that was looked at; how long ago late ones are, matters.
        kind.window.leave(context.received, time.monotonic() if is_late else self.turn.now, is_late)

    def encode(
        self, response: InferResponse, request: RestInferRequest, coding: str, is_last: bool
    ) -> list[Buffer] | None:
        """Writes an answer.

        Args:
            response: The answer.
            request: Its request.
            coding: The content coding that the client wants.
            is_last: Whether the connection ends with it.

        Returns:
            Its head and its body, to be sent one after the other; None if that takes too long to be done here.

        Raises:
            InvalidArgument: If an output can't be written as JSON.
        """
        buffers = write_plain(response, request)
        if buffers is None:
            if large_outputs(response, request):
                return None
            buffers = write_response(response, request)
        json_bytes, in_binary = len(buffers[0]), len(buffers) > 1
        if coding != IDENTITY:
            compressed = compress_small(buffers, coding)
            if compressed is None:
                return None
            buffers = [compressed]
        if in_binary:
            return [self._answers.binary(json_bytes, sum(map(len, buffers)), coding, is_last), *buffers]
        return [self._answers.json(buffers[0], coding, is_last)]

    def refusal(self, is_last: bool) -> bytes:
        """The answer to a request that is late; counts it."""
        self._data_plane.refused(Limit.LAG)
        return self._answers.prepared(self._late, is_last)

    def body_timed_out(self) -> bytes:
        """The answer to a request whose body did not arrive in time; counts it."""
        text = f"the request body did not arrive within {self.request_timeout_s:g} s"
        self._data_plane.refused(Limit.RECEIVE_TIMEOUT)
        return self.failure(DeadlineExceeded(text, limit=Limit.RECEIVE_TIMEOUT), True)

    def failure(self, error: Exception, is_last: bool) -> bytes:
        """The answer to a request that failed."""
        return self._answers.whole(response_of(error, self._triton_call), is_last)


LEAN_PATH = web.AppKey("LEAN_PATH", LeanPath)

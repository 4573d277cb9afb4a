"""A connection that serves plain inference requests itself and gives everything else to aiohttp.

It looks at what comes only while aiohttp waits for a request and its parser is between two messages. If that is a head
which the parser has accepted before, the request is read, begun and answered here, and the parser never sees it. If
anything about the request turns out not to be plain, the parser gets the same bytes and nothing has happened. One
request is under way at a time; what comes meanwhile waits, as it does in aiohttp.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any

from roost.core.errors import ResourceExhausted, RoostError
from roost.core.requests import InferResponse, Ticket
from roost.core.tensors import Buffer
from roost.server.rest.codec import RestInferRequest
from roost.server.rest.lean import Answered, LeanPath
from roost.server.rest.lean_body import ArrivingBody, BodyReceiver
from roost.server.rest.lean_framing import Framing
from roost.server.rest.lean_heads import Head, Kind
from roost.server.rest.lean_writing import WritingProtocol
from roost.server.rest.protocol import DrainingServer

_END = b"\r\n\r\n"
# From here on it pays to read a body right into its memory.
_LARGE_BODY_BYTES = 128 * 1024
# What may wait behind a request before its client has to.
_HELD_BYTES = 64 * 1024


class LeanProtocol(WritingProtocol):
    """One connection.

    Args:
        server: Made it.
        lean: What all connections share.
        options: What aiohttp takes.
    """

    __slots__ = (
        "_answered",
        "_arriving",
        "_caller",
        "_framing",
        "_held",
        "_is_answering",
        "_kind",
        "_lean",
        "_request",
        "_source",
        "_taken_bytes",
        "_ticket",
    )

    def __init__(self, server: DrainingServer, lean: LeanPath, **options: Any) -> None:
        super().__init__(server, lean.outbox, **options)
        self._lean = lean
        self._framing = Framing(lean.heads)
        self._caller = ""
        self._kind: Kind | None = None
        # A request is under way, from its last byte to that of its answer.
        self._is_answering = False
        # What has come meanwhile.
        self._held = b""
        self._arriving: ArrivingBody | None = None
        # The bytes of the request, in case aiohttp is to have them after all.
        self._source: Iterable[Buffer] = ()
        self._taken_bytes = 0
        self._request: RestInferRequest | None = None
        self._ticket: Ticket | None = None
        self._answered: Answered | None = None

    @property
    def idle(self) -> bool:
        """See ``RestProtocol``; also whether nothing is under way here."""
        return not self._is_answering and self._arriving is None and super().idle

    @property
    def ends(self) -> bool:
        """See ``RestProtocol``."""
        return self._server.draining and not self._held and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``RestProtocol``."""
        super().connection_made(transport)
        peer = self.peername
        self._caller = str(peer[0] if isinstance(peer, (list, tuple)) else peer or "")

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody waits for the answer any more."""
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None
            if self._request is not None and self._kind is not None:
                self._lean.ended(self._kind, self._request, None)
        self._held = b""
        self._answered = None
        self._let_go()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop; by aiohttp without data, to have the parser go on."""
        if self._is_answering:
            self._hold(data)
        elif self._arriving is not None:
            self._continue_body(self._arriving, data)
        elif not self._framing.between:
            self._parse(data)
        elif (waiter := self._waiter) is not None and not waiter.done():
            self._take(data)
        elif self._messages or self._lean.heads.find(data[: data.find(_END) + len(_END)]) is None:
            self._parse(data)
        else:
            # aiohttp takes a turn of the loop more to see that its answer is out than some clients take to ask again.
            self._is_answering = True
            self._held = data
            self._loop.call_soon(self._take_held)

    def body_arrived(self) -> None:
        """All of a body is there that did not come with its head."""
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            self._stop_timer()
            self._receive_by(self)
            data = arriving.take()
            self._source = (arriving.head_bytes, data)
            self._begin(arriving.head, data, 0, arriving.received)

    def take_answered(self) -> Answered | None:
        """Gives a request that has its answer already to the handler that is to send it; once."""
        answered, self._answered = self._answered, None
        if answered is not None:
            # From here on the handler holds its body's share of the budget.
            self._taken_bytes = 0
        return answered

    def _process_keepalive(self) -> None:
        """Called when the connection may have been idle for too long; to aiohttp it is while it is served here."""
        if self._is_answering or self._arriving is not None:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def _parse(self, data: bytes) -> None:
        """Gives bytes to aiohttp."""
        known = len(self._messages)
        super().data_received(data)
        self._framing.fed(data, [message for message, _ in islice(self._messages, known, None)])

    def _parse_request(self) -> None:
        """Gives a request to aiohttp that was not plain, and all that came after it."""
        source, held = self._source, self._held
        self._source, self._held = (), b""
        self._request = None
        self._is_answering = False
        self._parse(b"".join(source))
        self._resume_reading_held()
        if held:
            self._parse(held)

    def _take(self, data: bytes) -> None:
        """Serves the request that the data begin with, or gives all of them to aiohttp."""
        lean = self._lean
        end = data.find(_END) + len(_END)
        head = lean.heads.find(data[:end])
        if head is None:
            self._parse(data)
            return
        kind, turn = head.kind, lean.turn
        is_late = turn.is_late(self._loop, kind.allowance_s) or kind.window.is_full(turn.now)
        size = end + head.body_bytes
        if len(data) < size:
            self._await_body(head, data, end)
            return
        if len(data) > size:
            self._hold(data[size:])
            data = data[:size]
        self._source = (data,)
        if is_late:
            self._is_answering = True
            self._send([lean.refusal(self.ends)], self.ends)
        elif self._pay(head):
            self._begin(head, data, end, turn.began)
        else:
            self._parse_request()

    def _pay(self, head: Head) -> bool:
        """Takes what a body needs of the budget; how a refusal is put, aiohttp's handler knows."""
        try:
            self._lean.acquire(head.body_bytes)
        except ResourceExhausted:
            return False
        self._taken_bytes = head.body_bytes
        return True

    def _await_body(self, head: Head, data: bytes, start: int) -> None:
        if not self._pay(head):
            self._parse(data)
            return
        self._arriving = ArrivingBody(data[:start], head, self._lean.turn.began)
        self._arriving.add(memoryview(data)[start:])
        self._timer = self._loop.call_later(self._lean.request_timeout_s, self._give_up_body)
        if self._arriving.missing_bytes >= _LARGE_BODY_BYTES:
            self._receive_by(BodyReceiver(self, self._arriving))

    def _continue_body(self, arriving: ArrivingBody, data: bytes) -> None:
        missing = arriving.missing_bytes
        if len(data) > missing:
            self._hold(data[missing:])
            data = data[:missing]
        arriving.add(data)
        if not arriving.missing_bytes:
            self.body_arrived()

    def _give_up_body(self) -> None:
        """Answers half a request; what still comes is dropped."""
        self._let_go()
        self._receive_by(self)
        if self.transport is not None:
            self.transport.write(self._lean.body_timed_out())
        # To end the connection at once could take the answer from a client that is still sending.
        self.close()
        self._timer = self._loop.call_later(self._lingering_time, self.force_close)

    def _receive_by(self, protocol: asyncio.BaseProtocol) -> None:
        """Has the transport give what comes to another protocol."""
        transport = self.transport
        if transport is not None and transport.get_protocol() is not protocol:
            # A transport chooses how it reads when it begins to.
            transport.pause_reading()
            transport.set_protocol(protocol)
            transport.resume_reading()

    def _begin(self, head: Head, data: Buffer, start: int, received: float) -> None:
        self._is_answering = True
        self._kind = head.kind
        try:
            begun = self._lean.begin(head, data, start, received, self._caller, self._on_done)
        except Exception as error:
            self._fail(error)
            return
        if begun is None:
            self._give_back()
            self._parse_request()
            return
        self._request, self._ticket = begun

    def _on_done(self, outcome: InferResponse | RoostError) -> None:
        lean, request, kind, transport = self._lean, self._request, self._kind, self.transport
        self._ticket = None
        if request is None or kind is None:
            return
        lean.ended(kind, request, outcome)
        if transport is None or transport.is_closing():
            return
        if isinstance(outcome, RoostError):
            self._fail(outcome)
            return
        is_last = self._server.draining and self.ends
        try:
            buffers = lean.encode(outcome, request, kind.coding, is_last)
        except Exception as error:
            self._fail(error)
            return
        if buffers is None:
            self._answered = Answered(request, outcome, self._taken_bytes)
            self._parse_request()
            return
        self._send(buffers, is_last, outcome)

    def _fail(self, error: Exception) -> None:
        is_last = self.ends
        answer = self._lean.failure(error, is_last)
        # Nobody prints it, and its frames would keep the body.
        error.__traceback__ = None
        self._send([answer], is_last)

    def _on_sent(self) -> None:
        """See ``WritingProtocol``."""
        self._lean.served += 1
        self._let_go()
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._is_last:
            self.force_close()
        elif self._held:
            # Not from here, so that many requests in one piece do not nest.
            self._loop.call_soon(self._take_held)
        else:
            self._is_answering = False

    def _take_held(self) -> None:
        self._is_answering = False
        data, self._held = self._held, b""
        if self.transport is None:
            return
        self._resume_reading_held()
        if super().idle:
            self._take(data)
        else:
            self._parse(data)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > _HELD_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def _resume_reading_held(self) -> None:
        transport = self.transport
        if transport is not None and not transport.is_reading() and not self._reading_paused:
            transport.resume_reading()

    def _give_back(self) -> None:
        self._lean.release(self._taken_bytes)
        self._taken_bytes = 0

    def _let_go(self) -> None:
        """Ends what a request holds."""
        if self._taken_bytes:
            self._give_back()
        self._request = self._ticket = self._pieces = self._response = None
        self._source = ()
        if self._arriving is not None:
            self._arriving.take()
            self._arriving = None
        if self._timer is not None:
            self._stop_timer()


def take_answered(protocol: asyncio.BaseProtocol) -> Answered | None:
    """Gives a request of a connection that has its answer already to the handler that is to send it; once."""
    return protocol.take_answered() if isinstance(protocol, LeanProtocol) else None

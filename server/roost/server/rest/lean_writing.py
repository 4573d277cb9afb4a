"""How a connection sends an answer by itself, and never waits for ever: ``delivery`` does it for aiohttp's handlers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from itertools import chain
from typing import Any

from roost.core.requests import InferResponse
from roost.core.tensors import Buffer
from roost.server.rest.compression import slices
from roost.server.rest.delivery import SLICE_BYTES, SMALL_BYTES
from roost.server.rest.protocol import DrainingServer, RestProtocol

_log = logging.getLogger(__name__)


class Outbox:
    """Small answers of one turn of the event loop, written at its end.

    A batch has answers for many clients. Written as soon as each is encoded, each wakes a process on the other side,
    which goes back to sleep for want of another; written one right after the other, only the first one does so.
    """

    __slots__ = ("_answers",)

    def __init__(self) -> None:
        self._answers: list[tuple[WritingProtocol, bytes]] = []

    def put(self, protocol: WritingProtocol, answer: bytes, loop: asyncio.AbstractEventLoop) -> None:
        """Takes an answer; the connection is told when it is written."""
        if not self._answers:
            loop.call_soon(self._flush)
        self._answers.append((protocol, answer))

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        for protocol, answer in answers:
            protocol.write_small(answer)


class WritingProtocol(RestProtocol):
    """A connection with at most one answer on its way.

    Args:
        server: Made it.
        outbox: Where small answers wait for the end of the turn.
        write_timeout_s: How long the client may take for each slice.
        options: What aiohttp takes.
    """

    __slots__ = ("_is_last", "_outbox", "_pieces", "_response", "_timer", "_write_timeout_s")

    def __init__(self, server: DrainingServer, outbox: Outbox, *, write_timeout_s: float, **options: Any) -> None:
        super().__init__(server, write_timeout_s=write_timeout_s, **options)
        self._outbox = outbox
        self._write_timeout_s = write_timeout_s
        self._is_last = False
        # What is still to be written, and the response that it refers to.
        self._pieces: Iterator[Buffer] | None = None
        self._response: InferResponse | None = None
        # The client has to send or read something until then.
        self._timer: asyncio.TimerHandle | None = None

    def resume_writing(self) -> None:
        """The client has read what was on its way."""
        super().resume_writing()
        if self._pieces is not None:
            self._write_more(self._pieces)

    def _on_sent(self) -> None:
        """Called when an answer has left the server's memory."""
        raise NotImplementedError

    def _send(self, buffers: list[Buffer], is_last: bool, response: InferResponse | None = None) -> None:
        """Sends an answer.

        Args:
            buffers: Its head, its JSON and its tensors.
            is_last: Whether the connection ends with it.
            response: What the tensors belong to; it is held as long as they are needed.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._is_last = is_last
        if sum(map(len, buffers)) <= SMALL_BYTES:
            self._outbox.put(self, b"".join(buffers), self._loop)
            return
        self._response = response
        # After the last slice nothing refers to tensors any more, see ``delivery``.
        transport.set_write_buffer_limits(high=0)
        self._pieces = chain((b"".join(buffers[:2]),), slices(buffers[2:], SLICE_BYTES))
        self._write_more(self._pieces)

    def write_small(self, answer: bytes) -> None:
        """Called by the outbox."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(answer)
        if not self._paused:
            self._on_sent()
            return
        self._pieces = iter(())
        self._write_more(self._pieces)

    def _write_more(self, pieces: Iterator[Buffer]) -> None:
        """Writes until the transport's buffer is full or there is no more."""
        self._stop_timer()
        transport = self.transport
        if transport is None:
            return
        while not self._paused:
            piece = next(pieces, None)
            if piece is None:
                transport.set_write_buffer_limits()
                self._on_sent()
                return
            transport.write(piece)
        self._timer = self._loop.call_later(self._write_timeout_s, self._cut_off)

    def _cut_off(self) -> None:
        _log.info("cut off %s: it did not read its answer in time", self.peername)
        if self.transport is not None:
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

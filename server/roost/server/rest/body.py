"""Step 0 of the data path over REST: a body is paid for from the byte budget before it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar, TypeVarTuple, Unpack

import numpy as np
from aiohttp import StreamReader, hdrs, web
from roost.core.errors import DeadlineExceeded, Limit, ResourceExhausted
from roost.core.units import format_bytes
from roost.server.data_plane_protocol import Budget
from roost.server.offload import Offload, without_collections
from roost.server.rest import compression
from roost.server.rest.codec_json import LARGE_JSON_BYTES
from roost.server.rest.errors import ClientGone, Refusal, retry_after

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_INLINE_BYTES = 64 * 1024


class Body:
    """The bytes of one request, and what they hold of the budget.

    That is until the ``with`` block has ended, and with it all work in threads that held the body.

    Attributes:
        data: The body; views on it may be handed on while the block lasts.
    """

    __slots__ = ("_budget", "_held_bytes", "_holds", "data")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held_bytes = 0
        self._holds = 0
        self.data = memoryview(b"")

    def __enter__(self) -> Body:
        self.hold()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.let_go()

    def hold(self) -> None:
        """Keeps the share of the budget until ``let_go``."""
        self._holds += 1

    def let_go(self) -> None:
        """Ends what ``hold`` began; the last one gives back all that is held."""
        self._holds -= 1
        if not self._holds:
            self.give_back(self._held_bytes)

    def take(self, size_bytes: int) -> None:
        """Takes more of the budget.

        Raises:
            Refusal: 429 at once if there is not enough; the connection closes, since the rest stays unread.
        """
        try:
            self._budget.acquire(size_bytes)
        except ResourceExhausted as error:
            headers = retry_after(error.retry_after_s)
            raise Refusal(429, error.message, headers=headers, close=True, limit=error.limit) from None
        self._held_bytes += size_bytes

    def take_over(self, size_bytes: int) -> None:
        """Holds from now on what someone else has taken of the budget."""
        self._held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Gives a part back early."""
        self._held_bytes -= size_bytes
        self._budget.release(size_bytes)


class BodyReader:
    """Reads request bodies under the budget, a cap and a timeout.

    Args:
        max_body_bytes: The cap, on what comes over the wire and on what it inflates to.
        timeout_s: How long a body may take to arrive, so that half a request can't hold the budget.
        offload: Where large bodies are inflated.
        refused: Told which limit a body ran into.
    """

    def __init__(
        self, max_body_bytes: int, timeout_s: float, offload: Offload, refused: Callable[[Limit | None], None]
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._offload = offload
        self._refused = refused

    async def decode(self, body: Body, json_bytes: int, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Calls a decoder; in a thread if the body has so much JSON that this takes long."""
        if json_bytes > LARGE_JSON_BYTES:
            return await self._offload.run(body, without_collections, function, *args)
        return function(*args)

    async def read(self, request: web.Request, body: Body) -> None:
        """Fills ``body``.

        Raises:
            Refusal: 413, 429, 501, or 400 for bad transfer coding.
            DeadlineExceeded: If the body does not arrive in time.
            InvalidArgument: If it can't be inflated.
            ClientGone: If the client went away.
        """
        try:
            await self._read(request, body)
        except (Refusal, DeadlineExceeded) as error:
            self._refused(error.limit)
            raise

    def take(self, body: Body, size_bytes: int) -> None:
        """Takes more of the budget, for what is made of a body.

        Raises:
            Refusal: 429, see ``Body.take``.
        """
        try:
            body.take(size_bytes)
        except Refusal as error:
            self._refused(error.limit)
            raise

    async def _read(self, request: web.Request, body: Body) -> None:
        coding = compression.request_coding(single_header(request, hdrs.CONTENT_ENCODING))
        length = request.content_length
        if length is not None:
            self._check_size(length)
            body.take(length)
        if hdrs.EXPECT in request.headers:
            _send_continue(request)
        content = request.content
        if content.is_eof() and content.exception() is None and coding is compression.IDENTITY:
            body.data = memoryview(content.read_nowait())
            if length is None:
                self._check_size(len(body.data))
                body.take(len(body.data))
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._receive(request, length, body)
                if coding != compression.IDENTITY:
                    await self._inflate(coding, body)
        except TimeoutError:
            text = f"the request body did not arrive within {self._timeout_s:g} s"
            raise DeadlineExceeded(text, limit=Limit.RECEIVE_TIMEOUT) from None

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_body_bytes:
            raise Refusal(
                413,
                f"a request body of {format_bytes(size_bytes)} or more is over the limit of "
                f"{format_bytes(self._max_body_bytes)}",
                close=True,
                limit=Limit.TOO_LARGE,
            )

    async def _receive(self, request: web.Request, length: int | None, body: Body) -> None:
        try:
            if length is not None:
                body.data = await _receive_exactly(request.content, length)
            else:
                body.data = await self._receive_chunks(request.content, body)
        except web.RequestPayloadError:
            raise Refusal(400, "the request body is not valid HTTP", close=True) from None
        except ConnectionError:
            raise ClientGone from None
        except RuntimeError:
            # How the stream says that its connection was lost before the wait began.
            if request.transport is not None:
                raise
            raise ClientGone from None

    async def _receive_chunks(self, content: StreamReader, body: Body) -> memoryview:
        data = bytearray()
        while chunk := await content.readany():
            self._check_size(len(data) + len(chunk))
            body.take(len(chunk))
            data += chunk
        return memoryview(data)

    async def _inflate(self, coding: str, body: Body) -> None:
        compressed_bytes = len(body.data)
        inflater = compression.Inflater(coding, body.data)
        data = bytearray()
        while not inflater.done:
            inline = not data and compressed_bytes <= _INLINE_BYTES
            body.take(compression.STEP_BYTES)
            piece = inflater.step() if inline else await self._offload.run(body, inflater.step)
            body.give_back(compression.STEP_BYTES - len(piece))
            self._check_size(len(data) + len(piece))
            data += piece
        body.data = memoryview(data)
        body.give_back(compressed_bytes)


def single_header(request: web.Request, name: str) -> str | None:
    """The value of a header that says how to read the body.

    Raises:
        Refusal: 400 if it is there twice: whoever is between us and the client may have read the other one.
    """
    values = request.headers.getall(name, None)
    if values is None:
        return None
    if len(values) > 1:
        raise Refusal(400, f"the header {name} must not be there more than once", close=True)
    return values[0]


async def _receive_exactly(content: StreamReader, length: int) -> memoryview:
    """Reads ``length`` bytes with one copy, or none if they come in one piece."""
    chunk = await content.readany()
    if len(chunk) == length:
        return memoryview(chunk)
    # Unlike a bytearray this touches no page before data comes, so an announcement alone takes no memory.
    data = np.empty(length, dtype=np.uint8).data
    position = 0
    while chunk:
        data[position : position + len(chunk)] = chunk
        position += len(chunk)
        if position == length:
            return data
        chunk = await content.readany()
    raise ClientGone


def _send_continue(request: web.Request) -> None:
    """Tells a client that waits for it to send its body; only once the body is paid for."""
    if request.transport is not None and request.headers[hdrs.EXPECT].lower() == "100-continue":
        request.transport.write(_CONTINUE)

"""The last step over REST: an answer goes out without joining its buffers, and never waits for ever.

A large answer is written in slices. Its connection's write buffer is told to pause at once and to resume only
when it is empty, so after the last slice nothing refers to the tensors any more: an event loop such as uvloop keeps
views on what it could not write, it does not copy them. A client that does not take a slice in time is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence

from aiohttp import web
from roost.core.tensors import Buffer
from roost.server.rest.compression import slices
from roost.server.rest.errors import ClientGone
from roost.server.rest.protocol import RestProtocol

_log = logging.getLogger(__name__)

# Less than what a transport buffers before it pauses (64 KiB): such an answer on an idle connection can't block.
SMALL_BYTES = 32 * 1024
SLICE_BYTES = 256 * 1024


async def send(
    request: web.Request, headers: Mapping[str, str], buffers: Sequence[Buffer], write_timeout_s: float
) -> web.StreamResponse:
    """Sends a successful answer; when this returns, nobody reads the buffers any more.

    A client that went away or reads too slowly ends the connection, not the caller.
    """
    size = sum(map(len, buffers))
    if size <= SMALL_BYTES:
        body = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        return await send_small(request, web.Response(body=body, headers=headers), write_timeout_s)
    response = web.StreamResponse(headers=headers)
    response.content_length = size
    _mark_last(request, response)
    transport = request.transport
    if transport is None:
        response.force_close()
        return response
    transport.set_write_buffer_limits(high=0)
    try:
        async with asyncio.timeout(write_timeout_s):
            await response.prepare(request)
        for piece in slices(buffers, SLICE_BYTES):
            async with asyncio.timeout(write_timeout_s):
                await response.write(piece)
                await request.writer.drain()
        await response.write_eof()
    except TimeoutError:
        _cut_off(request, response)
    except ConnectionError:
        response.force_close()
    else:
        transport.set_write_buffer_limits()
    return response


async def send_small(request: web.Request, response: web.Response, write_timeout_s: float) -> web.StreamResponse:
    """Sends an answer that is one piece of bytes."""
    transport = request.transport
    _mark_last(request, response)
    try:
        if (
            transport is not None
            and not transport.get_write_buffer_size()
            and (response.content_length or 0) <= SMALL_BYTES
        ):
            await response.prepare(request)
            await response.write_eof()
            return response
        async with asyncio.timeout(write_timeout_s):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        _cut_off(request, response)
    except ConnectionError:
        response.force_close()
    return response


class EventStream:
    """An answer of server-sent events.

    Args:
        request: What it answers.
        write_timeout_s: How long the client may take to read what is on its way, before it is cut off.

    Attributes:
        response: What the handler returns in the end.
    """

    def __init__(self, request: web.Request, write_timeout_s: float) -> None:
        self._request = request
        self._write_timeout_s = write_timeout_s
        self.response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )

    async def open(self) -> None:
        """Sends the head.

        Raises:
            ClientGone: If the client went away, as from the other methods.
        """
        _mark_last(self._request, self.response)
        await self._bounded(self.response.prepare(self._request))

    async def send(self, text: bytes) -> None:
        """Sends one event; waits while the client is behind by more than what a connection buffers."""
        for piece in slices([b"data: %b\n\n" % text], SLICE_BYTES):
            await self._bounded(self._write(piece))

    async def close(self) -> None:
        """Says that no event follows."""
        await self._bounded(self.response.write_eof())

    async def _write(self, piece: Buffer) -> None:
        await self.response.write(piece)
        await self._request.writer.drain()

    async def _bounded(self, step: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await step
        except TimeoutError:
            _cut_off(self._request, self.response)
            raise ClientGone from None
        except ConnectionError:
            self.response.force_close()
            raise ClientGone from None


def _mark_last(request: web.Request, response: web.StreamResponse) -> None:
    """Tells the client in a drain that there is nothing more to hope for on this connection."""
    protocol = request.protocol
    if isinstance(protocol, RestProtocol) and protocol.ends:
        response.force_close()


def _cut_off(request: web.Request, response: web.StreamResponse) -> None:
    _log.info("cut off %s: it did not read its answer in time", request.remote)
    response.force_close()
    if request.transport is not None:
        request.transport.abort()

"""aiohttp's connection handling with our answers: JSON even for what is not HTTP, and dead clients are cut off."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from roost.server.rest.errors import error_response, unexpected_error

_log = logging.getLogger(__name__)


class DrainingServer(web.Server):
    """What connections know of their server.

    Attributes:
        draining: Whether answers tell clients to close their connections.
    """

    draining = False


class RestProtocol(web.RequestHandler):
    """One connection."""

    __slots__ = ("_server", "_write_timeout_ms")

    def __init__(self, server: DrainingServer, *, write_timeout_s: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._write_timeout_ms = max(1, int(write_timeout_s * 1000))

    @property
    def idle(self) -> bool:
        """Whether it waits for the first byte of a request, or for the rest of its headers."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def ends(self) -> bool:
        """Whether the answer that is sent next is the last one: in a drain, unless more requests are here already."""
        return self._server.draining and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Lets the kernel drop a client that takes nothing, even after the answer has left our buffers."""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # Not a TCP socket: there is nothing to set.
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._write_timeout_ms)
        super().connection_made(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what never reached a handler: malformed HTTP, and failures of aiohttp itself."""
        if status >= 500:
            response = unexpected_error(exc)
        elif isinstance(exc, LineTooLong):
            response = error_response(431, "the request line or a header field is too long")
        else:
            _log.debug("malformed HTTP from %s", request.remote, exc_info=exc)
            response = error_response(400, "the request is not valid HTTP")
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer was already under way")
        response.force_close()
        return response

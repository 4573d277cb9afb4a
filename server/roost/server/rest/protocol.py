"""aiohttp's connection handling with our answers and our end.

JSON even for what is not HTTP, dead clients cut off, and a drain that answers what is under way before it closes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from roost.server.rest.errors import error_response, unexpected_error
from roost.server.rest.limits import RestLimits

_log = logging.getLogger(__name__)

_LOOK_S = 0.01
# Two times this may pass until connections in use are closed; aiohttp takes 0 for no limit.
_CUT_OFF_S = 0.05


class RestProtocol(web.RequestHandler):
    """One connection."""

    __slots__ = ("_server", "_write_timeout_ms")

    def __init__(self, server: RestServer, *, write_timeout_s: float, **options: Any) -> None:
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


class RestServer(web.Server):
    """Makes a ``RestProtocol`` for each connection.

    Attributes:
        draining: Whether answers tell clients to close their connections.
    """

    def __init__(self, base: web.Server, limits: RestLimits, **options: Any) -> None:
        super().__init__(base.request_handler, request_factory=base.request_factory, handler_cancellation=True)
        self.draining = False
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": limits.keepalive_timeout_s,
            "max_line_size": limits.max_header_bytes,
            "max_field_size": limits.max_header_bytes,
            "read_bufsize": 64 * 1024,
            "write_timeout_s": limits.write_timeout_s,
            **options,
        }

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight, from the end of a request's headers to the end of its answer."""
        return all(connection.idle for connection in self.connections if isinstance(connection, RestProtocol))

    def __call__(self) -> web.RequestHandler:
        """Called by the event loop for each connection."""
        return RestProtocol(self, loop=asyncio.get_running_loop(), **self._options)


class RestRunner(web.AppRunner):
    """Runs the application; add sites to it as to aiohttp's own runner.

    Args:
        app: What ``build_rest_app`` made.
        limits: The same limits.
    """

    __slots__ = ("_limits",)

    def __init__(self, app: web.Application, limits: RestLimits) -> None:
        super().__init__(app, shutdown_timeout=_CUT_OFF_S)
        self._limits = limits

    async def drain(self, timeout_s: float) -> None:
        """Stops listening, answers what is in flight or still comes over open connections, and cleans up.

        A body that is still arriving counts as in flight. ``cleanup`` alone would answer none of that: from its
        beginning aiohttp discards what connections receive.

        Args:
            timeout_s: What is in flight after this time is cut off.
        """
        server = self.server
        if isinstance(server, RestServer):
            give_up = asyncio.get_running_loop().time() + timeout_s
            server.draining = True
            await _settle()
            for site in self.sites:
                await site.stop()
            await _settle()
            # Looked at again and again, so that requests of all the time before pay nothing for an event.
            while not server.idle and asyncio.get_running_loop().time() < give_up:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
        await self.cleanup()

    async def _make_server(self) -> web.Server:
        return RestServer(await super()._make_server(), self._limits)


async def _settle() -> None:
    """Lets the loop take in what the kernel has: connections to accept, then requests that were sent over them."""
    for _ in range(4):
        await asyncio.sleep(0)

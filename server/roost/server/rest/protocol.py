"""aiohttp's connection handling with our answers: JSON even for what is not HTTP, and dead clients cut off."""

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


class RestProtocol(web.RequestHandler):
    """One connection."""

    __slots__ = ("_write_timeout_ms",)

    def __init__(self, manager: web.Server, *, write_timeout_s: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._write_timeout_ms = max(1, int(write_timeout_s * 1000))

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
    """Makes a ``RestProtocol`` for each connection."""

    def __init__(self, base: web.Server, limits: RestLimits, **options: Any) -> None:
        super().__init__(base.request_handler, request_factory=base.request_factory, handler_cancellation=True)
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

    def __call__(self) -> web.RequestHandler:
        """Called by the event loop for each connection."""
        return RestProtocol(self, loop=asyncio.get_running_loop(), **self._options)


class RestRunner(web.AppRunner):
    """Runs the application; add sites to it as to aiohttp's own runner.

    Args:
        app: What ``build_rest_app`` made.
        limits: The same limits.
        shutdown_timeout_s: How long requests in progress may take when it stops.
    """

    __slots__ = ("_limits",)

    def __init__(self, app: web.Application, limits: RestLimits, shutdown_timeout_s: float = 30.0) -> None:
        super().__init__(app, shutdown_timeout=shutdown_timeout_s)
        self._limits = limits

    async def _make_server(self) -> web.Server:
        return RestServer(await super()._make_server(), self._limits)

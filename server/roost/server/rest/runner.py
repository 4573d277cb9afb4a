"""The REST server as a whole: it makes connections, and its drain answers what is under way before it closes them."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from roost.server.rest.lean import LEAN_PATH, LeanPath
from roost.server.rest.lean_protocol import LeanProtocol
from roost.server.rest.limits import RestLimits
from roost.server.rest.protocol import DrainingServer, RestProtocol

_LOOK_S = 0.01
# Two times this may pass until connections in use are closed; aiohttp takes 0 for no limit.
_CUT_OFF_S = 0.05


class RestServer(DrainingServer):
    """Makes a protocol for each connection.

    Args:
        base: Has the handler.
        limits: For all connections.
        lean: Serves plain inference requests; None: aiohttp serves all.
        options: What aiohttp takes besides.
    """

    def __init__(self, base: web.Server, limits: RestLimits, lean: LeanPath | None, **options: Any) -> None:
        super().__init__(base.request_handler, request_factory=base.request_factory, handler_cancellation=True)
        self._lean = lean
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
        loop = asyncio.get_running_loop()
        if self._lean is None:
            return RestProtocol(self, loop=loop, **self._options)
        return LeanProtocol(self, self._lean, loop=loop, **self._options)


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
        return RestServer(await super()._make_server(), self._limits, self.app.get(LEAN_PATH))


async def _settle() -> None:
    """Lets the loop take in what the kernel has: connections to accept, then requests that were sent over them."""
    for _ in range(4):
        await asyncio.sleep(0)

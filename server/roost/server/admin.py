"""The admin listener: what people and tools look at. It changes nothing yet, but is closed to web pages already.

It listens on the loopback address, which every web page in a browser of this machine can reach: by a name that
resolves there (hence only hosts that mean this machine are answered) and by posting across origins.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from contextlib import aclosing
from urllib.parse import urlsplit

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler
from roost.router.view import MeshView
from roost.server.admin_activity import Look, activity_handler
from roost.server.exposition import CONTENT_TYPE
from roost.server.mesh_page import handle_page
from roost.server.metrics import Metrics
from roost.server.openapi import Document
from roost.server.openapi_page import render

_log = logging.getLogger(__name__)

# Each holds figures of all models until it is read.
_MAX_SCRAPES = 8
_SCRAPE_TIMEOUT_S = 60.0
_READS = frozenset({"GET", "HEAD"})
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def build_admin_app(
    view: Callable[[], MeshView],
    metrics: Metrics,
    api: Callable[[], Document] | None = None,
    look: Look | None = None,
) -> web.Application:
    """Makes the application behind ``--admin-port``: ``/metrics``, ``/admin/...`` and ``/docs``.

    Args:
        view: What the mesh looks like now.
        metrics: What Prometheus gets.
        api: The OpenAPI document of the REST API, which ``/docs`` shows.
        look: What happens in the mesh, for those who watch it.
    """

    async def status(request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(view()), content_type="application/json")

    app = web.Application(middlewares=[_json_errors, _this_machine_only, _no_foreign_writes])
    app.router.add_get("/admin/status", status)
    app.router.add_get("/metrics", _metrics_handler(metrics))
    if api is not None:
        app.router.add_get("/docs", _docs_handler(api))
    if look is not None:
        app.router.add_get("/admin/activity", activity_handler(look))
        app.router.add_get("/", handle_page)
    return app


def build_metrics_app(metrics: Metrics) -> web.Application:
    """Makes the application behind ``--metrics-port``: ``/metrics`` for a Prometheus anywhere."""
    app = web.Application(middlewares=[_json_errors])
    app.router.add_get("/metrics", _metrics_handler(metrics))
    return app


def _docs_handler(api: Callable[[], Document]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text=render(api()), content_type="text/html", headers=_PAGE_HEADERS)

    return handle


def _metrics_handler(metrics: Metrics) -> Handler:
    under_way = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal under_way
        if under_way >= _MAX_SCRAPES:
            return _error(503, f"{under_way} scrapes are under way, as many as there may be", {"Retry-After": "1"})
        under_way += 1
        try:
            return await _scrape(request, metrics)
        finally:
            under_way -= 1

    return handle


async def _scrape(request: web.Request, metrics: Metrics) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
    async with aclosing(metrics.render()) as parts:
        first = await anext(parts)  # what fails, fails before the status is sent
        try:
            async with asyncio.timeout(_SCRAPE_TIMEOUT_S):
                await response.prepare(request)
                if request.method != "HEAD":
                    await response.write(first)
                    async for part in parts:
                        await response.write(part)
                await response.write_eof()
        except ConnectionError:
            _log.debug("a scrape was broken off by its client")
        except TimeoutError:
            _log.warning("cut off %s: it did not read the metrics within %g s", request.remote, _SCRAPE_TIMEOUT_S)
            response.force_close()
            if request.transport is not None:
                request.transport.abort()
    return response


def is_this_machine(host: str) -> bool:
    """Whether a Host header names this machine, with or without a port, and not a name that may resolve to it."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname or ""
        _ = parts.port  # raises if it is no number
    except ValueError:
        return False
    if any(char in host for char in "/?#@\\ "):
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_foreign_write(request: web.BaseRequest) -> bool:
    """Whether a web page of another origin asks for a change; programs send neither of the two headers."""
    if request.method in _READS:
        return False
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return True
    origin = request.headers.get("Origin")
    return origin is not None and origin != f"{request.scheme}://{request.host}"


@web.middleware
async def _this_machine_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or not is_this_machine(hosts[0]):
        return _error(403, "the admin listener answers only to localhost, 127.0.0.1 and [::1]")
    return await handler(request)


@web.middleware
async def _no_foreign_writes(request: web.Request, handler: Handler) -> web.StreamResponse:
    if is_foreign_write(request):
        return _error(403, "web pages of another origin can't change anything here")
    return await handler(request)


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        kept = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _error(error.status, f"{error.reason}: {request.method} {request.path}", kept)
    except Exception:
        _log.exception("the admin listener failed at %s %s", request.method, request.path)
        return _error(500, "internal error, see the log")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = orjson.dumps({"error": message})
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)

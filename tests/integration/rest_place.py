"""What the tests of the REST transport share: a server around a data plane, a client, requests, raw connections."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
import uvloop
from aiohttp import web
from roost.server.rest.app import RestLimits, RestRunner, build_rest_app
from roost.server.rest.lean import LEAN_PATH, LeanPath
from roost.server.transport_options import TransportOptions

from tests.fakes import FakeDataPlane

HEADER_LENGTH = "Inference-Header-Content-Length"
LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]


class Served:
    """A real server on a free port, and a client that neither asks for nor undoes compression by itself."""

    def __init__(
        self, plane: FakeDataPlane, runner: RestRunner, lean: LeanPath | None, session: aiohttp.ClientSession
    ) -> None:
        self.plane = plane
        self.runner = runner
        self.lean = lean
        self.port = runner.addresses[0][1]
        self.session = session

    async def call(
        self, method: str, path: str, body: bytes | str | dict[str, Any] | None = None, **headers: str
    ) -> tuple[int, aiohttp.ClientResponse, bytes]:
        data = json.dumps(body) if isinstance(body, dict) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, data=data, headers=named) as response:
            return response.status, response, await response.read()

    async def json(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        status, response, data = await self.call(method, path, body, **headers)
        assert response.content_type == "application/json"
        return status, json.loads(data)

    async def infer(self, model: str, body: Any, **headers: str) -> tuple[int, Any]:
        return await self.json("POST", f"/v2/models/{model}/infer", body, **headers)

    async def connect(self, receive_bytes: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=sock, limit=4096)


@asynccontextmanager
async def serve(
    plane: FakeDataPlane | None = None, options: TransportOptions | None = None, **limits: Any
) -> AsyncIterator[Served]:
    """Runs a server; at its end nothing may be held of the budget."""
    plane = plane or FakeDataPlane()
    rest_limits = RestLimits(**limits)
    app = build_rest_app(plane, rest_limits, options or TransportOptions())
    runner = RestRunner(app, rest_limits)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers={"Accept-Encoding"}) as session:
            yield Served(plane, runner, app.get(LEAN_PATH), session)
    finally:
        await runner.cleanup()
    assert plane.bodies.used_bytes == 0


def run_on(loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, None]) -> None:
    """Runs a test on one of ``LOOPS``."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)


def simple_request(**changes: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "INPUT0", "datatype": "INT32", "shape": [1, 16], "data": list(range(16))},
            {"name": "INPUT1", "datatype": "INT32", "shape": [1, 16], "data": [[1] * 16]},
        ],
        **changes,
    }


def binary_request(**changes: Any) -> tuple[bytes, str]:
    document = {
        "inputs": [
            {"name": name, "datatype": "INT32", "shape": [1, 16], "parameters": {"binary_data_size": 64}}
            for name in ("INPUT0", "INPUT1")
        ],
        **changes,
    }
    head = json.dumps(document).encode()
    return head + np.arange(16, dtype="<i4").tobytes() + np.ones(16, "<i4").tobytes(), str(len(head))


async def read_answer(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Reads one answer off a raw connection: head and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:"))
    return head, await reader.readexactly(length)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until something holds; the test's timeout ends it if it never does."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


def announcement(size: int, extra: str = "", model: str = "simple") -> bytes:
    return f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{extra}\r\n".encode()

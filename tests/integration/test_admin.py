"""The admin listener over HTTP, with made-up views of a mesh."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import orjson
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families
from roost.router.stats import Stats
from roost.router.view import DeviceView, InstanceView, MeshView, WorkerView
from roost.server import cli
from roost.server.admin import build_admin_app, build_metrics_app, is_this_machine
from roost.server.metrics import Metrics
from roost.server.openapi import build_document

INSTANCES = (InstanceView("magika", "1", "ready", 2**20, 1, 0.5),)
VIEW = MeshView(
    ready=True,
    models=3,
    queued=2,
    body_bytes=10,
    body_limit_bytes=100,
    devices=(DeviceView("cpu", 2**30, 2**29, 0),),
    workers=(WorkerView(0, "onnx", "cpu", "up", 42, 1, 0, 1, 2**27, INSTANCES),),
)


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    app = build_admin_app(lambda: VIEW, Metrics(Stats(), lambda: VIEW), lambda: build_document(web.Application()))
    running = TestServer(app)
    async with running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def test_status(server: TestServer, client: ClientSession) -> None:
    async with client.get(server.make_url("/admin/status")) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        body = orjson.loads(await response.read())
    assert body["workers"][0]["instances"][0]["model"] == "magika"
    (device,) = body["devices"]
    assert (device["name"], device["budget_bytes"], device["used_bytes"]) == ("cpu", 2**30, 2**29)


class Gate:
    """Metrics whose scrapes wait until a test lets them go on."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.go = asyncio.Event()

    async def render(self) -> AsyncGenerator[bytes, None]:
        self.scrapes += 1
        await self.go.wait()
        yield b"x 1\n"


async def test_scrapes_are_bounded(client: ClientSession) -> None:
    gate = Gate()
    async with TestServer(build_metrics_app(cast(Metrics, gate))) as server:

        async def scrape() -> int:
            async with client.get(server.make_url("/metrics")) as response:
                await response.read()
                return response.status

        async with asyncio.TaskGroup() as group:
            scrapes = [group.create_task(scrape()) for _ in range(8)]
            while gate.scrapes < 8:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)
            assert await scrape() == 503
            gate.go.set()
        assert [task.result() for task in scrapes] == [200] * 8
        assert await scrape() == 200


async def test_docs_allow_nothing_from_elsewhere(server: TestServer, client: ClientSession) -> None:
    async with client.get(server.make_url("/docs")) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Roost" in await response.text()


async def test_metrics(server: TestServer, client: ClientSession) -> None:
    async with client.get(server.make_url("/metrics")) as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"roost_queued_requests", "roost_requests", "roost_request_seconds"} <= families
    async with client.head(server.make_url("/metrics")) as response:
        assert response.status == 200
        assert await response.read() == b""


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8082", True),
        ("127.0.0.1:8082", True),
        ("127.3.2.1", True),
        ("[::1]", True),
        ("[::1]:8082", True),
        ("", False),
        ("evil.example", False),
        ("evil.example:8082", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.1", False),
        ("10.0.0.1", False),
        ("[::]", False),
        ("0.0.0.0", False),
        ("localhost:x", False),
        ("localhost:", True),
        ("evil@localhost", False),
        ("localhost/x", False),
        ("localhost#", False),
        ("[::1", False),
    ],
)
def test_hosts(host: str, allowed: bool) -> None:
    assert is_this_machine(host) is allowed


async def test_a_page_that_rebinds_its_name_is_refused(server: TestServer, client: ClientSession) -> None:
    for path in ("/admin/status", "/metrics", "/nothing"):
        async with client.get(server.make_url(path), headers={"Host": "evil.example"}) as response:
            assert response.status == 403
            assert "localhost" in (await response.json())["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 405),
        ({"Sec-Fetch-Site": "none"}, 405),
        ({"Sec-Fetch-Site": "same-origin"}, 405),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "here"}, 405),
    ],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "DELETE"])
async def test_writes_of_other_origins_are_refused(
    server: TestServer, client: ClientSession, method: str, headers: dict[str, str], status: int
) -> None:
    if headers.get("Origin") == "here":
        headers = {"Origin": str(server.make_url("/")).rstrip("/")}
    async with client.request(method, server.make_url("/admin/status"), headers=headers) as response:
        assert response.status == status
        assert (await response.json())["error"]


async def test_reads_of_other_origins_are_for_the_browser_to_refuse(server: TestServer, client: ClientSession) -> None:
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    async with client.get(server.make_url("/admin/status"), headers=headers) as response:
        assert response.status == 200
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_errors_are_json(server: TestServer, client: ClientSession) -> None:
    async with client.get(server.make_url("/nothing")) as response:
        assert response.status == 404
        assert await response.json() == {"error": "Not Found: GET /nothing"}
    async with client.post(server.make_url("/metrics")) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


async def test_a_defect_is_an_answer_without_details(client: ClientSession) -> None:
    def broken() -> MeshView:
        raise RuntimeError("secret")

    async with TestServer(build_admin_app(broken, Metrics(Stats(), broken))) as server:
        for path in ("/admin/status", "/metrics"):
            async with client.get(server.make_url(path)) as response:
                assert response.status == 500
                assert await response.json() == {"error": "internal error, see the log"}


async def test_the_metrics_port_answers_under_any_name_and_nothing_else(client: ClientSession) -> None:
    async with TestServer(build_metrics_app(Metrics(Stats(), lambda: VIEW))) as server:
        async with client.get(server.make_url("/metrics"), headers={"Host": "node-7:9090"}) as response:
            assert response.status == 200
        async with client.get(server.make_url("/admin/status")) as response:
            assert response.status == 404


async def test_a_scrape_that_is_broken_off_leaves_the_server_alone(
    client: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    stats = Stats()
    for index in range(5000):
        stats.of(f"model-{index}", "1").ok = 1
    app = build_metrics_app(Metrics(stats, lambda: VIEW))
    async with TestServer(app) as server:
        assert server.port is not None
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with client.get(server.make_url("/metrics")) as response:
            assert response.status == 200
            assert (await response.text()).count("roost_requests_total{") == 5000
    assert not [entry for entry in caplog.records if entry.levelname == "ERROR"]


async def test_roost_status_draws_what_the_server_says(
    server: TestServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a proxy is not for this machine
    assert await asyncio.to_thread(cli.main, ["status", "--admin-port", str(server.port)]) == 0
    drawn = capsys.readouterr().out
    assert "magika" in drawn
    assert "worker 0" in drawn
    monkeypatch.setenv("ROOST_ADMIN_PORT", str(server.port))
    assert await asyncio.to_thread(cli.main, ["status", "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["models"] == 3


async def test_roost_status_at_another_kind_of_server(capsys: pytest.CaptureFixture[str]) -> None:
    async with TestServer(web.Application()) as server:
        url = str(server.make_url("/"))
        assert await asyncio.to_thread(cli.main, ["status", "--admin", url]) == 1
    error = capsys.readouterr().err
    assert "answered 404 Not Found" in error
    assert error.count("\n") == 1

"""The page of the mesh, in a real browser: it shows what the server does, as it does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from roost.router.activity_view import Activity, ModelActivity, ProcessActivity, Question, Totals, WorkerActivity
from roost.router.stats import Stats
from roost.router.view import DeviceView, MeshView
from roost.server.admin import build_admin_app
from roost.server.metrics import Metrics

from tests.browser import Page, browser
from tests.models import write_dummy
from tests.server import RoostServer, started

ROW = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
EMPTY = MeshView(True, 0, 0, 0, 0, (), ())
MIB = 2**20


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path) as opened:
        yield opened


def url_of(server: RoostServer) -> str:
    return f"http://127.0.0.1:{server.ports['admin']}/"


def tile(model: str, place: str) -> str:
    """Whether a model's tile is in a place of the map."""
    return f"[...document.querySelectorAll('{place} .tile')].some(tile => tile.title.startsWith('{model} '))"


async def test_models_come_and_go_and_the_server_too(page: Page, repository: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_dummy(repository / name / "1" / "model.dummy")
    budget = ["--memory-budget", "9MiB", "--workers", "1"]  # room for two
    with started(repository, tmp_path / "server", *budget) as server:
        port = server.ports["admin"]
        await page.open(url_of(server))
        await page.until("document.getElementById('status').textContent === 'ready'")
        await page.until(tile("one", "#shelf"))
        for name in ("one", "two"):
            assert (await asyncio.to_thread(server.post, f"/v2/models/{name}/infer", ROW))[0] == 200
        await page.until(f"{tile('one', '#workers')} && {tile('two', '#workers')} && !{tile('one', '#shelf')}")
        assert (await asyncio.to_thread(server.post, "/v2/models/three/infer", ROW))[0] == 200
        await page.until(f"{tile('three', '#workers')} && {tile('one', '#shelf')}")
        await page.until("document.querySelector('#workers h2').textContent.includes('2 ready')")
        await page.value(
            "document.getElementById('filter').value = 'TW', "
            "document.getElementById('filter').dispatchEvent(new Event('input'))"
        )
        await page.until("document.querySelectorAll('#rows tr').length === 1")
        assert page.complaints == []
    await page.until("document.getElementById('status').textContent.startsWith('no answer')")
    with started(repository, tmp_path / "server", *budget, "--admin-port", str(port)):
        await page.until("document.getElementById('status').textContent === 'ready'")
        await page.until("document.querySelectorAll('#rows tr').length === 1")


def many(question: Question) -> Activity:
    """20,000 models, all of them loaded, of which the busiest change."""
    rows = tuple(
        ModelActivity(f"model-{i:05d}", "1", "ready", 1000 / (i + 1), 0, 0.001, 0, 1, 4 * MIB, (i % 4,), 1, 0.02, 0)
        for i in range(question.top)
    )
    process = ProcessActivity(1, 0.5, 100 * MIB)
    workers = tuple(
        WorkerActivity(i, "onnx", "cpu", "up", 0, process, 1, 1, 0, 20_000 * MIB, {"ready": 5_000}) for i in range(4)
    )
    devices = (DeviceView("cpu", 90_000 * MIB, 80_000 * MIB, 0),)
    return Activity("1", True, 1.0, Totals(20_000, 20_000, 0, 9e3, 0, 0, 0), process, devices, workers, 20_000, rows)


async def test_twenty_thousand_models_are_a_page_of_bounded_size(page: Page) -> None:
    asked: list[Question] = []

    async def look(question: Question) -> Activity:
        asked.append(question)
        return many(question)

    app = build_admin_app(lambda: EMPTY, Metrics(Stats(), lambda: EMPTY), look=look)
    async with TestServer(app) as server:
        await page.resize(1280, 900)
        await page.open(str(server.make_url("/")))
        await page.until("document.querySelectorAll('#workers article').length === 4")
        assert await page.value("document.querySelectorAll('.tile').length") <= 400
        assert await page.value("document.querySelectorAll('#rows tr').length") <= 100
        assert "and 4,925 more" in await page.value("document.querySelector('.map').textContent")
        await page.value("document.querySelector('th[data-order=memory] button').click()")
        await page.until("document.querySelector('th[data-order=memory]').getAttribute('aria-sort') === 'descending'")
        await page.until("document.querySelector('th[data-order=rate]').getAttribute('aria-sort') === null")
        background = "getComputedStyle(document.body).backgroundColor"
        await page.prefer(prefers_color_scheme="dark")
        dark = await page.value(background)
        await page.prefer(prefers_color_scheme="light")
        assert await page.value(background) != dark
        await page.resize(400, 800)
        await page.until("document.documentElement.scrollWidth <= 400")  # the table alone may be scrolled sideways
    assert asked[-1].order == "memory"
    assert page.complaints == []


async def test_the_page_takes_nothing_from_elsewhere_and_is_for_this_machine() -> None:
    async def look(question: Question) -> Activity:
        return many(question)

    app = build_admin_app(lambda: EMPTY, Metrics(Stats(), lambda: EMPTY), look=look)
    async with TestServer(app) as server, ClientSession() as client:
        async with client.get(server.make_url("/")) as response:
            text, policy = await response.text(), response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        for outside in ("src=", "href=", "@import", "url(", "unsafe-eval"):
            assert outside not in text
        async with client.get(server.make_url("/"), headers={"Host": "evil.example"}) as response:
            assert response.status == 403

"""Chromium without a window, driven over its DevTools protocol: just what the tests of pages need."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

DEADLINE_S = 30.0
_POLL_S = 0.05
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # root has no other choice, and the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find_browser() -> str:
    """The command of a Chromium; without one the test is skipped, but not under CI."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    if os.environ.get("CI") == "true":
        pytest.fail("no Chromium: apt-get install chromium")
    pytest.skip("no Chromium: apt-get install chromium")


class Page:
    """A tab.

    Attributes:
        complaints: What the browser and the page's script complained of, refused resources included.
    """

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []

    async def listen(self) -> None:
        """Takes what the browser says, until it ends."""
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                break
            document = message.json()
            if "id" in document:
                self._answers.pop(document["id"]).set_result(document)
            else:
                self._note(document["method"], document["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(DEADLINE_S):
            answer = await self._answers[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Goes to an address, and waits until it is there."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Waits until an expression is true in the page, and returns it."""
        give_up = time.monotonic() + DEADLINE_S
        while not (seen := await self.value(expression)):
            assert time.monotonic() < give_up, f"never came: {expression}; {self.complaints}"
            await asyncio.sleep(_POLL_S)
        return seen

    async def prefer(self, **features: str) -> None:
        """Sets what the user prefers: ``prefers_color_scheme="dark"``."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=listed)

    async def resize(self, width: int, height: int) -> None:
        """Makes the window so large, in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def screenshot(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A Chromium with one empty tab; its profile is in ``folder``."""
    command = [find_browser(), *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with (folder / "browser.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, start_new_session=True)
    try:
        port_file = folder / "profile" / "DevToolsActivePort"
        give_up = time.monotonic() + DEADLINE_S
        while not port_file.exists() or "\n" not in port_file.read_text():
            assert process.returncode is None, (folder / "browser.log").read_text()
            assert time.monotonic() < give_up, (folder / "browser.log").read_text()
            await asyncio.sleep(_POLL_S)
        port = int(port_file.read_text().split()[0])
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/json/list") as response:
            target = next(item for item in await response.json() if item["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listener = asyncio.ensure_future(page.listen())
                try:
                    yield page
                finally:
                    listener.cancel()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

"""Looking at a running mesh: ``/admin/activity``, and ``roost top`` at a terminal and without one."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from typing import Any
from urllib.request import urlopen

import pytest

from tests.models import write_dummy
from tests.server import DEADLINE_S, HOST, RoostServer, started, wait_for

ROW = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
STYLES = re.compile(rb"\x1b\[[0-9;]*m")
TOP = [sys.executable, "-m", "roost.server.cli", "top"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("looking")
    for name in ("busy", "idle", "unused"):
        write_dummy(folder / "models" / name / "1" / "model.dummy")
    write_dummy(folder / "models" / "broken" / "1" / "model.dummy", fail_load="no")
    with started(folder / "models", folder / "server", "--workers", "2") as running:
        yield running


def ask(server: RoostServer, model: str) -> int:
    return server.post(f"/v2/models/{model}/infer", ROW)[0]


def look(server: RoostServer, query: str = "") -> dict[str, Any]:
    with urlopen(f"http://{HOST}:{server.ports['admin']}/admin/activity{query}", timeout=DEADLINE_S) as response:
        found: dict[str, Any] = json.load(response)
    return found


def look_twice(server: RoostServer, model: str) -> dict[str, Any]:
    """A look that has seen a request to the model since the one before."""

    def seen() -> dict[str, Any] | None:
        ask(server, model)
        view = look(server)
        return view if view["window_s"] and any(row["requests_per_s"] for row in view["models"]) else None

    view = wait_for(seen, "a rate")
    assert view is not None
    return view


def test_what_is_asked_for_comes_first(server: RoostServer) -> None:
    assert ask(server, "idle") == 200
    assert ask(server, "broken") == 503
    view = look_twice(server, "busy")
    rows = {row["model"]: row for row in view["models"]}
    assert view["models"][0]["model"] == "busy"
    assert rows["busy"]["state"] == "ready"
    assert len(rows["busy"]["workers"]) == rows["busy"]["loads"] == 1
    assert rows["busy"]["bytes"] > 0
    assert rows["busy"]["latency_s"] > 0
    assert rows["broken"]["state"] == "failed"
    assert rows["unused"]["state"] == "standby"
    assert view["matching"] == view["totals"]["models"] == 4
    assert view["totals"]["loaded"] == 2
    assert view["totals"]["requests_per_s"] >= rows["busy"]["requests_per_s"] > 0
    assert [worker["state"] for worker in view["workers"]] == ["up", "up"]
    assert sum(worker["copies"].get("ready", 0) for worker in view["workers"]) == 2
    assert sum(worker["accounted_bytes"] for worker in view["workers"]) == view["devices"][0]["used_bytes"]
    assert all(worker["process"]["private_bytes"] for worker in view["workers"])
    assert view["server"]["pid"] == server.pid


@pytest.mark.parametrize(
    ("query", "expected", "matching"),
    [
        ("?sort=name", ["broken", "busy", "idle", "unused"], 4),
        ("?sort=name&top=2", ["broken", "busy"], 4),
        ("?sort=name&filter=U", ["busy", "unused"], 2),
        ("?filter=nothing", [], 0),
        ("?top=0", [], 4),
    ],
)
def test_questions(server: RoostServer, query: str, expected: list[str], matching: int) -> None:
    for model in ("busy", "idle", "broken"):
        ask(server, model)
    look(server)
    view = look_twice(server, "busy") and look(server, query)
    assert [row["model"] for row in view["models"]] == expected
    assert view["matching"] == matching


def test_without_a_terminal_it_is_printed_once(server: RoostServer) -> None:
    ask(server, "busy")
    line = [*TOP, "--admin-port", str(server.ports["admin"])]
    ended = subprocess.run(line, capture_output=True, timeout=DEADLINE_S, check=False)
    text = ended.stdout.decode()
    assert ended.returncode == 0, ended.stderr
    assert "busy" in text
    assert "4 of 4" in text
    assert "\x1b" not in text


class Terminal:
    """``roost top`` at a terminal of its own."""

    def __init__(self, server: RoostServer, columns: int, **environ: str) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.seen = b""
        self.process = subprocess.Popen(
            [*TOP, "--admin-port", str(server.ports["admin"])],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", **environ},
            start_new_session=True,
        )
        os.close(slave)

    def wait_for(self, text: str) -> None:
        """Reads until the text was drawn, not counting what was drawn before the last time."""
        give_up = time.monotonic() + DEADLINE_S
        while text.encode() not in STYLES.sub(b"", self.seen):
            assert time.monotonic() < give_up, self.seen.decode(errors="replace")
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)
        self.seen = b""

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self) -> int:
        try:
            while select.select([self.master], [], [], DEADLINE_S)[0]:
                self.seen += os.read(self.master, 65536)
        except OSError:  # the other side has closed
            pass
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def test_it_is_alive_at_a_terminal(server: RoostServer, terminals: list[Terminal]) -> None:
    terminal = Terminal(server, 100)
    terminals.append(terminal)
    terminal.wait_for("req/s▾")
    terminal.press("n")
    terminal.wait_for("unused")
    terminal.press("/idl")
    terminal.wait_for("filter: idl")
    terminal.press("\r")
    terminal.wait_for("1 of 1")
    terminal.press("q")
    assert terminal.end() == 0
    assert b"\x1b[?1049l" in terminal.seen  # the screen is as it was


def test_no_colours_where_none_are_wanted(server: RoostServer, terminals: list[Terminal]) -> None:
    terminal = Terminal(server, 60, NO_COLOR="1")
    terminals.append(terminal)
    terminal.wait_for("cpu")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert b"\x1b[32m" not in terminal.seen

"""``roost status``: how a mesh is drawn, and what is said when there is none."""

from __future__ import annotations

import io
import socket
from dataclasses import replace

import orjson
import pytest
from rich.console import Console
from roost.router.view import DeviceView, InstanceView, MeshView, WorkerView
from roost.server import cli
from roost.server.admin_client import AdminError
from roost.server.status import parse_view
from roost.server.status_view import draw, format_idle

MIB = 2**20


def instances(count: int) -> tuple[InstanceView, ...]:
    return tuple(InstanceView(f"model-{i:03d}", "1", "ready", MIB, 0, float(i)) for i in range(count))


def mesh(*workers: WorkerView, ready: bool = True) -> MeshView:
    devices = (DeviceView("cpu", 1024 * MIB, 512 * MIB, 128 * MIB),)
    return MeshView(ready, 1234, 5, 3 * MIB, 512 * MIB, devices, workers)


def worker(*loaded: InstanceView) -> WorkerView:
    return WorkerView(0, "onnx", "cpu", "up", 4321, 1, 2, 1, 600 * MIB, loaded)


def drawn(view: MeshView, width: int = 80, rows: int | None = 10, encoding: str = "utf-8") -> list[str]:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    draw(view, Console(file=stream, width=width, highlight=False, color_system=None), rows)
    stream.flush()
    return buffer.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_everything_is_there_and_nothing_is_wider_than_the_terminal(width: int) -> None:
    lines = drawn(mesh(worker(*instances(47))), width)
    assert all(len(line) <= width for line in lines)
    if width >= 80:
        text = "\n".join(lines)
        for part in ("ready", "1,234 models", "47 loaded", "5 waiting", "512 MiB of 1 GiB", "128 MiB reserved", "50 %"):
            assert part in text
        for part in ("worker 0", "up", "pid 4321", "600 MiB private", "1 running", "2 restarts", "… and 37 more"):
            assert part in text
        assert "…" not in text.replace("… and", "")


def test_the_bar_shows_loaded_reserved_and_free() -> None:
    (line,) = [line for line in drawn(mesh()) if "reserved" in line]
    loaded, reserved, free = line.count("━"), line.count("╌"), line.count("─")
    assert loaded + reserved == free
    assert loaded == pytest.approx(3 * reserved, abs=2)


def test_models_in_use_come_first_then_the_most_recently_used() -> None:
    loaded = [
        InstanceView("old", "1", "ready", MIB, 0, 90.0),
        InstanceView("waiting", "1", "waiting", MIB, 0, 0.0),
        InstanceView("fresh", "1", "ready", MIB, 0, 2.0),
        InstanceView("loading", "1", "loading", MIB, 0, 0.0),
        InstanceView("used", "1", "ready", MIB, 3, 50.0),
    ]
    lines = drawn(mesh(worker(*loaded)))
    shown = [line.split()[0] for line in lines if line.startswith("   ") and "1 MiB" in line]
    assert shown == ["used", "loading", "fresh", "old", "waiting"]
    assert any("used" in line and "in use" in line for line in lines)


def test_rows_are_bounded_unless_all_are_asked_for() -> None:
    view = mesh(worker(*instances(47)))
    assert sum("model-" in line for line in drawn(view, rows=3)) == 3
    assert any("… and 44 more" in line and "44 MiB" in line for line in drawn(view, rows=3))
    assert sum("model-" in line for line in drawn(view, rows=None)) == 47


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert any("... and 37 more" in line for line in drawn(mesh(worker(*instances(47))), encoding="ascii"))


def test_a_mesh_without_anything() -> None:
    view = MeshView(False, 0, 0, 0, 0, (DeviceView("cpu", 0, 0, 0),), ())
    assert "not ready" in "\n".join(drawn(view))


def test_names_are_not_markup() -> None:
    assert any("[red]m" in line for line in drawn(mesh(worker(InstanceView("[red]m", "1", "ready", 1, 0, 0.0)))))


@pytest.mark.parametrize(
    ("idle_s", "expected"),
    [(0, "now"), (0.9, "now"), (1, "1 s"), (59.4, "59 s"), (60, "1 m"), (3599, "59 m"), (7200, "2 h"), (1e6, "11 d")],
)
def test_idle_times(idle_s: float, expected: str) -> None:
    assert format_idle(idle_s) == expected


def test_a_view_survives_json() -> None:
    view = mesh(worker(*instances(3)), replace(worker(), id=1, state="down"))
    assert parse_view(orjson.dumps(view)) == view


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b"<html>", b'{"workers": [1], "devices": []}', b"\xff"])
def test_other_answers_are_refused(body: bytes) -> None:
    with pytest.raises(AdminError, match="not that of a Roost"):
        parse_view(body)


def test_nobody_there_is_one_line_and_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound, but not listening: a connection is refused, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert cli.main(["status", "--admin-port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"roost: error: no Roost at http://127.0.0.1:{port}: connection refused")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--admin-port", "x"], "--admin-port: 'x' is not a port from 1 to 65535"),
        (["--admin", "ftp://x"], "--admin: 'ftp://x' is not a URL such as http://127.0.0.1:8082"),
        (["--admin", "http://h:99999"], "--admin: 'http://h:99999' is not a URL such as http://127.0.0.1:8082"),
        (["--admin", "h", "--admin-port", "1"], "--admin and --admin-port can't be given together"),
        (["--rows", "few"], "--rows: 'few' is neither a number nor 'all'"),
        (["--jason"], "unknown flag --jason; did you mean --json?"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], argv: list[str], expected: str) -> None:
    assert cli.main(["status", *argv]) == 2
    assert capsys.readouterr().err == f"roost: error: {expected}\n"

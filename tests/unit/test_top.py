"""``roost top``: what is counted between two looks, how it is drawn, and what keys do."""

from __future__ import annotations

import io

import orjson
import pytest
from rich.console import Console
from roost.core.errors import Code, InvalidArgument
from roost.router.activity_view import (
    Activity,
    ModelActivity,
    Order,
    ProcessActivity,
    Question,
    Totals,
    WorkerActivity,
)
from roost.router.rates import Row
from roost.router.stats import ModelStats
from roost.router.usage import CpuTimes
from roost.router.view import DeviceView
from roost.server import cli
from roost.server.admin_activity import read_question
from roost.server.admin_client import AdminError
from roost.server.top import parse_activity
from roost.server.top_keys import Choice
from roost.server.top_view import draw_top, format_rate, format_seconds

MIB = 2**20


def activity(models: int = 40, workers: int = 2, *, ready: bool = True) -> Activity:
    totals = Totals(20_000, 99, 5, 1234.5, 0.5, 12.0, 11.0)
    rows = tuple(
        ModelActivity(f"model-{i:03d}", "1", "ready", 40.0 - i, 0.0, 0.0012, 0, 1, 4 * MIB, (i % 2,), 3, 0.04, 2)
        for i in range(models)
    )
    process = ProcessActivity(4321, 0.42, 600 * MIB)
    places = tuple(
        WorkerActivity(i, "onnx", "cpu", "up", 1, process, 1, 2, 0, 200 * MIB, {"ready": 49, "loading": 1})
        for i in range(workers)
    )
    devices = (DeviceView("cpu", 1024 * MIB, 512 * MIB, 128 * MIB),)
    return Activity("1.0", ready, 1.0, totals, process, devices, places, 20_000, rows, rows[:1])


def drawn(
    view: Activity, width: int, height: int = 24, rows: int | None = None, encoding: str = "utf-8", **choice: object
) -> list[str]:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    console = Console(file=stream, width=width, height=height, highlight=False, color_system=None)
    console.print(draw_top(view, console, Choice(**choice), rows=rows))  # type: ignore[arg-type]
    stream.flush()
    return buffer.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 300])
@pytest.mark.parametrize("height", [10, 24, 60])
def test_it_fits_into_the_terminal(width: int, height: int) -> None:
    lines = drawn(activity(workers=3), width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height, 14)


@pytest.mark.parametrize(
    ("width", "shown", "hidden"),
    [
        (40, ["model-000", "ready", "40.0", "4 MiB"], ["copies", "version"]),
        (80, ["latency", "1.2 ms", "wait", "cold", "42% cpu", "600 MiB", "512 MiB of 1 GiB"], ["evicted", "version"]),
        (140, ["1,234 req/s", "99 of 20,000 loaded", "50 loaded · 1 loading · 2 running · 1 restart", "evicted"], []),
    ],
)
def test_a_wide_terminal_shows_more(width: int, shown: list[str], hidden: list[str]) -> None:
    text = "\n".join(drawn(activity(), width))
    assert [part for part in shown if part not in text] == []
    assert [part for part in hidden if part in text] == []


def test_ascii_is_enough_and_rows_can_be_said() -> None:
    lines = drawn(activity(), 120, rows=7, encoding="ascii")
    assert sum("model-" in line for line in lines) == 7
    assert any("#" in line for line in lines)


def test_the_order_and_the_filter_are_seen() -> None:
    lines = drawn(activity(), 160, order=Order.MEMORY, needle="model", paused=True)
    assert any("memory▾" in line for line in lines)
    assert "'model': 15 of 20,000  paused" in lines[-1]
    assert "filter: mod▏" in drawn(activity(), 80, needle="mod", typing=True)[-1]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("m", Choice(Order.MEMORY)),
        ("mrc", Choice(Order.LOADS)),
        ("/bert\r", Choice(needle="bert")),
        ("/ber\x7f\x7ft\r", Choice(needle="bt")),
        ("/q\x15m", Choice(needle="m", typing=True)),
        ("/bert\x1b", Choice()),
        ("\x1b[A", Choice()),
        ("p", Choice(paused=True)),
        ("pp", Choice()),
        ("q", Choice(done=True)),
        ("/\x03", Choice(typing=True, done=True)),
        ("\x00é!", Choice()),
    ],
)
def test_keys(keys: str, expected: Choice) -> None:
    choice = Choice()
    choice.press(keys)
    assert choice == expected


def test_escape_drops_the_filter() -> None:
    choice = Choice(needle="bert")
    choice.press("\x1b")
    assert choice == Choice()


def test_an_activity_survives_json() -> None:
    assert parse_activity(orjson.dumps(activity())) == activity()


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"totals": 1}', b"\xff"])
def test_other_answers_are_refused(body: bytes) -> None:
    with pytest.raises(AdminError, match="not that of a Roost"):
        parse_activity(body)


def test_rates_are_what_was_counted_between_two_looks() -> None:
    stats, row = ModelStats("m", "1"), Row("m", "1")
    stats.ok, stats.ok_s = 1000, 10.0
    row.count(stats, 0.0)  # nobody looked before
    assert (row.requests_per_s, row.latency_s) == (0.0, 0.0)
    stats.ok, stats.ok_s, stats.errors = 1010, 10.5, {Code.UNAVAILABLE: 2, Code.INTERNAL: 4}
    row.count(stats, 2.0)
    assert (row.requests_per_s, row.failures_per_s) == (8.0, 3.0)
    assert row.latency_s == pytest.approx(0.05)
    row.count(stats, 2.0)
    assert (row.requests_per_s, row.failures_per_s, row.latency_s) == (0.0, 0.0, 0.0)
    fresh = ModelStats("m", "1")  # the model went and came back
    fresh.ok = 4
    row.count(fresh, 2.0)
    assert row.requests_per_s == 2.0
    late = Row("n", "1")  # its first request came after the first look
    late.count(fresh, 2.0)
    assert late.requests_per_s == 2.0


def test_a_model_is_as_its_best_copy() -> None:
    row = Row("m", "1")
    row.add_copy(1, "unloading", 10, 0)
    assert row.view().state == "unloading"
    row.add_copy(0, "ready", 20, 3)
    row.add_copy(2, "loading", 20, 0)
    view = row.view()
    assert (view.state, view.bytes, view.leases, view.workers) == ("ready", 50, 3, (1, 0, 2))
    assert row.moving
    row.clear(1)
    assert (row.view().state, row.view().workers, row.moving) == ("standby", (), False)


def test_busy_cpus_are_counted_from_look_to_look() -> None:
    used: dict[int, float | None] = {7: 1.0}
    times = CpuTimes(lambda pid: used.get(pid))
    assert times.since_last(7, 10.0) == 0.0
    used[7] = 2.5
    assert times.since_last(7, 12.0) == 0.75
    used[7] = None  # it has ended, and another one gets its number
    assert times.since_last(7, 13.0) == 0.0
    used[7] = 0.1
    assert times.since_last(7, 14.0) == 0.0
    assert times.since_last(0, 14.0) == 0.0


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, Question()),
        ({"sort": "memory", "filter": "BERT", "top": "3"}, Question(Order.MEMORY, "BERT", 3)),
        ({"sort": "size"}, "sort is one of rate"),
        ({"top": "-1"}, "top is a number"),
        ({"top": "1001"}, "top is a number"),
        ({"top": "9" * 5000}, "top is a number"),
    ],
)
def test_questions(query: dict[str, str], expected: Question | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(InvalidArgument, match=expected):
            read_question(query)
    else:
        assert read_question(query) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, ""), (0.26, "0.3"), (99.94, "99.9"), (99.96, "100"), (12345.6, "12,346")],
)
def test_rates_in_words(value: float, expected: str) -> None:
    assert format_rate(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, ""), (0.00035, "0.35 ms"), (0.0012, "1.2 ms"), (0.0124, "12 ms"), (0.9999, "1000 ms"), (1.25, "1.2 s")],
)
def test_times_in_words(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--sort", "size"], "--sort: 'size' is none of rate, memory, queue, loads, latency, name"),
        (["--interval", "1ms"], "--interval: '1ms' is not from 1s to 1h"),
        (["--rows", "0"], "--rows: '0' is not a number from 1 to 1000"),
        (["--admin-port", "x"], "--admin-port: 'x' is not a port from 1 to 65535"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], argv: list[str], expected: str) -> None:
    assert cli.main(["top", *argv]) == 2
    assert capsys.readouterr().err == f"roost: error: {expected}\n"

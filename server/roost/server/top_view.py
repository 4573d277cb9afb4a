"""How ``roost top`` looks: a line of totals, a line for each device and worker, and the models that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console, Group, JustifyMethod, OverflowMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from roost.core.units import format_bytes
from roost.router.activity_view import Activity, ModelActivity, Order, WorkerActivity
from roost.runtimes.adapters import DEFAULT_KIND
from roost.server.terminal_bars import STATE_STYLES, WORKER_STYLES, bar, dot, has_unicode
from roost.server.top_keys import Choice

_MIN_BAR, _MAX_BAR = 6, 28
_BESIDE_BARS = 46  # what a worker's line has besides its two bars
_LINES_AROUND = 6  # totals, blank lines, the head of the table, keys
_MIN_ROWS = 3
_WORKERS_SHARE = 3  # workers get at most a third of the lines
_FACTS_FROM = 90  # columns, from which on there is room for what a worker has in words


class _Column(NamedTuple):
    """A column of the table of models, and how wide a terminal has to be for it."""

    title: str
    order: Order | None
    wide: int
    text: Callable[[ModelActivity], str]


_COLUMNS = (
    _Column("version", None, 100, lambda model: model.version),
    _Column("state", None, 0, lambda model: model.state),
    _Column("req/s", Order.RATE, 0, lambda model: format_rate(model.requests_per_s)),
    _Column("fail/s", None, 110, lambda model: format_rate(model.failures_per_s)),
    _Column("latency", Order.LATENCY, 80, lambda model: format_seconds(model.latency_s)),
    _Column("wait", Order.QUEUE, 60, lambda model: _count(model.queued)),
    _Column("memory", Order.MEMORY, 40, lambda model: format_bytes(model.bytes) if model.bytes else ""),
    _Column("copies", None, 70, lambda model: _count(len(model.workers))),
    _Column("cold", Order.LOADS, 60, lambda model: _count(model.loads)),
    _Column("load", None, 100, lambda model: format_seconds(model.load_s)),
    _Column("evicted", None, 120, lambda model: _count(model.evictions)),
    _Column("on", None, 120, lambda model: ",".join(map(str, sorted(set(model.workers))))),
)


def draw_top(view: Activity, console: Console, choice: Choice, *, rows: int | None, problem: str = "") -> Group:
    """What is to be shown.

    Args:
        view: What happens now.
        console: Where it is to be shown.
        choice: What was chosen to see.
        rows: How many models; None for as many as fit into the terminal.
        problem: Why the view is not of now; empty if it is.
    """
    unicode = has_unicode(console)
    parts: list[RenderableType] = [_totals(view, unicode=unicode), Text()]
    most = len(view.workers) if rows is not None else max(1, console.height // _WORKERS_SHARE - len(view.devices))
    parts.append(_machine(view, most, console.width, unicode=unicode))
    parts.append(Text())
    if rows is None:
        shown_workers = min(len(view.workers), most) + (len(view.workers) > most)
        rows = max(_MIN_ROWS, console.height - _LINES_AROUND - shown_workers - len(view.devices))
    parts.append(Padding(_models(view.models[:rows], choice, console.width, unicode=unicode), (0, 1)))
    parts.append(_footer(view, choice, min(rows, len(view.models)), problem, unicode=unicode))
    return Group(*parts)


def rows_wanted(console: Console) -> int:
    """How many models can be seen at most."""
    return max(_MIN_ROWS, console.height)


def _totals(view: Activity, *, unicode: bool) -> Text:
    line = Text(" Roost  ", style="bold", no_wrap=True, overflow="ellipsis" if unicode else "crop")
    line.append_text(dot("ready" if view.ready else "not ready", "green" if view.ready else "red", unicode=unicode))
    totals = view.totals
    facts = [
        (f"{format_rate(totals.requests_per_s) or '0'}", "req/s"),
        (f"{totals.queued:,}", "waiting"),
        (f"{totals.loaded:,}", f"of {totals.models:,} loaded"),
        (format_rate(totals.loads_per_s) or "0", "loads/s"),
        (format_rate(totals.evictions_per_s) or "0", "evictions/s"),
        (f"{view.server.cpus:.0%}", f"cpu, {format_bytes(view.server.private_bytes)} in front"),
    ]
    if totals.failures_per_s:
        facts.insert(1, (format_rate(totals.failures_per_s), "failures/s"))
    for index, (figure, word) in enumerate(facts):
        line.append("   " if index == 0 else " · " if unicode else ", ", style="not bold dim")
        line.append(figure, style="bold red" if word == "failures/s" else "bold")
        line.append(f" {word}", style="not bold dim")
    return line


def _machine(view: Activity, most: int, width: int, *, unicode: bool) -> RenderableType:
    """A line for each device and for each worker: memory, load, what it has."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(6):
        table.add_column(no_wrap=True, overflow="ellipsis" if unicode else "crop")
    cells = max(_MIN_BAR, min(_MAX_BAR, (width - _BESIDE_BARS) // 2))
    budget_bytes = view.devices[0].budget_bytes  # of the machine's memory, which each worker's process is in
    for device in view.devices:
        filled = bar(device.used_bytes, device.budget_bytes, cells, reserved=device.reserved_bytes, unicode=unicode)
        figures = f"{format_bytes(device.used_bytes)} of {format_bytes(device.budget_bytes)}"
        figures += f", {format_bytes(device.mapped_bytes)} mapped" if device.mapped_bytes else ""
        figures += f", {100 * device.utilization:.0f} % busy" if device.utilization is not None else ""
        table.add_row(Text(f" {device.name}", style="bold"), Text("budget", style="dim"), filled, figures)
    # The figures of a device are longer than those of a worker, so they have a table of their own.
    workers = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(6 if width >= _FACTS_FROM else 5):
        workers.add_column(no_wrap=True, overflow="ellipsis" if unicode else "crop")
    for worker in view.workers[:most]:
        row = _worker_cells(worker, budget_bytes, cells, unicode=unicode)
        workers.add_row(*row[: len(workers.columns)])
    if len(view.workers) > most:
        workers.add_row(Text(f" {'…' if unicode else '...'} and {len(view.workers) - most} more", style="dim"))
    return Group(table, workers)


def _worker_cells(worker: WorkerActivity, budget_bytes: int, cells: int, *, unicode: bool) -> list[Text]:
    private_bytes, load = worker.process.private_bytes, worker.process.cpus / max(1, worker.threads)
    facts = [] if worker.kind == DEFAULT_KIND else [worker.kind]
    facts += [f"{sum(worker.copies.values()):,} loaded"]
    facts += [f"{count} {state}" for state, count in worker.copies.items() if state != "ready"]
    facts += [f"{worker.in_flight} running"] if worker.in_flight else []
    facts += [f"{worker.restarts} restart{'s' if worker.restarts > 1 else ''}"] if worker.restarts else []
    facts += [f"{format_bytes(worker.accounted_bytes)} accounted"]
    name = Text.assemble((f" {worker.id} ", "bold"))
    name.append_text(dot(worker.state, WORKER_STYLES.get(worker.state, "red"), unicode=unicode))
    return [
        name,
        bar(private_bytes, budget_bytes, cells, unicode=unicode),
        Text(f"{format_bytes(private_bytes):>9}"),
        bar(min(1.0, load), 1.0, cells, unicode=unicode),
        Text(f"{load:>5.0%} cpu"),
        Text((" · " if unicode else ", ").join(facts), style="dim"),
    ]


def _models(models: Sequence[ModelActivity], choice: Choice, width: int, *, unicode: bool) -> RenderableType:
    columns = [column for column in _COLUMNS if width >= column.wide]
    overflow: OverflowMethod = "ellipsis" if unicode else "crop"
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", width=max(10, width - 2))
    style = "bold not dim" if choice.order is Order.NAME else ""
    table.add_column(Text("model", style=style), no_wrap=True, overflow=overflow, ratio=1)
    for column in columns:
        chosen = column.order is choice.order
        mark = ("▾" if unicode else "*") if chosen else ""
        title = Text(column.title + mark, style="bold not dim" if chosen else "")
        justify: JustifyMethod = "left" if column.title in ("version", "state", "on") else "right"
        table.add_column(title, no_wrap=True, justify=justify, max_width=12)
    for model in models:
        busy = bool(model.requests_per_s or model.leases)
        cells = [Text(model.model, style="bold" if busy else "")]
        for column in columns:
            styled = STATE_STYLES.get(model.state, "") if column.title == "state" else ""
            cells.append(Text(column.text(model), style=styled or ("red" if column.title == "fail/s" else "")))
        table.add_row(*cells)
    return table


def _footer(view: Activity, choice: Choice, shown: int, problem: str, *, unicode: bool) -> Text:
    line = Text(" ", no_wrap=True, overflow="ellipsis" if unicode else "crop")
    if problem:
        return line.append(problem, style="bold red")
    if choice.typing:
        line.append("filter: ", style="dim")
        line.append(choice.needle + ("▏" if unicode else "_"), style="bold")
        return line.append("   Enter: keep, Esc: drop", style="dim")
    if choice.needle:
        line.append(f"'{choice.needle}': ", style="bold")
    line.append(f"{shown:,} of {view.matching:,}", style="")
    line.append("  paused" if choice.paused else "", style="bold yellow")
    keys = "  sort: r rate, t latency, w wait, m memory, c cold starts, n name   / filter   p pause   q quit"
    return line.append(keys, style="dim")


def format_rate(per_s: float) -> str:
    """A rate in at most five characters or so; empty if it is 0."""
    if not per_s:
        return ""
    return f"{per_s:,.0f}" if per_s >= 99.95 else f"{per_s:.1f}"


def format_seconds(seconds: float) -> str:
    """A duration such as ``0.35 ms``, ``12 ms`` or ``1.2 s``; empty if it is 0."""
    if not seconds:
        return ""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1e3, "ms")
    return f"{value:.{0 if value >= 9.995 else 2 if value < 0.995 else 1}f} {unit}"


def _count(number: int) -> str:
    return f"{number:,}" if number else ""

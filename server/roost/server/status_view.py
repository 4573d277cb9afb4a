"""How ``roost status`` looks: a line for the server, a bar for each device, a table for each worker."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from roost.core.units import format_bytes
from roost.router.view import InstanceView, MeshView, WorkerView
from roost.runtimes.adapters import DEFAULT_KIND
from roost.server.terminal_bars import STATE_STYLES, WORKER_STYLES, bar, dot, has_unicode

_STATE_ORDER = {"loading": 0, "draining": 1, "unloading": 2, "ready": 3, "waiting": 4}
_MIN_BAR, _MAX_BAR = 12, 48


def draw(view: MeshView, console: Console, rows: int | None = 10) -> None:
    """Prints a mesh; ``rows`` models of each worker, None for all."""
    unicode = has_unicode(console)
    parts: list[RenderableType] = [Text(), _server_line(view, unicode=unicode), Text()]
    parts.append(Padding(_devices(view, console.width, unicode=unicode), (0, 0, 0, 1)))
    for worker in view.workers:
        parts.append(Text())
        parts.append(_worker_line(worker, unicode=unicode))
        if worker.instances:
            parts.append(Padding(_models(worker, rows, console.width, unicode=unicode), (0, 1, 0, 3)))
    parts.append(Text())
    console.print(Group(*parts))


def _server_line(view: MeshView, *, unicode: bool) -> Text:
    resident = len({(i.model, i.version) for worker in view.workers for i in worker.instances if i.state == "ready"})
    separator = (" · " if unicode else ", ", "dim")
    line = Text(" Roost  ", style="bold", no_wrap=True, overflow="ellipsis")
    line.append_text(dot("ready" if view.ready else "not ready", "green" if view.ready else "red", unicode=unicode))
    for index, (count, word) in enumerate(((view.models, "models"), (resident, "loaded"), (view.queued, "waiting"))):
        line.append("   ") if index == 0 else line.append(*separator)
        line.append(f"{count:,}", style="bold")
        line.append(f" {word}", style="not bold dim")
    line.append(*separator)
    line.append(format_bytes(view.body_bytes), style="bold")
    line.append(" in bodies", style="not bold dim")
    return line


def _devices(view: MeshView, width: int, *, unicode: bool) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    bar_width = max(_MIN_BAR, min(_MAX_BAR, width - 58))
    for device in view.devices:
        percent = f"{100 * device.used_bytes // max(1, device.budget_bytes)} %"
        figures = Text.assemble(
            (format_bytes(device.used_bytes), "bold"), (f" of {format_bytes(device.budget_bytes)}", "dim")
        )
        if device.reserved_bytes:
            figures.append(f"  {format_bytes(device.reserved_bytes)} reserved", style="yellow")
        if device.mapped_bytes:
            figures.append(f"  {format_bytes(device.mapped_bytes)} mapped", style="dim")
        if device.utilization is not None:
            figures.append(f"  {100 * device.utilization:.0f} % busy", style="dim")
        if device.product:
            figures.append(f"  {device.product}", style="dim")
        filled = bar(
            device.used_bytes,
            device.budget_bytes,
            bar_width,
            reserved=device.reserved_bytes,
            unicode=unicode,
        )
        table.add_row(device.name, filled, percent, figures)
    return table


def _worker_line(worker: WorkerView, *, unicode: bool) -> Text:
    line = Text(f" worker {worker.id}  ", style="bold", no_wrap=True, overflow="ellipsis")
    line.append_text(dot(worker.state, WORKER_STYLES.get(worker.state, "red"), unicode=unicode))
    facts = [worker.device] if worker.kind == DEFAULT_KIND else [worker.kind, worker.device]
    if worker.pid:
        facts.append(f"pid {worker.pid}")
    if worker.private_bytes:
        facts.append(f"{format_bytes(worker.private_bytes)} private")
    if worker.labels:
        facts.append(worker.labels)
    if worker.in_flight:
        facts.append(f"{worker.in_flight} running")
    separator = " · " if unicode else ", "
    line.append("   " + separator.join(facts), style="not bold dim")
    if worker.restarts:
        line.append(separator, style="not bold dim")
        line.append(f"{worker.restarts} restart{'s' if worker.restarts > 1 else ''}", style="not bold yellow")
    return line


def _models(worker: WorkerView, rows: int | None, width: int, *, unicode: bool) -> Table:
    """The models that matter most: in use, coming or going, then most recently used."""
    ordered = sorted(worker.instances, key=_importance)
    shown = ordered if rows is None else ordered[:rows]
    hidden = ordered[len(shown) :]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", width=min(width - 4, 100))
    table.add_column("model", no_wrap=True, overflow="ellipsis" if unicode else "crop", ratio=1)
    table.add_column("version", no_wrap=True, overflow="ellipsis" if unicode else "crop", max_width=12)
    table.add_column("state", no_wrap=True, min_width=9)
    table.add_column("memory", justify="right", no_wrap=True, min_width=9)
    table.add_column("leases", justify="right", no_wrap=True)
    table.add_column("idle", justify="right", no_wrap=True)
    for instance in shown:
        table.add_row(*_cells_of(instance))
    if hidden:
        dots = "…" if unicode else "..."
        total = format_bytes(sum(instance.bytes for instance in hidden))
        table.add_row(Text(f"{dots} and {len(hidden):,} more", style="dim"), "", "", Text(total, style="dim"), "", "")
    return table


def _importance(instance: InstanceView) -> tuple[bool, int, float, str, str]:
    order = _STATE_ORDER.get(instance.state, len(_STATE_ORDER))
    return (instance.leases == 0, order, instance.idle_s, instance.model, instance.version)


def _cells_of(instance: InstanceView) -> tuple[Text, ...]:
    idle = "" if instance.state not in ("ready", "draining") else format_idle(instance.idle_s, instance.leases)
    return (
        Text(instance.model, style="bold" if instance.leases else ""),
        Text(instance.version),
        Text(instance.state, style=STATE_STYLES.get(instance.state, "")),
        Text(format_bytes(instance.device_bytes or instance.bytes)),
        Text(str(instance.leases) if instance.leases else "", style="cyan"),
        Text(idle, style="cyan" if idle == "in use" else "dim"),
    )


def format_idle(idle_s: float, leases: int = 0) -> str:
    """How long nobody used an instance, in its largest unit."""
    if leases:
        return "in use"
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if idle_s >= size_s:
            return f"{idle_s / size_s:.0f} {unit}" if unit == "s" else f"{int(idle_s // size_s)} {unit}"
    return "now"

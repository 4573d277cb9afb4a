"""Prints what the demo does and what came of it, for people."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from roost.core.units import format_bytes
from roost.server.demo.questions import FileAnswer, LoadCost, SoundAnswer

# Where output is no terminal, nobody knows its width: wide enough for the tables.
_WIDTH_WITHOUT_TERMINAL = 120


def make_console() -> Console:
    """The console for stdout."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_WITHOUT_TERMINAL)


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """Shows that something is going on: a spinner on a terminal, and in any case a line when it is done."""
    started = time.monotonic()
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(f"{what} ...", soft_wrap=True)
        yield
    console.print(f"[green]done[/green] {what} [dim]({time.monotonic() - started:.1f} s)[/dim]", soft_wrap=True)


def show_file_types(console: Console, answers: Sequence[FileAnswer], folder: Path) -> None:
    """The table of files, their types and latencies."""
    table = _table("Which file types are these? (magika)", "file", "type", "what that is")
    _add_numbers(table, "score", "REST ms", "gRPC ms")
    for answer in answers:
        kind = answer.file_type
        table.add_row(
            Text(_shown(answer.path, folder)),
            Text(kind.label, style="bold"),
            Text(kind.description),
            f"{kind.score:.2f}",
            _ms(answer.rest_ms),
            _ms(answer.grpc_ms),
        )
    console.print(table, "")


def show_speech(console: Console, answers: Sequence[SoundAnswer]) -> None:
    """The table of sounds and the speech in them; latencies are medians of one request (32 ms of sound)."""
    table = _table(
        "Is there speech in these sounds? (silero-vad; in a sequence the server keeps its state)", "sound", "speech"
    )
    _add_numbers(table, "peak", "requests", "REST ms", "gRPC ms", "sequence ms")
    for answer in answers:
        found = ", ".join(f"{segment.start_s:.1f}-{segment.end_s:.1f} s" for segment in answer.segments)
        table.add_row(
            Text(f"{answer.sound.name} ({answer.sound.duration_s:.1f} s)"),
            Text(f"yes, at {found}" if found else "none", style="bold" if found else ""),
            f"{answer.peak:.2f}",
            f"3 x {answer.chunks}",
            _ms(answer.rest_ms),
            _ms(answer.grpc_ms),
            _ms(answer.sequence_ms),
        )
    console.print(table, "")


def show_load_costs(console: Console, costs: Sequence[LoadCost], sizes_bytes: dict[str, int]) -> None:
    """The table of first and later requests."""
    table = _table("Models are loaded by the request that needs them", "model", "file", "over")
    _add_numbers(table, "first request ms", "later requests ms (median)")
    for cost in costs:
        size = format_bytes(sizes_bytes[cost.model])
        table.add_row(Text(cost.model), size, cost.transport, _ms(cost.first_ms), _ms(cost.warm_ms))
    console.print(table, "")


def show_next_steps(console: Console, heading: str, steps: Sequence[tuple[str, str]]) -> None:
    """Prints commands so that they can be copied: one per paragraph, never wrapped."""
    console.print(f"\n[bold]{heading}[/bold]")
    for what, command in steps:
        console.print(f"\n[dim]# {what}[/dim]", soft_wrap=True)
        console.print(Text(command), soft_wrap=True)
    console.print()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add_numbers(table: Table, *columns: str) -> None:
    for column in columns:
        table.add_column(column, justify="right")


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f}"

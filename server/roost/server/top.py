"""``roost top``: what a running server does, every second anew, as long as somebody looks."""

from __future__ import annotations

import json
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from select import select
from typing import Any
from urllib.parse import urlencode

from rich.console import Console
from rich.live import Live
from roost.core.units import parse_seconds
from roost.router.activity_view import Activity, ModelActivity, Order, ProcessActivity, Totals, WorkerActivity
from roost.router.view import DeviceView
from roost.server.admin_client import AdminError, add_admin_flags, admin_url, fetch, not_roost
from roost.server.arguments import ConfigError, Parser
from roost.server.top_keys import Choice
from roost.server.top_view import draw_top, rows_wanted

DEFAULT_ROWS = 20
MAX_ROWS = 1000
MIN_INTERVAL_S = 1.0
_TIMEOUT_S = 3.0
_KEYS_BYTES = 256


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Runs ``roost top``.

    Raises:
        ConfigError: If an argument is wrong.
        SystemExit: After printing the help, if it is asked for.
    """
    values = _parser().parse_all(argv)
    url = admin_url(values.admin, values.admin_port, os.environ if environ is None else environ)
    interval_s, rows, choice = _interval_s(values.interval), _rows(values.rows), _choice(values.sort, values.filter)
    console = Console(highlight=False, no_color=values.no_color or None)
    try:
        if values.once or not (console.is_terminal and sys.stdin.isatty()) or console.is_dumb_terminal:
            console.print(draw_top(_look_twice(url, choice, rows, interval_s), console, choice, rows=rows))
        else:
            _watch(url, console, choice, interval_s)
    except AdminError as error:
        sys.stderr.write(f"roost: error: {error}\n")
        return 1
    return 0


def parse_activity(body: bytes) -> Activity:
    """Reads what ``/admin/activity`` answers.

    Raises:
        AdminError: If it is something else.
    """
    try:
        value = json.loads(body)
        return Activity(
            totals=Totals(**value.pop("totals")),
            server=ProcessActivity(**value.pop("server")),
            devices=tuple(DeviceView(**item) for item in value.pop("devices")),
            workers=tuple(_worker(item) for item in value.pop("workers")),
            models=tuple(_model(item) for item in value.pop("models")),
            moving=tuple(_model(item) for item in value.pop("moving")),
            **value,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise not_roost() from None


def _worker(value: dict[str, Any]) -> WorkerActivity:
    return WorkerActivity(process=ProcessActivity(**value.pop("process")), **value)


def _model(value: dict[str, Any]) -> ModelActivity:
    return ModelActivity(workers=tuple(value.pop("workers")), **value)


def _look(url: str, choice: Choice, rows: int) -> Activity:
    query = {"sort": choice.order.value, "top": min(rows, MAX_ROWS)} | (
        {"filter": choice.needle} if choice.needle else {}
    )
    return parse_activity(fetch(url, f"/admin/activity?{urlencode(query)}", timeout_s=_TIMEOUT_S))


def _look_twice(url: str, choice: Choice, rows: int, interval_s: float) -> Activity:
    """Rates are over the time since the look before, so there has to be one."""
    view = _look(url, choice, rows)
    if not view.window_s:
        time.sleep(interval_s)
        view = _look(url, choice, rows)
    return view


def _watch(url: str, console: Console, choice: Choice, interval_s: float) -> None:
    """Looks and draws until somebody has seen enough. A server that goes away may come back."""
    view, problem = _look(url, choice, rows_wanted(console)), ""
    with _keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        due = 0.0
        while not choice.done:
            live.update(draw_top(view, console, choice, rows=None, problem=problem), refresh=True)
            before = (choice.order, choice.needle)
            now = time.monotonic()
            choice.press(keyboard.read(max(0.0, due - now)))
            if choice.paused or ((choice.order, choice.needle) == before and time.monotonic() < due):
                continue
            due = time.monotonic() + interval_s
            try:
                view, problem = _look(url, choice, rows_wanted(console)), ""
            except AdminError as error:
                problem = str(error)


class _Keyboard:
    """Keys as they are pressed; a resized window counts as an empty one."""

    def __init__(self, keys: int, resized: int) -> None:
        self._keys = keys
        self._resized = resized

    def read(self, timeout_s: float) -> str:
        """What was typed, after so long at the latest."""
        ready, _, _ = select([self._keys, self._resized], [], [], timeout_s)
        if self._resized in ready:
            os.read(self._resized, _KEYS_BYTES)
        if self._keys not in ready:
            return ""
        typed = os.read(self._keys, _KEYS_BYTES)
        return typed.decode(errors="replace") if typed else "q"  # the terminal has gone


@contextmanager
def _keyboard() -> Iterator[_Keyboard]:
    """Takes keys without Enter, and puts the terminal right at the end."""
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGWINCH, lambda number, frame: None)
    try:
        tty.setcbreak(keys)
        yield _Keyboard(keys, reader)
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, handler)
        signal.set_wakeup_fd(woken)
        os.close(reader)
        os.close(writer)


def _parser() -> Parser:
    parser = Parser(
        prog="roost top",
        description="Watch what a running server does: workers, memory, and the models that are asked for most.",
        allow_abbrev=False,
    )
    add_admin_flags(parser)
    parser.add_argument("--interval", metavar="DURATION", default="1s", help="How often to look. Default: 1s.")
    parser.add_argument("--sort", metavar="ORDER", default="rate", help=f"Which models come first: {', '.join(Order)}.")
    parser.add_argument("--filter", metavar="TEXT", default="", help="Only models with this in their name.")
    parser.add_argument("--once", action="store_true", help="Print it once, as is done where there is no terminal.")
    parser.add_argument(
        "--rows", metavar="N", default=str(DEFAULT_ROWS), help=f"Models to print with --once. Default: {DEFAULT_ROWS}."
    )
    parser.add_argument("--no-color", action="store_true", help="No colours, as with NO_COLOR in the environment.")
    return parser


def _interval_s(text: str) -> float:
    try:
        interval_s = parse_seconds(text)
    except ValueError as error:
        raise ConfigError(f"--interval: {error}") from None
    if not MIN_INTERVAL_S <= interval_s <= 3600:
        raise ConfigError(f"--interval: {text!r} is not from {MIN_INTERVAL_S:g}s to 1h")
    return interval_s


def _rows(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= MAX_ROWS):
        raise ConfigError(f"--rows: {text!r} is not a number from 1 to {MAX_ROWS}")
    return int(text)


def _choice(order: str, needle: str) -> Choice:
    if order not in set(Order):
        raise ConfigError(f"--sort: {order!r} is none of {', '.join(Order)}")
    return Choice(Order(order), needle)

"""``roost status``: asks the admin listener of a running server what its mesh looks like, and draws it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from roost.router.view import DeviceView, InstanceView, MeshView, WorkerView
from roost.server.admin_client import AdminError, add_admin_flags, admin_url, fetch, not_roost
from roost.server.arguments import ConfigError, Parser

DEFAULT_ROWS = 10


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Runs ``roost status``.

    Raises:
        ConfigError: If an argument is wrong.
        SystemExit: After printing the help, if it is asked for.
    """
    values = _parser().parse_all(argv)
    rows = _rows(values.rows)
    url = admin_url(values.admin, values.admin_port, os.environ if environ is None else environ)
    try:
        body = fetch(url, "/admin/status")
        view = parse_view(body)
    except AdminError as error:
        sys.stderr.write(f"roost: error: {error}\n")
        return 1
    if values.json:
        sys.stdout.write(body.decode() + "\n")
        return 0
    from rich.console import Console
    from roost.server.status_view import draw

    draw(view, Console(highlight=False), rows=rows)
    return 0


def parse_view(body: bytes) -> MeshView:
    """Reads what ``/admin/status`` answers.

    Raises:
        AdminError: If it is something else.
    """
    try:
        value = json.loads(body)
        workers = tuple(_worker(item) for item in value.pop("workers"))
        devices = tuple(DeviceView(**item) for item in value.pop("devices"))
        return MeshView(workers=workers, devices=devices, **value)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise not_roost() from None


def _worker(value: dict[str, Any]) -> WorkerView:
    instances = tuple(InstanceView(**item) for item in value.pop("instances"))
    return WorkerView(instances=instances, **value)


def _parser() -> Parser:
    parser = Parser(
        prog="roost status",
        description="Show devices, workers and loaded models of a running server.",
        allow_abbrev=False,
    )
    add_admin_flags(parser)
    parser.add_argument(
        "--rows", metavar="N", default=str(DEFAULT_ROWS), help="Models to show for each worker, or all."
    )
    parser.add_argument("--json", action="store_true", help="Print the answer of the server as it is.")
    return parser


def _rows(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--rows: {text!r} is neither a number nor 'all'")
    return int(text)

"""``roost status``: asks the admin listener of a running server what its mesh looks like, and draws it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from roost.router.view import DeviceView, InstanceView, MeshView, WorkerView
from roost.server.arguments import ConfigError, Parser

DEFAULT_ADMIN_PORT = 8082
DEFAULT_ROWS = 10

_TIMEOUT_S = 10.0
_MAX_BYTES = 256 * 2**20


class StatusError(Exception):
    """The server can't be asked; the text is one line for the user."""


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Runs ``roost status``.

    Raises:
        ConfigError: If an argument is wrong.
        SystemExit: After printing the help, if it is asked for.
    """
    values = _parser().parse_all(argv)
    rows = _rows(values.rows)
    url = _admin_url(values.admin, values.admin_port, os.environ if environ is None else environ)
    try:
        body = fetch_status(url)
        view = parse_view(body)
    except StatusError as error:
        sys.stderr.write(f"roost: error: {error}\n")
        return 1
    if values.json:
        sys.stdout.write(body.decode() + "\n")
        return 0
    from rich.console import Console
    from roost.server.status_view import draw

    draw(view, Console(highlight=False), rows=rows)
    return 0


def fetch_status(url: str) -> bytes:
    """Gets the state of the mesh as JSON from the admin listener at ``url``.

    Raises:
        StatusError: If nothing answers there, or not as Roost would.
    """
    try:
        # The listener is on this machine, whatever the environment says of proxies.
        with build_opener(ProxyHandler({})).open(f"{url}/admin/status", timeout=_TIMEOUT_S) as response:
            return bytes(response.read(_MAX_BYTES))
    except HTTPError as error:
        raise StatusError(f"{url} answered {error.code} {error.reason}; is it Roost's admin port?") from None
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        why = f"{why[:1].lower()}{why[1:]}" or type(error).__name__
        raise StatusError(f"no Roost at {url}: {why}; give --admin-port or --admin if it listens elsewhere") from None


def parse_view(body: bytes) -> MeshView:
    """Reads what ``/admin/status`` answers.

    Raises:
        StatusError: If it is something else.
    """
    try:
        value = json.loads(body)
        workers = tuple(_worker(item) for item in value.pop("workers"))
        devices = tuple(DeviceView(**item) for item in value.pop("devices"))
        return MeshView(workers=workers, devices=devices, **value)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise StatusError("the answer is not that of a Roost of this version") from None


def _worker(value: dict[str, Any]) -> WorkerView:
    instances = tuple(InstanceView(**item) for item in value.pop("instances"))
    return WorkerView(instances=instances, **value)


def _parser() -> Parser:
    parser = Parser(
        prog="roost status",
        description="Show devices, workers and loaded models of a running server.",
        allow_abbrev=False,
    )
    parser.add_argument("--admin", metavar="URL", help="Address of the admin listener, such as http://127.0.0.1:8082.")
    parser.add_argument(
        "--admin-port",
        metavar="PORT",
        help=f"Port of the admin listener on this machine. Default: ROOST_ADMIN_PORT, else {DEFAULT_ADMIN_PORT}.",
    )
    parser.add_argument(
        "--rows", metavar="N", default=str(DEFAULT_ROWS), help="Models to show for each worker, or all."
    )
    parser.add_argument("--json", action="store_true", help="Print the answer of the server as it is.")
    return parser


def _admin_url(url: str | None, port: str | None, environ: Mapping[str, str]) -> str:
    if url is not None and port is not None:
        raise ConfigError("--admin and --admin-port can't be given together")
    if url is not None:
        url = url if "://" in url else f"http://{url}"
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(f"--admin: {url!r} is not a URL such as http://127.0.0.1:{DEFAULT_ADMIN_PORT}")
        return url.rstrip("/")
    where = "--admin-port" if port is not None else "ROOST_ADMIN_PORT"
    port = port if port is not None else environ.get("ROOST_ADMIN_PORT") or str(DEFAULT_ADMIN_PORT)
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"{where}: {port!r} is not a port from 1 to 65535")
    return f"http://127.0.0.1:{int(port)}"


def _rows(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--rows: {text!r} is neither a number nor 'all'")
    return int(text)

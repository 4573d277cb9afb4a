"""Asks the admin listener of a running server, for commands that people type."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from roost.server.arguments import ConfigError, Parser

DEFAULT_ADMIN_PORT = 8082

_TIMEOUT_S = 10.0
_MAX_BYTES = 256 * 2**20


class AdminError(Exception):
    """The server can't be asked; the text is one line for the user."""


def add_admin_flags(parser: Parser) -> None:
    """The flags that say where the server is."""
    parser.add_argument("--admin", metavar="URL", help="Address of the admin listener, such as http://127.0.0.1:8082.")
    parser.add_argument(
        "--admin-port",
        metavar="PORT",
        help=f"Port of the admin listener on this machine. Default: ROOST_ADMIN_PORT, else {DEFAULT_ADMIN_PORT}.",
    )


def admin_url(url: str | None, port: str | None, environ: Mapping[str, str]) -> str:
    """Where the server is, by the values of those flags.

    Raises:
        ConfigError: If one of them is wrong.
    """
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


def fetch(url: str, path: str, timeout_s: float = _TIMEOUT_S) -> bytes:
    """Gets what the admin listener at ``url`` has under ``path``.

    Raises:
        AdminError: If nothing answers there, or not as Roost would.
    """
    try:
        # The listener is on this machine, whatever the environment says of proxies.
        with build_opener(ProxyHandler({})).open(f"{url}{path}", timeout=timeout_s) as response:
            return bytes(response.read(_MAX_BYTES))
    except HTTPError as error:
        raise AdminError(f"{url} answered {error.code} {error.reason}; is it Roost's admin port?") from None
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        why = f"{why[:1].lower()}{why[1:]}" or type(error).__name__
        raise AdminError(f"no Roost at {url}: {why}; give --admin-port or --admin if it listens elsewhere") from None


def not_roost() -> AdminError:
    """Something answered, but not what a server of this version would."""
    return AdminError("the answer is not that of a Roost of this version")

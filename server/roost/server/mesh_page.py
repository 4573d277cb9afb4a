"""The page of the mesh: one file, whose script and style are its own, with nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from aiohttp import web

_FILE = Path(__file__).with_name("mesh_page.html")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@cache
def page() -> tuple[str, dict[str, str]]:
    """The page and its headers. A script runs only if it is the page's own, byte for byte."""
    text = _FILE.read_text(encoding="utf-8")
    digests = [hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(text)]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return text, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


async def handle_page(request: web.Request) -> web.StreamResponse:
    """Answers with the page."""
    text, headers = page()
    return web.Response(text=text, content_type="text/html", headers=headers)

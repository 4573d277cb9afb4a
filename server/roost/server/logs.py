"""The server's log: the lines are those of ``roost.core.logs``, and the libraries that it alone uses keep quiet."""

from __future__ import annotations

import logging
from typing import TextIO

from roost.core import logs

# Libraries that would write a line for each request or connection.
_CHATTY = ("aiohttp.access", "asyncio", "grpc", "urllib3")


def configure_logging(level: str = "info", format_: str = "human", stream: TextIO | None = None) -> None:
    """Sends the log of the whole process to a stream; see ``roost.core.logs.configure_logging``."""
    logs.configure_logging(level, format_, stream)
    set_level(logging.getLogger().level)


def set_level(level: int) -> None:
    """Writes lines of this level and more severe ones from now on; workers keep theirs."""
    logging.getLogger().setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, level))

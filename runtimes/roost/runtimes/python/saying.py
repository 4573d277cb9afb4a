"""What the process of a model says to the log: lines of its stderr, with their level in front.

The worker reads them (``roost.runtimes.printed``); whatever else is printed there is a line of the model's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from roost.runtimes.printed import LEVELS, MARK

_STDERR = 2


def say(level: str, text: str) -> None:
    """Writes lines to the log.

    Args:
        level: A key of ``LEVELS``.
        text: One or more lines.
    """
    head = MARK + level.encode()
    lines = [head + line.encode("utf-8", "backslashreplace") for line in text.splitlines() or [""]]
    left = memoryview(b"\n".join(lines) + b"\n")
    with contextlib.suppress(OSError):  # the model has closed it: its errors are answered all the same
        while left:
            left = left[os.write(_STDERR, left) :]


class SayingHandler(logging.Handler):
    """Sends records of the model's own logging the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        try:
            say(_letter_of(record.levelno), self.format(record))
        except Exception:
            self.handleError(record)


def _letter_of(level: int) -> str:
    return next((letter for letter, least in reversed(LEVELS.items()) if least <= level), "D")


def set_up_output() -> None:
    """What the model prints comes out line by line, what it logs with its level."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True, errors="backslashreplace")
    root = logging.getLogger()
    root.handlers[:] = [SayingHandler()]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)

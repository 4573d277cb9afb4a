"""What every process that the server starts does first. Nothing heavy is imported here."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

_PR_SET_PDEATHSIG = 1


def ignore_terminal() -> None:
    """Interrupts of a terminal reach the whole process group, but only the server acts on them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the router dies: end of file comes too late for a stuck reader."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def configure_child_logging(level: str, format_: str, fields: Mapping[str, Any], log: logging.Logger) -> None:
    """Writes the log as the server does, and what else Python would write to stderr by itself into it.

    Args:
        level: The least severe level.
        format_: How lines look.
        fields: What each line carries, such as who writes it.
        log: Takes what would end up nowhere.
    """
    from roost.core.logs import configure_logging

    configure_logging(level, format_, fields=fields)

    def log_thread_end(end: threading.ExceptHookArgs) -> None:
        name = end.thread.name if end.thread is not None else "unknown"
        error = end.exc_value or end.exc_type()
        log.error("thread %s ended unexpectedly", name, exc_info=error)

    def log_unraisable(failure: sys.UnraisableHookArgs) -> None:
        # The object is not shown: it may be a tensor.
        log.error(failure.err_msg or "an exception was ignored", exc_info=failure.exc_value)

    threading.excepthook = log_thread_end
    sys.unraisablehook = log_unraisable

"""What every process that the server starts does first. Nothing heavy is imported here."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}
"""For its environment: else ONNX Runtime starts a thread when it is imported, which tells its makers what it does."""

COPIED: list[bool] = []
"""Not empty in a copy of a worker that a model has made: what comes back from its code there has to end."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_OOM_SCORE = "/proc/self/oom_score_adj"
_WORST_OOM_SCORE = 1000
_OOM_HANDICAP = 300  # as if it had 30 % more of the memory that there is


def ignore_terminal() -> None:
    """Interrupts of a terminal reach the whole process group, but only the server acts on them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def die_with_parent(parent: int = 0) -> None:
    """Asks the kernel to kill this process when its parent dies: end of file comes too late for a stuck reader.

    Args:
        parent: The parent's process id if that is known: this process ends at once if it is an orphan already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)


def name_process(name: str) -> None:
    """Sets what ``ps`` and ``top`` call this process; 15 characters are shown."""
    _prctl(_PR_SET_NAME, name.encode())


def offer_to_oom_killer() -> None:
    """Makes this process rather than the server the one that the kernel ends when memory runs out."""
    with contextlib.suppress(OSError):  # then the kernel chooses by size alone
        with open(_OOM_SCORE, encoding="ascii") as score:
            handicap = min(_WORST_OOM_SCORE, int(score.read()) + _OOM_HANDICAP)
        with open(_OOM_SCORE, "w", encoding="ascii") as score:
            score.write(str(handicap))


def keep_from_copies(descriptor: int) -> None:
    """Sees to it that copies of this process do not have a socket: they would answer on it, or hold it open.

    Models that are loaded in a worker may fork. What comes back from their code in the copy finds ``COPIED`` not empty,
    and the copy ends at the latest with the thread that has made it.

    Args:
        descriptor: Of the socket.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def leave() -> None:
        COPIED.append(True)
        os.dup2(nothing, descriptor, inheritable=False)
        die_with_parent()

    os.register_at_fork(after_in_child=leave)


def leave_copies(pid: int) -> None:
    """Ends a copy of a process that a model has forked, once its code comes back there.

    Args:
        pid: The process that it may be a copy of.
    """
    if os.getpid() != pid:
        os._exit(0)


def signal_name(number: int) -> str:
    """What a signal is called; those for everybody's own use, of which there are 30, have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _prctl(option: int, argument: int | bytes) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)


def print_to(descriptor: int) -> TextIO:
    """Has all that is printed in this process, also by libraries, go there from now on.

    Args:
        descriptor: A pipe's, which is closed here.

    Returns:
        Where it went before, for the log.
    """
    log = open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115 - for good
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    return log


def configure_child_logging(
    level: str, format_: str, fields: Mapping[str, Any], log: logging.Logger, stream: TextIO | None = None
) -> None:
    """Writes the log as the server does, and what else Python would write to stderr by itself into it.

    Args:
        level: The least severe level.
        format_: How lines look.
        fields: What each line carries, such as who writes it.
        log: Takes what would end up nowhere.
        stream: Where it is written; by default stderr.
    """
    from roost.core.logs import configure_logging

    configure_logging(level, format_, stream, fields)

    def log_thread_end(end: threading.ExceptHookArgs) -> None:
        name = end.thread.name if end.thread is not None else "unknown"
        error = end.exc_value or end.exc_type()
        log.error("thread %s ended unexpectedly", name, exc_info=error)

    def log_unraisable(failure: sys.UnraisableHookArgs) -> None:
        # The object is not shown: it may be a tensor.
        log.error(failure.err_msg or "an exception was ignored", exc_info=failure.exc_value)

    threading.excepthook = log_thread_end
    sys.unraisablehook = log_unraisable

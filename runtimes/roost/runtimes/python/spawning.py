"""Starts and ends the operating system's side of a model's process."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping

import roost
from roost.runtimes.child import signal_name
from roost.runtimes.python import bootstrap

_MARK = "ROOST_MODEL_PROCESS"
"""In the environment of a model's process, and so of all that it starts: whose they are."""

_ROUNDS = 3
_numbers = itertools.count(1)


def new_mark() -> str:
    """What tells the processes of one model's process from all others."""
    return f"{os.getpid()}.{next(_numbers)}"


def spawn(python: str, link: int, printing: int, threads: int, parent: int, mark: str) -> subprocess.Popen[bytes]:
    """Starts a process that serves a link, as the first of a group of its own.

    Args:
        python: The interpreter.
        link: The descriptor of the link's socket.
        printing: The descriptor that it prints to.
        threads: How many threads libraries should make.
        parent: The process with which it dies.
        mark: By which what it starts can be found; see ``new_mark``.

    Raises:
        OSError: If there is no process to be had.
    """
    arguments = {"link_fd": link, "parent": parent, "roots": list(roost.__path__)}
    return subprocess.Popen(
        [python, "-P", bootstrap.__file__, json.dumps(arguments)],
        pass_fds=[link],
        stdin=subprocess.DEVNULL,
        stdout=printing,
        stderr=printing,
        process_group=0,
        env=_environment(os.environ, threads) | {_MARK: mark},
    )


def _environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {name: value for name, value in inherited.items() if name != "PYTHONHOME"} | limits


def kill_group(pid: int) -> None:
    """Ends a process that was started here and not waited for yet, and what it has started in its group."""
    for end in (os.killpg, os.kill):  # it may have left its group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(pid, signal.SIGKILL)


def kill_left(mark: str) -> None:
    """Ends what a process has started, and left behind in a session of its own, as daemons are."""
    _kill_marked(re.compile(re.escape(f"{_MARK}={mark}\0".encode())))


def kill_all_left() -> None:
    """The same for all processes that were started here."""
    _kill_marked(re.compile(re.escape(f"{_MARK}={os.getpid()}.".encode())))


def _kill_marked(mark: re.Pattern[bytes]) -> None:
    for _ in range(_ROUNDS):  # they may be starting others
        found = [pid for pid in _processes() if mark.search(_environment_of(pid))]
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break


def _processes() -> list[int]:
    """All that there are; none where there is no descriptor to look with."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _environment_of(pid: int) -> bytes:
    """The environment that a process was started with; nothing of one that has ended, or that is not ours."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def cause_of(code: int, last_line: str) -> str:
    """How a process ended, as the end of a sentence.

    Args:
        code: Its exit code, or minus the signal.
        last_line: What it has printed last.
    """
    if code < 0:
        return f"was ended by {signal_name(-code)}"
    return f"ended with exit code {code}" + (f" ({last_line})" if code and last_line else "")

"""Starts and ends the operating system's side of a model's process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping

import roost
from roost.runtimes.python import bootstrap


def spawn(python: str, link: int, printing: int, threads: int, parent: int) -> subprocess.Popen[bytes]:
    """Starts a process that serves a link, as the first of a group of its own.

    Args:
        python: The interpreter.
        link: The descriptor of the link's socket.
        printing: The descriptor that it prints to.
        threads: How many threads libraries should make.
        parent: The process with which it dies.

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
        env=_environment(os.environ, threads),
    )


def _environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {name: value for name, value in inherited.items() if name != "PYTHONHOME"} | limits


def kill_group(pid: int) -> None:
    """Ends a process that was started here and not waited for yet, and what it has started in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def cause_of(code: int, last_line: str) -> str:
    """How a process ended, as the end of a sentence.

    Args:
        code: Its exit code, or minus the signal.
        last_line: What it has printed last.
    """
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" + (f" ({last_line})" if code and last_line else "")

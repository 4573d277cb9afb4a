"""Who gets the CPU first in a worker: runs, before loads and unloads."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

LOAD_NICENESS = 5
"""Beside one thread that runs, one that loads gets a quarter of a CPU if there is no more: enough to come to an end."""

SWITCH_INTERVAL_S = 0.0005
"""A thread that wants the interpreter gets it after so long from one that computes; by default it waits ten times as
long, which is longer than most runs take."""


def take_short_turns() -> None:
    """Has the threads of this process take turns with the interpreter that are short beside a request."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def let_runs_go_first() -> None:
    """Makes the calling thread nicer for good, and those that it starts from now on.

    Only Linux has threads of different niceness. Where it is not allowed, nothing changes.
    """
    with contextlib.suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + LOAD_NICENESS)

"""What the kernel says of a process: that it was stopped, why it has ended, or that memory has run out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from pathlib import Path

LOOK_EVERY_S = 0.5
LOOKS = 2
"""Who was seen stopped so many times in a row is: a debugger's short look at a process is not noticed."""

_STOPPED = b"T"  # by a signal; a process that is traced is in ``t``
_ENDED = b"Z"
_EXIT_CODE = 50  # its place, counted from the state as the first


class Watch:
    """A process that is watched; see ``roost.router.process.WorkerProcess``.

    Args:
        pid: Its number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._oom_kills = oom_kills()

    async def stopped(self) -> None:
        """Returns when it was stopped by a signal and does not go on."""
        seen = 0
        while seen < LOOKS:
            await asyncio.sleep(LOOK_EVERY_S)
            self._oom_kills = oom_kills()  # or an older kill would be taken for its end
            seen = seen + 1 if is_stopped(self.pid) else 0

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has ended processes for want of memory since the last look."""
        return oom_kills() > self._oom_kills


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal; False for one that has ended."""
    return _stat(pid)[:1] == [_STOPPED]


def exit_code_of(pid: int) -> int | None:
    """The exit code, or ``-signal``, of a process that has ended and was not reaped; None of any other."""
    stat = _stat(pid)
    return os.waitstatus_to_exitcode(int(stat[-1])) if stat[:1] == [_ENDED] else None


def _stat(pid: int) -> list[bytes]:
    """What ``/proc/PID/stat`` says, from the state, its third field, on to the exit code; empty if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The name before the state is in parentheses, and may have some of its own.
    return stat[stat.rindex(b")") + 2 :].split()[:_EXIT_CODE]


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has ended for want of memory: of this control group, else of the machine.

    Args:
        root: Where ``/proc`` and ``/sys`` are, for tests.
    """
    for file in _counters(root):
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


@functools.cache
def _counters(root: Path) -> tuple[Path, ...]:
    """The files that may say it, the nearest first."""
    files = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                unified = root / "sys/fs/cgroup"
                files += [unified / group.lstrip("/") / "memory.events", unified / "memory.events"]
            elif "memory" in controllers.split(","):
                memory = root / "sys/fs/cgroup/memory"
                files += [memory / group.lstrip("/") / "memory.oom_control", memory / "memory.oom_control"]
    return (*files, root / "proc/vmstat")

"""How many CPUs a process keeps busy, as the kernel counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Of /proc/PID/stat behind the name in parentheses, which may hold anything: user and system time in ticks.
_TIMES = slice(11, 13)


def cpu_s(pid: int) -> float | None:
    """The CPU time that a process has used, in seconds; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return sum(int(field) for field in text.rpartition(b")")[2].split()[_TIMES]) / _TICKS_PER_S


class CpuTimes:
    """Remembers for some processes what they had used when they were looked at last."""

    def __init__(self, read: Callable[[int], float | None] = cpu_s) -> None:
        self._read = read
        self._last: dict[int, tuple[float, float]] = {}

    def since_last(self, pid: int, now: float) -> float:
        """How many CPUs the process kept busy since it was last asked for; 0 at the first time."""
        used_s = self._read(pid) if pid else None
        if used_s is None:
            self._last.pop(pid, None)
            return 0.0
        before = self._last.get(pid)
        self._last[pid] = (now, used_s)
        if before is None or now <= before[0]:
            return 0.0
        return max(0.0, used_s - before[1]) / (now - before[0])

    def clear(self) -> None:
        """Forgets all processes."""
        self._last.clear()

"""How busy the machine is, as the kernel says; what metrics show of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from roost.server.machine import memory_total_bytes

MIN_INTERVAL_S = 1.0

# Of /proc/stat's fields: idle and iowait.
_IDLE_FIELDS = slice(3, 5)
# Guests' time is in the time of users already.
_COUNTED_FIELDS = 8


class MachineUsage:
    """Reads ``/proc``; what a file does not say is 0.

    Args:
        root: Where ``/proc`` is, for tests.
        clock: Seconds that only grow.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._looked_at = clock()
        self._idle, self._total = self._ticks()
        self._share = 0.0
        self.memory_total_bytes = memory_total_bytes(root)

    def cpu_share(self) -> float:
        """The share of all CPUs that was busy since the call before, 0 to 1, over at least ``MIN_INTERVAL_S``."""
        now = self._clock()
        if now - self._looked_at >= MIN_INTERVAL_S:
            idle, total = self._ticks()
            if total > self._total:
                self._share = min(1.0, max(0.0, 1 - (idle - self._idle) / (total - self._total)))
            self._looked_at, self._idle, self._total = now, idle, total
        return self._share

    def memory_used_bytes(self) -> int:
        """Memory that is not available to new programs."""
        for line in self._read("meminfo").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return self.memory_total_bytes - int(rest.split()[0]) * 1024
        return 0

    def _ticks(self) -> tuple[int, int]:
        """Idle and all time of all CPUs since the machine's start."""
        fields = [int(field) for field in self._read("stat").partition("\n")[0].split()[1 : 1 + _COUNTED_FIELDS]]
        return sum(fields[_IDLE_FIELDS]), sum(fields)

    def _read(self, name: str) -> str:
        try:
            return (self._root / "proc" / name).read_text(encoding="utf-8")
        except OSError:
            return ""

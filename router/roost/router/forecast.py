"""When loads will be over, as far as that can be told. Pure; time is passed in.

Requests are refused by what is said here, so whatever is not known counts as nothing: a load takes at least as long as
it is expected to.
"""

from __future__ import annotations

import math

from roost.router.loads import Load, LoadPriority

_SHARE = 0.2
"""How much of what is typical comes from the last load."""


class Forecast:
    """See the module.

    Args:
        turns: How many loads are under way at once.
    """

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._typical_s = 0.0
        self._waiting: dict[Load, tuple[LoadPriority, float]] = {}
        self._waiting_s = dict.fromkeys(LoadPriority, 0.0)
        self._ends_at: dict[Load, float] = {}
        self._blocked: Load | None = None
        self._blocked_until = -math.inf

    def add(self, load: Load, now: float) -> None:
        """A load is asked for, or has become more urgent."""
        self._remove(load)
        load.expected_at = self._begins_at(load.priority, now) + load.expected_s
        work_s = load.expected_s or self._typical_s
        self._waiting[load] = load.priority, work_s
        self._waiting_s[load.priority] += work_s

    def blocked(self, load: Load, until: float) -> None:
        """The next load has to wait for memory until then, and as long as it waits, those behind it have to as well."""
        self._blocked, self._blocked_until = load, until
        load.expected_at = max(load.expected_at, until + load.expected_s)

    def begin(self, load: Load, now: float) -> None:
        """The worker begins with a load."""
        self._remove(load)
        load.expected_at = now + load.expected_s
        self._ends_at[load] = now + (load.expected_s or self._typical_s)

    def pause(self, load: Load, now: float) -> None:
        """A load that had begun has to be begun once more, or has ended."""
        if self._ends_at.pop(load, None) is not None:
            self.add(load, now)

    def end(self, load: Load) -> None:
        """A load has ended."""
        self._remove(load)
        self._ends_at.pop(load, None)

    def took(self, load_s: float) -> None:
        """A load went well and took so long."""
        self._typical_s += (load_s - self._typical_s) * (_SHARE if self._typical_s else 1.0)

    def _begins_at(self, priority: LoadPriority, now: float) -> float:
        begins_at = max(now, self._blocked_until)
        if len(self._ends_at) >= self._turns:
            begins_at = max(begins_at, min(self._ends_at.values()))
        ahead_s = sum(work_s for other, work_s in self._waiting_s.items() if other <= priority)
        return begins_at + ahead_s / self._turns

    def _remove(self, load: Load) -> None:
        priority, work_s = self._waiting.pop(load, (load.priority, 0.0))
        self._waiting_s[priority] = self._waiting_s[priority] - work_s if self._waiting else 0.0
        if load is self._blocked:
            self._blocked, self._blocked_until = None, -math.inf

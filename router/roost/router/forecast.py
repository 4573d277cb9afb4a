"""When loads will be over, as far as that can be told. Pure; time is passed in.

Requests are refused by what is said here, so whatever is not known counts as nothing: a load takes at least as long as
it is expected to.
"""

from __future__ import annotations

import math

from roost.router.loads import Load, LoadPriority

_SHARES = 0.2, 1 / 64
"""How much of what is typical comes from the last load: the lower of two means counts. One slow load among many quick
ones, times the length of a line, must not refuse everybody, and when loads are quick again that is soon believed."""


class Forecast:
    """See the module.

    Args:
        turns: How many loads are under way at once.
    """

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._means_s = [0.0, 0.0]
        self._typical_s = 0.0
        self._waiting: dict[Load, tuple[LoadPriority, float]] = {}
        self._waiting_s = dict.fromkeys(LoadPriority, 0.0)  # of those of which something is known
        self._unknown = dict.fromkeys(LoadPriority, 0)
        self._ends_at: dict[Load, float] = {}
        self._blocked: Load | None = None
        self._blocked_until = -math.inf

    def add(self, load: Load, now: float) -> None:
        """A load is asked for, or has become more urgent."""
        self._remove(load)
        load.expected_at = self._begins_at(load.priority, now) + load.expected_s
        self._waiting[load] = load.priority, load.expected_s
        self._waiting_s[load.priority] += load.expected_s
        self._unknown[load.priority] += not load.expected_s

    def look_again(self, load: Load, now: float) -> None:
        """What was expected when a load was asked for may have been too much: at most all others that wait go first."""
        if load in self._waiting:
            others_s = self._begins_at(load.priority, now, without=load) + load.expected_s
            load.expected_at = min(load.expected_at, others_s)

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
        if not self._typical_s:
            self._means_s = [load_s] * len(_SHARES)
        for place, share in enumerate(_SHARES):
            self._means_s[place] += (load_s - self._means_s[place]) * share
        self._typical_s = min(self._means_s)

    def _begins_at(self, priority: LoadPriority, now: float, without: Load | None = None) -> float:
        begins_at = max(now, self._blocked_until)
        if len(self._ends_at) >= self._turns:
            begins_at = max(begins_at, min(self._ends_at.values()))
        unknown = sum(count for other, count in self._unknown.items() if other <= priority)
        ahead_s = sum(work_s for other, work_s in self._waiting_s.items() if other <= priority)
        ahead_s += unknown * self._typical_s
        if without is not None:
            ahead_s -= without.expected_s or self._typical_s
        return begins_at + max(0.0, ahead_s) / self._turns

    def _remove(self, load: Load) -> None:
        found = self._waiting.pop(load, None)
        if found is not None:
            priority, work_s = found
            self._unknown[priority] -= not work_s
            self._waiting_s[priority] = self._waiting_s[priority] - work_s if self._waiting else 0.0
        if load is self._blocked:
            self._blocked, self._blocked_until = None, -math.inf

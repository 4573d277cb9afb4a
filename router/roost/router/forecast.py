"""When loads will be over, as far as that can be told. Pure; time is passed in.

Requests are refused by what is said here, so whatever is not known counts as nothing: a load takes at least as long as
it is expected to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from roost.router.loads import Load, LoadPriority

_Class: TypeAlias = tuple[LoadPriority, int]
"""Priority of a load, and of its model, negated: what has a lower one goes first."""

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
        self._waiting: dict[Load, tuple[_Class, float]] = {}
        self._lines: dict[_Class, _Line] = {}
        self._ends_at: dict[Load, float] = {}
        self._blocked: Load | None = None
        self._blocked_until = -math.inf

    def add(self, load: Load, now: float) -> None:
        """A load is asked for, or has become more urgent."""
        self._remove(load)
        class_ = load.priority, -load.importance
        load.expected_at = self._begins_at(class_, now) + load.expected_s
        self._waiting[load] = class_, load.expected_s
        self._lines.setdefault(class_, _Line()).add(load.expected_s)

    def look_again(self, load: Load, now: float) -> None:
        """What was expected when a load was asked for may have been too much: at most all others that wait go first."""
        found = self._waiting.get(load)
        if found is not None:
            others_s = self._begins_at(found[0], now, without=load) + load.expected_s
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

    def _begins_at(self, class_: _Class, now: float, without: Load | None = None) -> float:
        """When a load of some class begins if all before it go first, and of models that are worth less none does."""
        begins_at = max(now, self._blocked_until)
        if len(self._ends_at) >= self._turns:
            begins_at = max(begins_at, min(self._ends_at.values()))
        ahead_s = sum(line.takes_s(self._typical_s) for other, line in self._lines.items() if other <= class_)
        if without is not None:
            ahead_s -= without.expected_s or self._typical_s
        return begins_at + max(0.0, ahead_s) / self._turns

    def _remove(self, load: Load) -> None:
        found = self._waiting.pop(load, None)
        if found is not None:
            class_, work_s = found
            line = self._lines[class_]
            line.remove(work_s)
            if not line.loads:
                del self._lines[class_]
        if load is self._blocked:
            self._blocked, self._blocked_until = None, -math.inf


@dataclass(slots=True)
class _Line:
    """Loads of one class that wait.

    Attributes:
        loads: How many they are.
        unknown: Of how many nothing is known.
        known_s: How long the others are expected to take together.
    """

    loads: int = 0
    unknown: int = 0
    known_s: float = 0.0

    def add(self, expected_s: float) -> None:
        """One more; 0 if nothing is known of it."""
        self.loads += 1
        self.unknown += not expected_s
        self.known_s += expected_s

    def remove(self, expected_s: float) -> None:
        """One less."""
        self.loads -= 1
        self.unknown -= not expected_s
        self.known_s -= expected_s

    def takes_s(self, typical_s: float) -> float:
        """How long all of them are expected to take, one after the other."""
        return self.known_s + self.unknown * typical_s

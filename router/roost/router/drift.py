"""Whether a worker takes the memory that its instances are accounted with, and what is done if it takes more.

Nothing here knows of processes, and time is passed in.

A worker is believed to take what it took when it was started and what its instances are accounted with. What the kernel
counts beyond that is its *drift*. Runs take memory while they last, so the least drift of some seconds counts. If that
is too much, the worker is told to *trim*: to give back what it has freed. What is there all the same is *charged* to
the instances that ran while it came. What can't be charged to any, since those have gone without it, or it is more than
a model is believed to need, makes the worker be *recycled*: its process is replaced by a new one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

WINDOW_S = 5.0
ALLOWED_BYTES = 64 << 20
ALLOWED_SHARE = 1 / 8
NOISE_BYTES = 1 << 20
SETTLED_AFTER_S = 60.0
FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0


class Measure(Enum):
    """What is to be done about a drift, if nobody is to be charged."""

    TRIM = auto()
    RECYCLE = auto()


@dataclass(frozen=True, slots=True)
class Charge:
    """What instances take more than they were accounted with, by id."""

    extra_bytes: dict[int, int]


Step: TypeAlias = Measure | Charge | None


@dataclass(slots=True)
class WorkerMemory:
    """What is known of a worker's memory, for people and metrics.

    Attributes:
        idle_bytes: The private bytes that its process had when it was started.
        believed_bytes: These, and what its instances are accounted with.
        private_bytes: What the kernel said last.
        mapped_bytes: File pages that it uses, as the kernel says; what several processes use counts for each.
        mappings: Entries in its table of mappings, as they were counted last.
        trims: How often it was told to give memory back.
        recycles: How often its process was replaced since it had too much.
    """

    idle_bytes: int = 0
    believed_bytes: int = 0
    private_bytes: int = 0
    mapped_bytes: int = 0
    mappings: int = 0
    trims: int = 0
    recycles: int = 0

    @property
    def drift_bytes(self) -> int:
        """How much more it takes than it is believed to; negative: less."""
        return self.private_bytes - self.believed_bytes


@dataclass(slots=True)
class _Charged:
    """What an instance was charged with, and since when it is so much."""

    extra_bytes: int
    since: float
    is_told: bool = False


@dataclass(slots=True)
class DriftWatch:
    """Follows the memory of one worker process.

    Attributes:
        most_bytes: What one instance can be charged with at most.
    """

    most_bytes: int = 0
    _drifts: deque[tuple[float, int]] = field(default_factory=deque)
    _since: float = math.inf
    _is_trimmed: bool = False
    _unexplained: int | None = None
    _credits: dict[int, float] = field(default_factory=dict)
    _charged: dict[int, _Charged] = field(default_factory=dict)

    def observe(
        self,
        now: float,
        drift_bytes: int,
        accounted_bytes: int,
        present: Container[int],
        ran: Callable[[], Collection[int]],
    ) -> Step:
        """Takes a sample and says what is to be done now.

        Args:
            now: The time.
            drift_bytes: What the process takes beyond what it is believed to.
            accounted_bytes: What its instances are accounted with, charges included.
            present: The instances that it has.
            ran: Says which of them ran since the sample before.
        """
        self._note(drift_bytes, present, ran)
        drifts = self._drifts
        drifts.append((now, drift_bytes))
        self._since = min(self._since, now)
        while drifts[0][0] < now - WINDOW_S:
            drifts.popleft()
        if now - self._since < WINDOW_S:
            return None
        least_bytes = min(drift for _, drift in drifts)
        if least_bytes <= max(ALLOWED_BYTES, accounted_bytes * ALLOWED_SHARE):
            self._is_trimmed = False
            return None
        self._begin_again()
        if not self._is_trimmed:
            self._is_trimmed = True
            return Measure.TRIM
        return self._charge(least_bytes, now) or Measure.RECYCLE

    def settled(self, now: float) -> dict[int, int]:
        """Instances whose charge has not grown for long: their models need it. Each charge is told once."""
        found = {}
        for instance, charged in self._charged.items():
            if not charged.is_told and now - charged.since >= SETTLED_AFTER_S:
                charged.is_told = True
                found[instance] = charged.extra_bytes
        return found

    def _note(self, drift_bytes: int, present: Container[int], ran: Callable[[], Collection[int]]) -> None:
        """Credits what is new to those that ran meanwhile; charges and those who leave change nothing of it."""
        for gone in [instance for instance in self._charged if instance not in present]:
            del self._charged[gone]
        for gone in [instance for instance in self._credits if instance not in present]:
            del self._credits[gone]
        before = self._unexplained
        total = drift_bytes + sum(charged.extra_bytes for charged in self._charged.values())
        now = self._unexplained = max(0, total)
        if before is None:
            return
        if now - before > NOISE_BYTES:
            running = ran()
            for instance in running:
                self._credits[instance] = self._credits.get(instance, 0.0) + (now - before) / len(running)
        elif before - now > NOISE_BYTES:
            self._credits = {instance: credit * now / before for instance, credit in self._credits.items()}

    def _charge(self, drift_bytes: int, now: float) -> Charge | None:
        """Charges those that ran while it came; None if that explains less than half of it."""
        total = sum(self._credits.values())
        if total < drift_bytes / 2:
            return None
        extra = {instance: int(drift_bytes * credit / total) for instance, credit in self._credits.items() if credit}
        before = {instance: charged.extra_bytes for instance, charged in self._charged.items()}
        if any(before.get(instance, 0) + more > self.most_bytes for instance, more in extra.items()):
            return None
        for instance, more in extra.items():
            self._charged[instance] = _Charged(before.get(instance, 0) + more, now)
        self._credits.clear()
        self._is_trimmed = False
        return Charge(extra)

    def _begin_again(self) -> None:
        self._drifts.clear()
        self._since = math.inf


@dataclass(slots=True)
class Pause:
    """How long to wait before the next attempt at what did not help for long; starts small and doubles."""

    until: float = -math.inf
    _last: float = -math.inf
    _length_s: float = FIRST_PAUSE_S

    def is_over(self, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self.until

    def begin(self, now: float) -> None:
        """It was tried."""
        is_new = now - self._last > 4 * self._length_s
        self._length_s = FIRST_PAUSE_S if is_new else min(LONGEST_PAUSE_S, 2 * self._length_s)
        self._last, self.until = now, now + self._length_s

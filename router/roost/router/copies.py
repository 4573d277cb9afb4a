"""Step 5, the pure part of scaling: how many copies of a revision there should be. Time is passed in.

Copies are added when requests wait, in proportion to how much more comes than the present ones can run, and taken away
one by one once fewer would have been enough for some time. Between what adds and what takes away is a wide band, so
that no constant load, however it trembles, makes copies come and go; and where the load itself does, the pauses grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PERIOD_S = 0.5
"""How often it is looked at what copies do."""

PERIODS_PRESSED = 2
"""After so many periods in a row in which requests waited, copies are added: one burst is none of their business."""

SHORT_WAIT_S = 0.005
"""Nobody minds a wait of this length, nor one for as long as a batch takes."""

FULL = 0.75
"""A copy is meant to be busy for this share of the time; beyond, waits grow quickly."""

EASY = 0.5
"""One copy less would have to be busy for no more than this share of the time before one goes."""

CALM_S = 30.0
"""For so long it must have been easy before a copy goes, and again before the next one does."""

LONGEST_CALM_S = 1800.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a revision in one period.

    Attributes:
        copies: How many serve it, or are about to.
        coming: How many of them are not there yet.
        demand: How many copies would have been busy all the time with what came.
        wait_s: How long requests waited for a free copy.
        run_s: How long a batch takes.
        refused: How many requests were refused, since they would have waited for too long.
        room: How many workers without a copy have time for one.
        busy: For which share of the time the least busy of its workers had something to run.
    """

    copies: int
    coming: int = 0
    demand: float = 0.0
    wait_s: float = 0.0
    run_s: float = 0.0
    refused: int = 0
    room: int = 0
    busy: float = 1.0

    @property
    def pressed(self) -> bool:
        """Whether requests waited for longer than they have to, and for workers: no copy helps a slow front end."""
        return self.busy >= EASY and (self.refused > 0 or self.wait_s > max(SHORT_WAIT_S, self.run_s))


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many copies there are at least and at most; ``least`` is kept whatever is seen, and goes first."""

    least: int = 0
    most: float = math.inf


class CopyCount:
    """How many copies of one revision there should be, period after period."""

    __slots__ = ("_calm_s", "_calm_since", "_dropped_at", "_pressed")

    def __init__(self, now: float) -> None:
        self._pressed = 0
        self._calm_since = now
        self._calm_s = CALM_S
        self._dropped_at = -math.inf

    def wanted(self, seen: Seen, bounds: Bounds, now: float) -> int:
        """How many copies there should be now, after a period in which this was seen.

        Args:
            seen: The period.
            bounds: What its owner and the machine allow.
            now: The time.
        """
        copies = seen.copies
        most = max(bounds.most, bounds.least)
        self._pressed = self._pressed + 1 if seen.pressed else 0
        if seen.pressed or seen.coming or seen.demand > EASY * (copies - 1):
            self._calm_since = now
        if copies < bounds.least:
            return bounds.least
        if copies > most:
            return int(most)
        if self._pressed >= PERIODS_PRESSED and not seen.coming and seen.room and copies < most:
            return self._more(seen, most, now)
        if copies > max(1, bounds.least) and now - self._calm_since >= self._calm_s:
            self._calm_since = self._dropped_at = now
            return copies - 1
        return copies

    def _more(self, seen: Seen, most: float, now: float) -> int:
        """One more copy, or as many as it takes for what comes, as far as there is room for them."""
        if now - self._dropped_at <= self._calm_s:  # the last one was wanted after all
            self._calm_s = min(LONGEST_CALM_S, 2 * self._calm_s)
        else:
            self._calm_s = CALM_S
        self._pressed = 0
        more = max(1, math.ceil(seen.demand / FULL) - seen.copies)
        return int(min(most, seen.copies + min(more, seen.room)))

"""How long a batch of a revision takes: t(n) = b + a·n, learned from the batches that ran. Pure; time is passed in."""

from __future__ import annotations

import math

MEMORY_BATCHES = 64
"""After so many batches an observation counts e times less."""

BELIEVED_RUNS = 5
"""What was learned is believed for as long as so many batches of one row take: a prediction that refuses everything
would never be proven wrong else."""

SHORTEST_BELIEF_S = 0.02
LONGEST_BELIEF_S = 1.0

LARGER = 4
SMALLER = 64
"""So many times larger or smaller than those that ran may batches be that something can be said of. Beyond that the
predictions are as low as can be: one that is too high refuses just the requests that would prove it wrong."""

EVERY_S = 0.001
"""Very short batches need not all be learned from."""

_DECAY = 1 - 1 / MEMORY_BATCHES
_OVERRUN_SHARE = 1 / 16  # as TCP does for its retransmission timer, whose question is the same
_DEVIATIONS = 2.0
_MOST_CAUTION = 2.0
_OUTLIER = 3.0
_ENOUGH_VARIATION = 0.05


class Pace:
    """See the module.

    Weighted least squares over the batches so far, older ones counting less; neither coefficient is ever negative.
    Where the sizes hardly differ, one cannot tell a from b; then half of the time is taken to be per row, which is
    between both extremes. A batch that took several times what was expected (the machine was busy, pages were cold)
    counts as if it had taken ``_OUTLIER`` times as long, so that one changes little and a lasting change is learned.
    The very first one, which often is slow, is forgotten as soon as there is a second, and nothing is said until then.

    Attributes:
        caution: So many times what is predicted nearly all turns take at most.
        single_s: What a batch of one row is expected to take; 0 if nothing was learned yet.
    """

    __slots__ = (
        "_a_s",
        "_b_s",
        "_deviation",
        "_high",
        "_known_until",
        "_low",
        "_n",
        "_next",
        "_overrun",
        "_seen",
        "_x",
        "_xx",
        "_xy",
        "_y",
        "caution",
        "single_s",
    )

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self._a_s = self._b_s = self.single_s = 0.0
        self._low, self._high = math.inf, 0.0  # the sizes that something can be said of
        self._overrun, self._deviation, self.caution = 1.0, 0.0, 1.0
        self._seen = 0
        self._known_until = self._next = -math.inf

    def observe(self, rows: int, took_s: float, now: float, turn_s: float = 0.0) -> None:
        """Learns from a batch that has run, unless it did so a moment ago.

        Args:
            rows: Its size.
            took_s: How long its run took.
            now: The time.
            turn_s: How long its turn was, up to the answer; more than its run if the processors had other things to do.
        """
        if now < self._next:
            return
        if self._seen == 1:
            self._n = self._x = self._y = self._xx = self._xy = 0.0
            self._low, self._high = math.inf, 0.0
        elif self._seen and self._low <= rows <= self._high:
            expected_s = self._b_s + self._a_s * rows
            if expected_s:
                self._compare(turn_s / expected_s)
                took_s = min(took_s, _OUTLIER * expected_s)
        self._seen += 1
        self._low = min(rows / SMALLER, self._low / _DECAY)
        self._high = max(rows * LARGER, self._high * _DECAY)
        self._n = self._n * _DECAY + 1
        self._x = self._x * _DECAY + rows
        self._y = self._y * _DECAY + took_s
        self._xx = self._xx * _DECAY + rows * rows
        self._xy = self._xy * _DECAY + rows * took_s
        self._fit()
        if self._seen > 1:
            believed_s = BELIEVED_RUNS * (self._b_s + self._a_s)
            self._known_until = now + min(LONGEST_BELIEF_S, max(SHORTEST_BELIEF_S, believed_s))
        self._next = now + EVERY_S

    def _fit(self) -> None:
        mean_rows, mean_s = self._x / self._n, self._y / self._n
        slope_s = mean_s / (2 * mean_rows)
        variation = self._xx / (mean_rows * mean_rows) - self._n  # of the sizes, in squares of their mean
        if variation > 1e-6:
            measured_s = (self._xy / mean_rows - self._y) / (variation * mean_rows)
            slope_s += (measured_s - slope_s) * variation / (variation + _ENOUGH_VARIATION)
        self._a_s = min(max(0.0, slope_s), mean_s / mean_rows)
        self._b_s = mean_s - self._a_s * mean_rows
        self.single_s = self.estimate(1)

    def _compare(self, ratio: float) -> None:
        off = ratio - self._overrun
        self._overrun += off * _OVERRUN_SHARE
        self._deviation += (abs(off) - self._deviation) * _OVERRUN_SHARE
        self.caution = min(max(1.0, self._overrun + _DEVIATIONS * self._deviation), _MOST_CAUTION)

    def is_known(self, now: float) -> bool:
        """Whether there was a batch lately, so that predictions are worth something."""
        return now < self._known_until

    def estimate(self, rows: int) -> float:
        """The seconds that a batch of so many rows is expected to take; 0 if nothing was learned yet."""
        if rows >= self._high:
            return self._b_s + self._a_s * self._high
        if rows < self._low:
            return (self._b_s + self._a_s * self._low) * rows / self._low
        return self._b_s + self._a_s * rows

    def most_rows(self, within_s: float, limit_rows: int) -> int:
        """The largest batch of at most ``limit_rows`` that is expected to take no longer than ``within_s``."""
        if within_s < 0:
            return 0
        left_s, low = within_s - self._b_s, self._low
        if left_s >= self._a_s * min(limit_rows, self._high):
            return limit_rows
        if left_s < self._a_s * low:  # then so many rows take more than nothing
            return min(limit_rows, int(within_s / (self._b_s + self._a_s * low) * low * (1 + 1e-12)))
        return int(left_s / self._a_s * (1 + 1e-12))


class Cautious:
    """A pace's predictions as large as nearly all batches take at most: what a promise is made by."""

    __slots__ = ("_caution", "_pace")

    def __init__(self, pace: Pace, caution: float) -> None:
        self._pace, self._caution = pace, caution

    def estimate(self, rows: int) -> float:
        """The seconds that a batch of so many rows hardly ever takes longer than."""
        return self._pace.estimate(rows) * self._caution

    def most_rows(self, within_s: float, limit_rows: int) -> int:
        """The largest batch of at most ``limit_rows`` that hardly ever takes longer than ``within_s``."""
        return self._pace.most_rows(within_s / self._caution, limit_rows)

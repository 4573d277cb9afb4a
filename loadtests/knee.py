"""The knee of a load curve: the highest rate that a server still carries well, read off runs at rising rates. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

GOOD_SHARE = 0.99
_LOST_SHARE = 0.9
_LOST_RUNS = 2


@dataclass(slots=True)
class Curve:
    """Which share of its requests a server answers rightly and in time, at rising rates."""

    points: list[tuple[float, float]] = field(default_factory=list)

    def add(self, rate_per_s: float, share_in_time: float) -> None:
        """Takes in a run at a higher rate than those before, or another at the last one: the better counts."""
        if self.points and self.points[-1][0] == rate_per_s:
            share_in_time = max(share_in_time, self.points.pop()[1])
        self.points.append((rate_per_s, share_in_time))

    def fell_a_little_short(self, rate_per_s: float) -> bool:
        """Whether that was the last rate, and so many were in time that another run may tell otherwise."""
        return bool(self.points) and self.points[-1][0] == rate_per_s and _LOST_SHARE <= self.points[-1][1] < GOOD_SHARE

    @property
    def is_over(self) -> bool:
        """Whether higher rates will not be carried either: several in a row were far from it."""
        last = self.points[-_LOST_RUNS:]
        return len(last) == _LOST_RUNS and all(share < _LOST_SHARE for _, share in last)

    def knee_per_s(self) -> float:
        """The highest rate at which 99 % are in time, 0 if there is none.

        Between the last rate that was good and the next one it is where a line between both crosses 99 %, so that how
        far rates are apart matters little.
        """
        knee = 0.0
        for index, (rate, share) in enumerate(self.points):
            if share < GOOD_SHARE:
                continue
            knee = rate
            if index + 1 < len(self.points):
                next_rate, next_share = self.points[index + 1]
                if next_share < GOOD_SHARE:
                    knee += (next_rate - rate) * (share - GOOD_SHARE) / (share - next_share)
        return knee


def rates(lowest_per_s: float, highest_per_s: float, growth: float) -> Iterator[float]:
    """Rising rates, each ``growth`` times the one before."""
    for step in range(1 + math.floor(math.log(highest_per_s / lowest_per_s, growth) + 1e-9)):
        yield lowest_per_s * growth**step

"""From samples to ratios and gates: plain arithmetic, no processes.

Absolute rates on a shared machine wobble by a factor of two between minutes, so servers are compared within a round,
one run right after the other, and the median of the rounds' ratios counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Metric = Literal["rate", "p50"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a load generator against one server.

    Attributes:
        rate_per_s: Right answers per second.
        p50_s: Median latency.
        p99_s: Latency of the slowest hundredth.
        cpu_s_per_10k: CPU time that all processes of the server took for 10,000 requests.
    """

    rate_per_s: float
    p50_s: float
    p99_s: float
    cpu_s_per_10k: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the lowest and the highest value."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """For a table."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


METRICS: Mapping[Metric, Callable[[Sample], float]] = {
    "rate": lambda sample: sample.rate_per_s,
    "p50": lambda sample: sample.p50_s,
}


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], metric: Metric) -> Spread | None:
    """Ours over theirs, round by round; None if there is no round that both took part in."""
    read = METRICS[metric]
    ratios = [read(mine) / read(other) for mine, other in zip(ours, theirs, strict=False) if read(other) > 0]
    return spread(ratios) if ratios else None


@dataclass(frozen=True, slots=True)
class Gate:
    """What is promised of a ratio between two servers in one cell.

    Attributes:
        title: What it is called in the table.
        cell: The key of the cell.
        server: Whose value is above the line.
        peer: Whose is below.
        metric: Of what.
        wanted: The ratio promised; None where it is only shown.
        at_least: Whether it is the least or the most that the ratio may be.
    """

    title: str
    cell: str
    server: str
    peer: str
    wanted: float | None
    metric: Metric = "rate"
    at_least: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate and what was measured; ``measured`` is None where somebody did not take part."""

    title: str
    wanted: float | None
    at_least: bool
    measured: Spread | None

    @property
    def is_met(self) -> bool | None:
        """Whether the median keeps the promise; None if there is nothing to judge."""
        if self.measured is None or self.wanted is None:
            return None
        return self.measured.median >= self.wanted if self.at_least else self.measured.median <= self.wanted


Samples = Mapping[str, Mapping[str, Sequence[Sample]]]


def judge(gate: Gate, samples: Samples) -> Verdict:
    """Looks the gate's ratio up among the samples, by cell and server."""
    cell = samples.get(gate.cell, {})
    measured = ratio(cell.get(gate.server, ()), cell.get(gate.peer, ()), gate.metric)
    return Verdict(gate.title, gate.wanted, gate.at_least, measured)

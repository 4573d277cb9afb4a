"""The open-loop bench's results: what was measured of each server, the gates, and tables of both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loadtests.bench_report import table
from loadtests.bench_stats import Spread, Verdict, spread
from loadtests.contender import Measured, Overload
from loadtests.knee import Curve

OURS = "roost"
REFUSAL_S = 0.020
KEPT_SIMPLE = 0.6
KEPT_WORK = 0.95
LEAD = 1.05


@dataclass(slots=True)
class Series:
    """One server's rounds: its curve, what it does at twice its knee, and a run that is refused as a whole."""

    curves: list[Curve] = field(default_factory=list)
    overloads: list[Overload] = field(default_factory=list)
    hopeless: list[Measured] = field(default_factory=list)
    invalid_runs: int = 0

    @property
    def knees_per_s(self) -> list[float]:
        """The knee of each round."""
        return [curve.knee_per_s() for curve in self.curves]


@dataclass(slots=True)
class ModelResult:
    """What was measured with one model.

    Attributes:
        name: The model.
        is_work: Whether the model's own time is what counts.
        limit_s: Within which time answers had to come.
        servers: By name.
    """

    name: str
    is_work: bool
    limit_s: float
    servers: dict[str, Series] = field(default_factory=dict)

    def lead(self) -> Spread | None:
        """Our knee by the best other one of the same round; None without others."""
        others = [series.knees_per_s for name, series in self.servers.items() if not name.startswith(OURS)]
        if not others or OURS not in self.servers:
            return None
        rounds = zip(self.servers[OURS].knees_per_s, zip(*others, strict=True), strict=True)
        ratios = [ours / max(best) for ours, best in rounds if max(best) > 0]
        return spread(ratios) if ratios else None

    def verdicts(self) -> list[Verdict]:
        """The gates of this model."""
        if OURS not in self.servers:
            return []
        overloads = self.servers[OURS].overloads
        kept = spread([overload.kept for overload in overloads]) if overloads else None
        refusals = [overload.over.tally.refusal_p99_s for overload in overloads]
        refusal = (
            spread([p99_s * 1e3 for p99_s in refusals]) if refusals and not any(map(math.isnan, refusals)) else None
        )
        wanted = KEPT_WORK if self.is_work else KEPT_SIMPLE
        found = [
            Verdict(f"goodput at 2 x knee by goodput at the knee, {self.name}", wanted, True, kept),
            Verdict(f"p99 of a refusal at 2 x knee, ms, {self.name}", REFUSAL_S * 1e3, False, refusal),
        ]
        if self.is_work:
            found.append(Verdict(f"knee vs the best peer, {self.name}", LEAD, True, self.lead()))
        return found


HEAD = (
    "model, server",
    "knee/s",
    "kept at 2 x",
    "in time at 2 x",
    "refused",
    "failed",
    "p99 refusal ms",
    "CPU us/request",
    "CPU us/refusal",
    "all refused",
    "lag p99 ms",
    "generator, cores",
    "invalid",
)


def results_table(results: Sequence[ModelResult]) -> str:
    """A row for each model and server; medians over rounds."""
    rows: list[Sequence[str]] = [HEAD]
    for result in results:
        for name, series in result.servers.items():
            rows.append((f"{result.name} ({result.limit_s * 1e3:.0f} ms), {name}", *_cells(series)))
    return table(rows)


def _cells(series: Series) -> tuple[str, ...]:
    over = [overload.over for overload in series.overloads]
    tallies = [measured.tally for measured in over]
    return (
        spread(series.knees_per_s).text(0),
        _median([overload.kept for overload in series.overloads], 2),
        _median([100 * tally.share_in_time for tally in tallies], 0, "%"),
        _median([100 * tally.refused / tally.requests for tally in tallies], 0, "%"),
        _median([100 * tally.failed / tally.requests for tally in tallies], 0, "%"),
        _median([tally.refusal_p99_s * 1e3 for tally in tallies], 1),
        _median([overload.knee.cpu_per_request_s * 1e6 for overload in series.overloads], 0),
        _median([overload.refusal_cpu_s * 1e6 for overload in series.overloads], 0),
        _median([run.cpu_per_request_s * 1e6 for run in series.hopeless if run.tally.refused], 0),
        _median([tally.lag_p99_s * 1e3 for tally in tallies], 2),
        _median([measured.generator_cores for measured in over], 2),
        str(series.invalid_runs),
    )


def _median(values: Sequence[float], digits: int, unit: str = "") -> str:
    known = [value for value in values if not math.isnan(value)]
    return f"{statistics.median(known):.{digits}f}{unit}" if known else "-"


def as_document(results: Sequence[ModelResult]) -> Mapping[str, object]:
    """The figures behind the table, for ``results.json``."""
    return {
        result.name: {
            "limit_s": result.limit_s,
            "servers": {
                name: {
                    "curves": [curve.points for curve in series.curves],
                    "knees_per_s": series.knees_per_s,
                    "kept": [overload.kept for overload in series.overloads],
                    "refusal_p99_s": [overload.over.tally.refusal_p99_s for overload in series.overloads],
                    "refusal_cpu_s": [overload.refusal_cpu_s for overload in series.overloads],
                    "hopeless_cpu_s": [run.cpu_per_request_s for run in series.hopeless],
                    "generator_cores": [overload.over.generator_cores for overload in series.overloads],
                }
                for name, series in result.servers.items()
            },
        }
        for result in results
    }

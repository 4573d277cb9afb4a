"""What the simulator found, as tables, as a file and as curves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.simulate_runs import Outcome

LRU, COST, NONE_AHEAD, CLAIRVOYANT, BOUND = "lru", "cost", "cost, none ahead", "clairvoyant", "lower bound"
GATE_MEAN, GATE_WORST, GATE_CLAIRVOYANT, GATE_DECISION_US = 0.85, 1.02, 1.5, 50.0


@dataclass(frozen=True, slots=True)
class Result:
    """One policy on one trace."""

    trace: str
    seed: int
    capacity: float
    policy: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f}-{self.high:.3f})"


def geometric_mean(values: Iterable[float]) -> float:
    """Of ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


class Results:
    """All runs, by trace, capacity and policy."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.all = results
        self._of = {(r.trace, r.seed, r.capacity, r.policy): r.outcome for r in results}
        self.traces = list(dict.fromkeys(r.trace for r in results))
        self.seeds = sorted({r.seed for r in results})
        self.policies = list(dict.fromkeys(r.policy for r in results))

    def ratio(self, trace: str, capacity: float, policy: str, to: str, *, waited: bool = False) -> Spread | None:
        """Load-seconds of one policy over another's, over the seeds."""
        ratios = []
        for seed in self.seeds:
            one, other = (self._of.get((trace, seed, capacity, name)) for name in (policy, to))
            if one is not None and other is not None and other.load_s:
                ratios.append((one.waited_s if waited else one.load_s) / other.load_s)
        return Spread(geometric_mean(ratios), min(ratios), max(ratios)) if ratios else None

    def mean(self, trace: str, capacity: float, policy: str, figure: Callable[[Outcome], float]) -> float:
        """A figure, over the seeds."""
        outcomes = [self._of.get((trace, seed, capacity, policy)) for seed in self.seeds]
        values = [figure(outcome) for outcome in outcomes if outcome is not None]
        return sum(values) / len(values) if values else math.nan


def tables(results: Results, capacity: float) -> str:
    """The report at one capacity: load-seconds, cold starts, and the referee."""
    return "\n\n".join((_main_table(results, capacity), _referee_table(results, capacity)))


def _main_table(results: Results, capacity: float) -> str:
    lines = [
        "| trace | lru: cold starts | cost: cold starts | cost / lru, load-seconds | of which waited "
        "| with no loads ahead | loads ahead: unused | cost / clairvoyant | clairvoyant / lower bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for trace in results.traces:
        cold = [results.mean(trace, capacity, p, lambda o: o.cold_starts / o.requests) for p in (LRU, COST)]
        ahead = results.mean(trace, capacity, COST, lambda o: o.ahead)
        wasted = results.mean(trace, capacity, COST, lambda o: o.wasted)
        lines.append(
            f"| {trace} | {cold[0]:.1%} | {cold[1]:.1%} | {results.ratio(trace, capacity, COST, LRU)} "
            f"| {results.ratio(trace, capacity, COST, LRU, waited=True)} "
            f"| {results.ratio(trace, capacity, NONE_AHEAD, LRU) or '-'} "
            f"| {f'{wasted / ahead:.1%} of {ahead:,.0f}' if ahead else '-'} "
            f"| {results.ratio(trace, capacity, COST, CLAIRVOYANT)} "
            f"| {results.ratio(trace, capacity, CLAIRVOYANT, BOUND)} |"
        )
    return "\n".join(lines)


def _referee_table(results: Results, capacity: float) -> str:
    names = [policy for policy in results.policies if policy not in (LRU, NONE_AHEAD, BOUND)]
    lines = [
        "Load-seconds over those of `lru`; capitals: libCacheSim.",
        "",
        f"| trace | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for trace in results.traces:
        ratios = [results.ratio(trace, capacity, name, LRU) for name in names]
        lines.append(f"| {trace} | {' | '.join('-' if r is None else f'{r.mean:.3f}' for r in ratios)} |")
    return "\n".join(lines)


def gates(results: Results, capacity: float, decision_us: float | None) -> list[tuple[str, str, bool]]:
    """What was promised, what came out, and whether that is enough; a ratio of several seeds is their mean's."""
    to_lru = {t: r for t in results.traces if (r := results.ratio(t, capacity, COST, LRU)) is not None}
    worst = max(to_lru, key=lambda t: to_lru[t].mean)
    mean = geometric_mean(r.mean for r in to_lru.values())
    rows = [
        (f"cost / lru, geometric mean <= {GATE_MEAN}", f"{mean:.3f}", mean <= GATE_MEAN),
        (f"cost / lru, worst <= {GATE_WORST}", f"{to_lru[worst]} {worst}", to_lru[worst].mean <= GATE_WORST),
    ]
    zipf = {
        t: r
        for t in results.traces
        if t.startswith(("zipf", "drift")) and (r := results.ratio(t, capacity, COST, CLAIRVOYANT)) is not None
    }
    if zipf:
        last = max(zipf, key=lambda t: zipf[t].mean)
        rows.append(
            (
                f"cost / clairvoyant, Zipf <= {GATE_CLAIRVOYANT}",
                f"{zipf[last]} {last}",
                zipf[last].mean <= GATE_CLAIRVOYANT,
            )
        )
    if decision_us is not None:
        rows.append(
            (
                f"decision at 100,000 models <= {GATE_DECISION_US:.0f} us",
                f"{decision_us:.1f} us",
                decision_us <= GATE_DECISION_US,
            )
        )
    return rows


def write_document(results: Results, path: Path) -> None:
    """All outcomes as JSON."""
    rows = [asdict(result) for result in results.all]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def draw_curves(results: Results, path: Path) -> None:
    """Load-seconds over LRU's by capacity, one plot a trace."""
    import matplotlib  # type: ignore[import-not-found]  # is in the simulator's environment

    matplotlib.use("Agg")
    from matplotlib import pyplot

    capacities = sorted({r.capacity for r in results.all})
    traces = [t for t in results.traces if len({r.capacity for r in results.all if r.trace == t}) > 1]
    if not traces:
        return
    columns = min(3, len(traces))
    rows = math.ceil(len(traces) / columns)
    colours = {LRU: "black", COST: "tab:orange", CLAIRVOYANT: "tab:blue", BOUND: "tab:gray"}
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis, trace in zip(axes.flat, traces, strict=False):
        for policy in (name for name in results.policies if name != NONE_AHEAD):
            points = {100 * c: r.mean for c in capacities if (r := results.ratio(trace, c, policy, LRU))}
            width, marker = (2.0, ".") if policy in colours else (0.8, None)
            axis.plot(
                list(points),
                list(points.values()),
                label=policy,
                linewidth=width,
                marker=marker,
                color=colours.get(policy),
            )
        axis.set(
            title=trace, xscale="log", xlabel="memory, % of all models", ylabel="load-seconds / lru", ylim=(0, 1.3)
        )
        axis.set_xticks([100 * c for c in capacities], [f"{100 * c:g}" for c in capacities])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    for axis in list(axes.flat)[len(traces) :]:
        axis.axis("off")
    figure.savefig(path, dpi=110)

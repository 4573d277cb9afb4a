"""Gates of the mesh that other benches measure: prepared copies, cold requests, eviction policies."""

from __future__ import annotations

import time
from pathlib import Path

from roost.router.eviction import POLICIES

from loadtests import prepared as prepared_bench
from loadtests import simulate
from loadtests.bench_mesh_report import Findings
from loadtests.bench_mesh_scale import Scale
from loadtests.bench_stats import Spread
from loadtests.prepared import MODELS, Row
from loadtests.simulate_report import (
    CLAIRVOYANT,
    COST,
    GATE_CLAIRVOYANT,
    GATE_DECISION_US,
    GATE_MEAN,
    GATE_WORST,
    LRU,
    Results,
    geometric_mean,
)
from loadtests.simulate_report import Spread as OverSeeds
from loadtests.simulate_traces import SUITE

LARGE = "mlp, 97 MB"
LOAD = 3.0
ANONYMOUS = 0.1
NONE_SLOWER = 1.0
COLD = 1.25
COLD_S = 0.010
SIMULATOR_S = 360.0
_PROCESSES = 2


def prepared(scale: Scale, folder: Path) -> Findings:
    """Eight models with and without a prepared copy, each in fresh processes in turn."""
    found = Findings("prepared copies")
    rows = []
    for number, (name, write) in enumerate(MODELS.items()):
        home = folder / str(number)
        (home / "copy").mkdir(parents=True)
        rows.append(prepared_bench.measure(name, write(home / "model.onnx"), home / "copy", scale.trials))
    judge_copies(found, rows)
    return found


def judge_copies(found: Findings, rows: list[Row]) -> None:
    """The gates of what was measured of models with and without copies."""
    large = next(row for row in rows if row.name == LARGE)
    found.at_least(f"load time of {large.name}, plain by prepared", LOAD, _ratio(large, "load_wall_s"))
    found.at_most(f"anonymous memory of {large.name}, prepared by plain", ANONYMOUS, 1 / _ratio(large, "private_bytes"))
    to_answer = {row.name: _ratio(row, "load_wall_s", "first_run_s") for row in rows}
    least = min(to_answer, key=lambda name: to_answer[name])
    found.at_least(
        f"load and first run, plain by prepared, least of {len(rows)} ({least})",
        NONE_SLOWER,
        Spread(to_answer[least], to_answer[least], max(to_answer.values())),
    )
    found.notes += [row.text() for row in rows]
    found.troubles += [f"{row.name}: a copy answers otherwise" for row in rows if not row.is_equal]


def _ratio(row: Row, *figures: str) -> float:
    return sum(row.plain[figure] for figure in figures) / sum(row.copy[figure] for figure in figures)


def cold(scale: Scale, folder: Path) -> Findings:
    """The first request to a server, whose model has a prepared copy."""
    found = Findings("cold requests")
    request_s, bare_s = prepared_bench.cold(folder, scale.trials)
    found.at_most(
        "cold request less 10 ms, by bare session and first run from the same copy", COLD, (request_s - COLD_S) / bare_s
    )
    found.notes.append(f"cold request {request_s * 1e3:.0f} ms, bare session and first run {bare_s * 1e3:.0f} ms")
    return found


def simulator(scale: Scale, folder: Path) -> Findings:
    """The eviction policies in virtual time."""
    found = Findings("eviction policies in virtual time")
    todo = simulate.jobs(SUITE[: scale.traces], scale.seeds, (), curves=False)
    results = Results(simulate.run_all(todo, _PROCESSES, time.monotonic() + SIMULATOR_S))
    judge_policies(found, results)
    done = len({(result.trace, result.seed) for result in results.all})
    found.notes.append(
        f"{len(results.traces)} kinds of traces, {scale.seeds} seed(s), memory for {simulate.CAPACITY:.0%}"
    )
    if done < len(todo):
        found.troubles.append(f"only {done} of {len(todo)} traces in {SIMULATOR_S:.0f} s")
    return found


def judge_policies(found: Findings, results: Results) -> None:
    """The gates of what the simulator found."""
    to_lru = {trace: _spread(results.ratio(trace, simulate.CAPACITY, COST, LRU)) for trace in results.traces}
    mean = geometric_mean(ratio.median for ratio in to_lru.values())
    found.at_most("load-seconds of cost by lru, geometric mean of the traces", GATE_MEAN, mean)
    last = max(to_lru, key=lambda trace: to_lru[trace].median)
    found.at_most(f"load-seconds of cost by lru, worst trace ({last})", GATE_WORST, to_lru[last])
    zipf = {
        trace: _spread(results.ratio(trace, simulate.CAPACITY, COST, CLAIRVOYANT))
        for trace in results.traces
        if trace.startswith(("zipf", "drift"))
    }
    last = max(zipf, key=lambda trace: zipf[trace].median)
    found.at_most(f"load-seconds of cost by clairvoyant, worst Zipf ({last})", GATE_CLAIRVOYANT, zipf[last])


def _spread(ratio: OverSeeds | None) -> Spread:
    assert ratio is not None
    return Spread(ratio.mean, ratio.low, ratio.high)


def decision(scale: Scale, folder: Path) -> Findings:
    """The CPU time of placement and eviction among very many models."""
    found = Findings("decision time")
    for policy in POLICIES:
        mean_us, p99_us = simulate.decision_us(policy)
        what = f"placement and eviction among {simulate.DECISION_MODELS:,} models, {policy}, us"
        found.at_most(what, GATE_DECISION_US, mean_us)
        found.notes.append(f"{policy}: p99 {p99_us:.1f} us")
    return found

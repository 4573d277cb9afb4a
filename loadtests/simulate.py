"""How good the eviction policies are: the router's own classes in virtual time, beside others and a clairvoyant.

The seeds of a report are 1 to ``--seeds``; the policy's parameters were chosen on seeds from 101 on. Load-seconds
include what was loaded ahead of requests. Everything ends after ``--time-limit`` seconds with what there is by then::

    make simulate
    make simulate ARGS="--traces zipf-0.9,periodic --seeds 2"
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roost.core.figures import Figures
from roost.router.eviction import POLICIES
from roost.router.placement import Ledger
from roost.router.plans import Evict, Limits

from loadtests.simulate_report import (
    BOUND,
    CLAIRVOYANT,
    COST,
    NONE_AHEAD,
    Result,
    Results,
    draw_curves,
    gates,
    tables,
    write_document,
)
from loadtests.simulate_runs import Outcome, clairvoyant, drive, lower_bound
from loadtests.simulate_traces import SUITE, Kind

try:
    from loadtests import simulate_referee
except ImportError:  # the policies can be compared without a referee
    simulate_referee = None  # type: ignore[assignment]

CAPACITY = 0.1
CURVE = (0.025, 0.05, 0.2, 0.4)
CURVE_MODELS = 2000
OUTPUT = Path("build/simulation")
DECISION_MODELS = 100_000
DECISIONS = 20_000


@dataclass(frozen=True, slots=True)
class Job:
    """All policies on one trace at one capacity."""

    kind: int
    seed: int
    capacity: float
    referees: tuple[str, ...]


def run(job: Job) -> list[Result]:
    """Draws the trace and runs every policy through it."""
    kind = SUITE[job.kind]
    trace = kind.trace(job.seed)
    capacity_bytes = max(int(trace.sizes.sum() * job.capacity), int(trace.sizes.max()))
    outcomes = {name: drive(trace, capacity_bytes, policy()) for name, policy in POLICIES.items()}
    if outcomes[COST].ahead:
        outcomes[NONE_AHEAD] = drive(trace, capacity_bytes, POLICIES[COST](), ahead=False)
    for name in job.referees:
        outcomes[name] = simulate_referee.referee(trace, capacity_bytes, name)
    outcomes[CLAIRVOYANT] = clairvoyant(trace, capacity_bytes)
    outcomes[BOUND] = Outcome(waited_s=lower_bound(trace, capacity_bytes))
    return [Result(kind.name, job.seed, job.capacity, name, outcome) for name, outcome in outcomes.items()]


def decision_us(policy: str) -> tuple[float, float]:
    """Mean and 99th percentile of the CPU time that it takes to choose who goes and to take them out.

    The device holds 100,000 models of one to eight MB, and twice as many ask for a place in it; between two decisions
    there are four uses of models that are there.
    """
    collects = gc.isenabled()
    gc.disable()  # as with timeit: a collection is as long as it is because of all objects, and comes at any time
    try:
        return _decisions_us(policy)
    finally:
        if collects:
            gc.enable()


def _decisions_us(policy: str) -> tuple[float, float]:
    rng = random.Random(1)
    sizes = [rng.randrange(1_000_000, 8_000_000) for _ in range(2 * DECISION_MODELS)]
    ledger = Ledger(Limits(sum(sizes[:DECISION_MODELS])), POLICIES[policy]())
    residents: list[int] = []
    for number in range(DECISION_MODELS):
        _take_in(ledger, number, sizes[number], float(number))
        residents.append(number)
    spent_us, now = [], float(DECISION_MODELS)
    for number in range(DECISION_MODELS, DECISION_MODELS + DECISIONS):
        for _ in range(4):
            used = residents[int(DECISION_MODELS * rng.random() ** 3)]
            if used in ledger.holdings:
                ledger.lease(used, now)
                ledger.release(used, now)
        now += 1.0
        need = Figures(sizes[number])
        begin = time.thread_time()
        plan = ledger.plan(need, now)
        for victim in plan.idle if isinstance(plan, Evict) else ():
            ledger.leaving(victim)
            ledger.gone(victim)
        spent_us.append((time.thread_time() - begin) * 1e6)
        _take_in(ledger, number, sizes[number], now)
        residents[rng.randrange(DECISION_MODELS)] = number
    spent_us.sort()
    return sum(spent_us) / len(spent_us), spent_us[int(len(spent_us) * 0.99)]


def _take_in(ledger: Ledger, number: int, size_bytes: int, now: float) -> None:
    ledger.reserve(number, number, Figures(size_bytes))
    ledger.loaded(number, now, load_s=size_bytes / 1e8)
    ledger.lease(number, now)
    ledger.release(number, now)


def jobs(kinds: Sequence[Kind], seeds: int, referees: tuple[str, ...], *, curves: bool) -> list[Job]:
    """The report's runs first, then the curves' (first seed, small catalogues)."""
    number = {kind.name: place for place, kind in enumerate(SUITE)}
    chosen = [number[kind.name] for kind in kinds]
    todo = [Job(kind, seed, CAPACITY, referees) for seed in range(1, seeds + 1) for kind in chosen]
    if curves:
        small = [kind for kind in chosen if SUITE[kind].models <= CURVE_MODELS]
        todo += [Job(kind, 1, capacity, referees) for capacity in CURVE for kind in small]
    return todo


def run_all(todo: Sequence[Job], processes: int, deadline: float) -> list[Result]:
    """Runs them side by side until all are done or time is up."""
    results: list[Result] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        running = [pool.apply_async(run, (job,)) for job in todo]
        for number, (job, one) in enumerate(zip(todo, running, strict=True), start=1):
            try:
                results += one.get(max(0.0, deadline - time.monotonic()))
            except multiprocessing.TimeoutError:
                print(f"time is up: {len(todo) - number + 1} of {len(todo)} runs are missing")
                break
            print(f"{number}/{len(todo)} {SUITE[job.kind].name} seed {job.seed} at {job.capacity:.1%}", flush=True)
    return results


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="loadtests/simulate.py", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--traces", help="some of: " + ", ".join(kind.name for kind in SUITE))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--time-limit", type=float, default=1200.0, help="seconds")
    parser.add_argument("--no-curves", action="store_true")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the figures and curves")
    return parser.parse_args()


def main() -> int:
    """Runs, prints and writes everything; 1 if a gate is missed."""
    options = arguments()
    deadline = time.monotonic() + options.time_limit
    names = options.traces.split(",") if options.traces else [kind.name for kind in SUITE]
    kinds = [kind for kind in SUITE if kind.name in names]
    referees = () if simulate_referee is None else simulate_referee.POLICIES
    decisions = {policy: decision_us(policy) for policy in POLICIES}
    for policy, (mean_us, p99_us) in decisions.items():
        print(f"decision of {policy} among {DECISION_MODELS:,} models: mean {mean_us:.1f} us, p99 {p99_us:.1f} us")
    todo = jobs(kinds, options.seeds, referees, curves=not options.no_curves)
    results = Results(run_all(todo, options.jobs, deadline))
    options.output.mkdir(parents=True, exist_ok=True)
    write_document(results, options.output / "results.json")
    if not results.all:
        return 1
    print(tables(results, CAPACITY), end="\n\n")
    rows = gates(results, CAPACITY, decisions[COST][0])
    for gate, figure, met in rows:
        print(f"{'met   ' if met else 'MISSED'} {gate}: {figure}")
    if not options.no_curves:
        draw_curves(results, options.output / "curves.png")
    return 0 if all(met for _, _, met in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

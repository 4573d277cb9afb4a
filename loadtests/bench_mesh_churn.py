"""Zipf traffic to ten times as many models as fit into the budget."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from roost.server.sizing import USED_VERSION_BYTES

from loadtests.bench_load import LoadFailed
from loadtests.bench_mesh_asked import Asked, Seen, asked, draw, zipf_shares
from loadtests.bench_mesh_models import in_small_batches, magikas, pinned, simples, tiny, write_copies
from loadtests.bench_mesh_report import Findings
from loadtests.bench_mesh_scale import Scale
from loadtests.bench_mesh_servers import CONNECTIONS, GRACE_S, Peak, calm, drive, load_all, private_at_rest, serving
from loadtests.models import BenchModel, magika, simple
from loadtests.open_loop import Schedule
from tests.server import RoostServer

FIT = 10
ZIPF = 0.9
SIMPLE_PER_S = 200.0
MAGIKA_PER_S = 40.0
SIMPLES_PER_MAGIKA = 100
# Of the requests, those to models that are never evicted: they are warm with and without churn.
WARM_SHARE = 0.1
WARM = 1.3
_BUDGET_OF_ALL = "64GiB"
_TAKES = 10  # magika loads in about as long as makes a copy worth it
_COMMAND_S = 120.0
_SETTLE_S = 3.0
_WARM_NAMES = ("warm-simple", "warm-magika")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Models that compete for memory, and two that do not: the first of ``questions``."""

    repository: Path
    cache: Path
    questions: Asked
    rates_per_s: npt.NDArray[np.float64]


def _catalogue(scale: Scale, folder: Path) -> Catalogue:
    """Writes the models and prepares those that gain by it."""
    repository, cache = folder / "models", folder / "cache"
    one, names = simples(repository, scale.churn_models)
    write_copies(repository, simple, _WARM_NAMES[:1], lambda model: pinned(tiny(model)))
    big, big_names = _prepared(repository, cache, max(FIT, scale.churn_models // SIMPLES_PER_MAGIKA))
    questions = asked(one, _WARM_NAMES[:1]) + asked(big, _WARM_NAMES[1:]) + asked(one, names) + asked(big, big_names)
    rates = [[SIMPLE_PER_S * WARM_SHARE, MAGIKA_PER_S * WARM_SHARE]]
    for rate_per_s, count in ((SIMPLE_PER_S, len(names)), (MAGIKA_PER_S, len(big_names))):
        rates.append((rate_per_s * (1 - WARM_SHARE) * zipf_shares(count, ZIPF)).tolist())
    return Catalogue(repository, cache, questions, np.concatenate(rates))


def _prepared(repository: Path, cache: Path, count: int) -> tuple[BenchModel, list[str]]:
    """Magikas with one digest, so that one copy is made for all of them, and not one after the other.

    Raises:
        LoadFailed: Again and again no copy was found to be of use, as happens on a machine that is busy.
    """
    said = ""
    for take in range(_TAKES):
        note = f"take {take}"  # what was found out about a digest is kept
        found = magikas(repository, count, note)
        write_copies(repository, magika, _WARM_NAMES[1:], lambda model: pinned(in_small_batches(model)), note)
        flags = ("--model-repository", str(repository), "--cache-dir", str(cache))
        said = _roost("prepare", _WARM_NAMES[1], *flags)
        if ": prepared" in said:
            return found
    raise LoadFailed(f"there is no prepared copy: {said}")


def _roost(*command: str) -> str:
    """What a command prints."""
    line = [sys.executable, "-m", "roost.server.cli", *command]
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, timeout=_COMMAND_S, check=False).stdout


@dataclass(frozen=True, slots=True)
class _Beside:
    """What the processes take beside the budget, as the documented formula has it: idle and K, and R."""

    base_bytes: int
    run_bytes: int


@dataclass(slots=True)
class _Churned:
    """Runs against a server that has room for all models and one that has not, in turn."""

    roomy: list[Seen] = field(default_factory=list)
    tight: list[Seen] = field(default_factory=list)

    def p50_ratios(self, warm: int) -> list[float]:
        """Of the requests to a model that is never evicted."""
        return [
            tight.quantile_s(0.5, tight.picks == warm) / roomy.quantile_s(0.5, roomy.picks == warm)
            for roomy, tight in zip(self.roomy, self.tight, strict=True)
        ]


def churn(scale: Scale, folder: Path) -> Findings:
    """Zipf traffic to ten times as many models as fit, beside a server where all fit."""
    found = Findings(f"{FIT} times more models than fit")
    began = time.monotonic()
    catalogue = _catalogue(scale, folder)
    questions = catalogue.questions
    found.notes.append(f"models were written and prepared in {time.monotonic() - began:.0f} s")
    flags = ("--cache-dir", str(catalogue.cache), "--no-preload", "--memory-budget")
    with ExitStack() as stack:
        roomy = stack.enter_context(serving(catalogue.repository, folder / "roomy", *flags, _BUDGET_OF_ALL))
        load_all(roomy, questions, np.arange(len(questions), dtype=np.uint32))
        budget_bytes = int(roomy.status()["devices"][0]["used_bytes"]) // FIT
        tight = stack.enter_context(serving(catalogue.repository, folder / "tight", *flags, str(budget_bytes)))
        base_bytes = private_at_rest(tight)
        load_all(tight, questions, np.arange(len(_WARM_NAMES), dtype=np.uint32))
        peak = Peak()
        runs = _in_turn(roomy, tight, catalogue, scale, peak)
        used = np.unique(np.concatenate([run.picks for run in runs.tight]))
        base_bytes += len(used) * USED_VERSION_BYTES
        _judge(found, runs, peak, _Beside(base_bytes, _run_bytes(catalogue, folder / "tight")), budget_bytes)
        loads, evictions = (int(tight.metric(f"roost_{what}_total")) for what in ("loads", "evictions"))
        if roomy.metric("roost_evictions_total"):
            found.troubles.append("the server that was to have room for all models evicted some")
    requests = sum(len(run.good) for run in runs.tight)
    found.notes.append(
        f"{len(questions):,} models, {loads:,} loads and {evictions:,} evictions by {requests:,} requests; warm are "
        f"those to two models with roost.pin, {WARM_SHARE:.0%} of all"
    )
    return found


def _run_bytes(catalogue: Catalogue, folder: Path) -> int:
    """What ``roost doctor`` says that runs take at most at a time, of a server whose files are in a folder."""
    flags = ("--model-repository", str(catalogue.repository), "--state-dir", str(folder / "state"))
    said = _roost("doctor", "--json", *flags, "--cache-dir", str(catalogue.cache))
    return int(json.loads(said)["run_bytes"])


def _in_turn(roomy: RoostServer, tight: RoostServer, catalogue: Catalogue, scale: Scale, peak: Peak) -> _Churned:
    runs = _Churned()
    schedule = Schedule(
        float(catalogue.rates_per_s.sum()),
        2 * scale.seconds + _SETTLE_S,
        connections=CONNECTIONS,
        settle_s=_SETTLE_S,
        grace_s=GRACE_S,
    )
    for number in range(scale.rounds):
        picks = draw(len(schedule.due_ns()), catalogue.rates_per_s, number)
        runs.roomy.append(drive(roomy, catalogue.questions, schedule, picks))
        with peak.watch(tight):
            runs.tight.append(drive(tight, catalogue.questions, schedule, picks))
        calm(tight)
    return runs


def _judge(found: Findings, runs: _Churned, peak: Peak, beside: _Beside, budget_bytes: int) -> None:
    found.at_most("requests that failed, with churn", 0, sum(run.failures for run in runs.tight))
    over_bytes = peak.bytes - beside.base_bytes
    found.at_most(
        "anonymous memory of all processes over base and runs, budgets",
        1.0,
        (over_bytes - beside.run_bytes) / budget_bytes,
    )
    found.shown("the same over the base alone", [over_bytes / budget_bytes])
    for warm, name in enumerate(_WARM_NAMES):
        found.at_most(f"p50 of {name}, with churn by without", WARM, runs.p50_ratios(warm))
    found.shown("p50 of all requests, with churn, ms", [run.quantile_s(0.5) * 1e3 for run in runs.tight])
    found.shown("p99 of all requests, with churn, ms", [run.quantile_s(0.99) * 1e3 for run in runs.tight])
    found.notes.append(
        f"base: {beside.base_bytes / 1e6:.0f} MB, all processes before the first load and what the server keeps of "
        f"versions that were used; runs: {beside.run_bytes / 1e6:.0f} MB, what roost doctor says; "
        f"budget: {budget_bytes / 1e6:.0f} MB, "
        f"a {FIT}th of what all models are accounted with; at most {peak.text()}"
    )
    for run in runs.roomy:
        found.check(run, "without churn")
    for run in runs.tight:
        found.check(run, "with churn", gated=True)

"""Thousands of models: what it takes to know them all, and to have them all in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from roost.core.units import parse_bytes

from loadtests.bench_mesh_asked import Asked, asked, draw
from loadtests.bench_mesh_models import TINY, simples
from loadtests.bench_mesh_report import Findings
from loadtests.bench_mesh_scale import Scale
from loadtests.bench_mesh_servers import (
    drive,
    load_all,
    private_at_rest,
    read,
    repeatedly,
    residents,
    serving,
    steady,
)
from loadtests.bench_servers import cpu_s_of
from loadtests.memory_growth import memory_at_rest
from tests.server import RoostServer

FEW = 10
FEW_PER_S = 1000.0
RESIDENT_PER_S = 2000.0
START_S = 10.0
COLD_MODEL_KB = 4.0
ROUTING = 1.1
SCRAPED = 1.2
RESIDENT_GB = 2.5
RESIDENT_P99_MS = 10.0
_SCRAPE_EVERY_S = 1.0
_ROOM = 1.1


def registered(scale: Scale, folder: Path) -> Findings:
    """Models that nobody asks, beside a server that has few."""
    found = Findings(f"{scale.models:,} registered models")
    _, names = simples(folder / "many", scale.models)
    model, _ = simples(folder / "few", FEW)
    questions = asked(model, names[:FEW])
    with ExitStack() as stack:
        few = stack.enter_context(serving(folder / "few", folder / "server-of-few"))
        few_bytes = private_at_rest(few)
        began = time.monotonic()
        many = stack.enter_context(serving(folder / "many", folder / "server-of-many"))
        found.at_most(f"start with {scale.models:,} models, s", START_S, time.monotonic() - began)
        each_bytes = (private_at_rest(many) - few_bytes) / (scale.models - FEW)
        found.at_most("anonymous memory of a registered, cold model, KB", COLD_MODEL_KB, each_bytes / 1e3)
        for server in (few, many):
            load_all(server, questions, np.arange(FEW, dtype=np.uint32))
        _compare(found, few, many, questions, scale)
        _scrape(found, many, questions, scale, FEW_PER_S, f"{scale.models:,} registered")
    found.notes.append(
        f"each model has a config.pbtxt; both servers are asked the same {FEW} at {FEW_PER_S:.0f}/s in turn"
    )
    return found


def _compare(found: Findings, few: RoostServer, many: RoostServer, questions: Asked, scale: Scale) -> None:
    """What a request costs with many models and with few."""
    cpu_s: dict[RoostServer, list[float]] = {few: [], many: []}
    p50_s: dict[RoostServer, list[float]] = {few: [], many: []}
    schedule = steady(FEW_PER_S, scale.seconds / 2)
    picks = draw(len(schedule.due_ns()), np.ones(FEW), 0)
    for number in range(2 * scale.rounds):
        for server in (few, many) if number % 2 else (many, few):
            used_s = cpu_s_of(server.pid)
            run = drive(server, questions, schedule, picks)
            cpu_s[server].append((cpu_s_of(server.pid) - used_s) / len(picks))
            p50_s[server].append(run.quantile_s(0.5))
            found.check(run, "among many models" if server is many else "among few models")
    ratios = [ours / theirs for ours, theirs in zip(cpu_s[many], cpu_s[few], strict=True)]
    found.at_most("CPU time of a request, by that among 10 models", ROUTING, ratios)
    p50 = [ours / theirs for ours, theirs in zip(p50_s[many], p50_s[few], strict=True)]
    found.shown("p50 of requests, by that among 10 models", p50)


def _scrape(found: Findings, server: RoostServer, questions: Asked, scale: Scale, rate_per_s: float, what: str) -> None:
    """The p99 of requests that overlap a scrape, beside that of runs without any."""
    schedule = steady(rate_per_s, scale.seconds)
    picks = draw(len(schedule.due_ns()), np.ones(len(questions)), 1)
    ratios, lengths, times_s = [], [], []
    for _ in range(scale.rounds):
        alone = drive(server, questions, schedule, picks)
        with repeatedly(lambda: lengths.append(read(server, "admin", "/metrics")), _SCRAPE_EVERY_S) as windows:
            scraped = drive(server, questions, schedule, picks)
        times_s += [(end - begin) / 1e9 for begin, end in windows]
        ratios.append(scraped.quantile_s(0.99, scraped.overlaps(windows)) / alone.quantile_s(0.99))
        found.check(alone, "without a scrape")
        found.check(scraped, "beside scrapes")
    found.at_most(f"p99 while metrics are read, {what}, by that without", SCRAPED, ratios)
    found.notes.append(
        f"metrics, {what}: {np.mean(lengths) / 1e6:.1f} MB in {np.mean(times_s):.3f} s, at {rate_per_s:.0f} requests/s"
    )


def resident(scale: Scale, folder: Path) -> Findings:
    """Tiny models that are all in memory, asked at random."""
    found = Findings(f"{scale.models:,} resident models")
    model, names = simples(folder / "models", scale.models)
    questions = asked(model, names)
    budget = f"{round(_ROOM * scale.models * parse_bytes(TINY)) >> 20}MiB"
    bare = _bare(folder / "models")
    with serving(folder / "models", folder / "server", "--memory-budget", budget) as server:
        idle_bytes = private_at_rest(server)
        began = time.monotonic()
        load_all(server, questions, np.arange(len(names), dtype=np.uint32))
        found.notes.append(f"all were loaded in {time.monotonic() - began:.0f} s, {idle_bytes / 1e6:.0f} MB before")
        schedule = steady(RESIDENT_PER_S, scale.resident_s)
        run = drive(server, questions, schedule, draw(len(schedule.due_ns()), np.ones(len(names)), 2))
        there = residents(server, names)
        memory = memory_at_rest(server.pid)
        found.at_most(
            f"memory of all processes (PSS), {scale.models:,} resident, GB", RESIDENT_GB, memory.pss_bytes / 1e9
        )
        found.shown("anonymous memory of bare sessions in one process, GB", bare["private_bytes"] / 1e9)
        found.at_most(f"p99 at {RESIDENT_PER_S:.0f} random requests/s, ms", RESIDENT_P99_MS, run.quantile_s(0.99) * 1e3)
        found.shown("p99 of runs of bare sessions, at random, ms", bare["p99_s"] * 1e3)
        found.at_most("requests that failed", 0, run.failures)
        found.check(run, "random requests", gated=True)
        found.notes.append(f"p50 {run.quantile_s(0.5) * 1e3:.2f} ms")
        if there != len(names):
            found.troubles.append(f"only {there:,} of {len(names):,} models were in memory at the end")
        _scrape(found, server, questions, scale, FEW_PER_S, f"{scale.models:,} used")
    return found


def _bare(repository: Path) -> dict[str, float]:
    """Sessions of all models of a repository in a process of their own, without a server."""
    line = [sys.executable, "-m", "loadtests.bench_mesh_bare", str(repository)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300.0, check=True)
    figures: dict[str, float] = json.loads(ended.stdout)
    return figures

"""Workers that are killed while requests come: whether any fails, and how soon goodput is back."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loadtests.bench_mesh_asked import Asked, Seen, asked, draw, recovery_s
from loadtests.bench_mesh_models import simples
from loadtests.bench_mesh_report import Findings, worst
from loadtests.bench_mesh_scale import Scale
from loadtests.bench_mesh_servers import CONNECTIONS, drive, load_all, repeatedly, serving, steady
from loadtests.knee import Curve, rates
from loadtests.open_loop import Schedule
from tests.server import RoostServer

MODELS = 10
WORKERS = 2
KILL_EVERY_S = 5.0
HALF = 0.5
GOODPUT = 0.95
RECOVERY_S = 1.0
LIMIT_S = 0.1
"""Answers that come later are none for goodput; to failures they are."""

_BIN_S = 0.05
_HOLD_S = 1.0
_KNEE_LIMIT_S = 0.02
_KNEE_S = 2.0
_KNEE_RATES = (500.0, 30_000.0, 1.4)


@dataclass(slots=True)
class _Killer:
    """Kills workers in turn; ``moments_ns`` by the monotonic clock."""

    server: RoostServer
    moments_ns: list[int] = field(default_factory=list)
    absent: int = 0
    _turns: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(WORKERS)))

    def kill(self) -> None:
        """Kills the next one if it is there."""
        worker = self.server.status()["workers"][next(self._turns)]
        if worker["state"] != "up":
            self.absent += 1
            return
        self.moments_ns.append(time.monotonic_ns())
        os.kill(worker["pid"], signal.SIGKILL)


def kill(scale: Scale, folder: Path) -> Findings:
    """One of two workers is killed every five seconds, at half of the load that the server carries."""
    found = Findings(f"{scale.kills} killed workers")
    model, names = simples(folder / "models", MODELS)
    questions = asked(model, names)
    with serving(folder / "models", folder / "server", "--workers", str(WORKERS)) as server:
        load_all(server, questions, np.arange(MODELS, dtype=np.uint32))
        knee_per_s = _knee_per_s(server, questions)
        schedule = steady(HALF * max(knee_per_s, _KNEE_RATES[0]), (scale.kills + 1) * KILL_EVERY_S)
        killer = _Killer(server)
        picks = draw(len(schedule.due_ns()), np.ones(MODELS), 3)
        with repeatedly(killer.kill, KILL_EVERY_S, first_s=KILL_EVERY_S):
            run = drive(server, questions, schedule, picks, limit_s=LIMIT_S)
        restarts = sum(worker["restarts"] for worker in server.status()["workers"])
    _judge(found, run, killer)
    found.check(run, "beside kills", gated=True)
    found.notes.append(f"knee {knee_per_s:.0f}/s ({_KNEE_LIMIT_S * 1e3:.0f} ms), {restarts} restarts")
    if killer.absent:
        found.troubles.append(
            f"{killer.absent} times a worker was not back {WORKERS * KILL_EVERY_S:.0f} s after its kill"
        )
    return found


def _knee_per_s(server: RoostServer, questions: Asked) -> float:
    """The rate that the server carries, from short runs at rising rates."""
    curve = Curve()
    for rate_per_s in rates(*_KNEE_RATES):
        schedule = Schedule(rate_per_s, _KNEE_S, connections=CONNECTIONS, give_up_s=_KNEE_LIMIT_S)
        picks = draw(len(schedule.due_ns()), np.ones(MODELS), 4)
        curve.add(rate_per_s, drive(server, questions, schedule, picks, limit_s=_KNEE_LIMIT_S).tally.share_in_time)
        if curve.is_over:
            break
    return curve.knee_per_s()


def _judge(found: Findings, run: Seen, killer: _Killer) -> None:
    kills = [moment for moment in killer.moments_ns if moment < run.due_ns[-1]]
    found.at_most("requests that failed", 0, run.failures)
    recovered = recovery_s(run, kills, limit_s=LIMIT_S, share=GOODPUT, bin_s=_BIN_S, hold_s=_HOLD_S)
    found.at_most(
        f"time to {GOODPUT:.0%} goodput ({LIMIT_S * 1e3:.0f} ms) after a kill, the longest, s",
        RECOVERY_S,
        worst(recovered),
    )
    slowest_s = [run.quantile_s(1.0, (run.due_ns >= moment) & (run.due_ns < moment + 2e9)) for moment in kills]
    found.shown("slowest answer to what came within 2 s after a kill, ms", [1e3 * slowest for slowest in slowest_s])
    found.notes.append(
        f"{len(run.good):,} requests to {MODELS} models, {len(kills)} kills; goodput in bins of {_BIN_S * 1e3:.0f} ms, "
        f"back if it stays for {_HOLD_S:.0f} s; median {np.median(recovered):.2f} s"
    )

"""What loads do to others: to the latency of a model that is there, and to memory when they are many."""

from __future__ import annotations

import http.client
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loadtests.bench_load import LoadFailed
from loadtests.bench_mesh_asked import Asked, Seen, Windows, asked
from loadtests.bench_mesh_models import different, large, magikas, simples
from loadtests.bench_mesh_report import Findings
from loadtests.bench_mesh_scale import Scale
from loadtests.bench_mesh_servers import control, drive, repeatedly, serving, steady
from loadtests.memory_growth import memory_at_rest
from loadtests.traffic import inputs_of, rest_body
from tests.server import RoostServer

RESIDENT_PER_S = 500.0
BESIDE_LOADS = 2.0
CYCLES = 1.05
_LOAD_EVERY_S = 0.2
_LARGE_EVERY_S = 1.0
_MAGIKAS = 5
# Nothing but what is measured: no trials of batches in the background, and loads only by calls, one at a time.
_FLAGS = ("--model-control", "explicit", "--batching", "declared", "--memory-budget", "4GiB")


@dataclass(slots=True)
class _Beside:
    """Runs beside loads of a kind, round by round: the p99 of what overlaps a load, and of all, by the p99 alone."""

    overlapping: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    requests: int = 0
    load_s: list[float] = field(default_factory=list)

    def add(self, run: Seen, windows: Windows, alone_s: float) -> None:
        """Takes in a round."""
        overlapping = run.overlaps(windows)
        self.overlapping.append(run.quantile_s(0.99, overlapping) / alone_s)
        self.all.append(run.quantile_s(0.99) / alone_s)
        self.requests += int(overlapping.sum())
        self.load_s += [(end - begin) / 1e9 for begin, end in windows]

    def report(self, found: Findings, what: str) -> None:
        """Writes the gate down."""
        found.at_most(f"p99 of requests that overlap {what}, by alone", BESIDE_LOADS, self.overlapping)
        found.shown(f"p99 of all requests beside {what} and unloads, by alone", self.all)
        took_ms = np.quantile(self.load_s, (0.5, 1.0)) * 1e3
        found.notes.append(
            f"{what}: {len(self.load_s)} loads of {took_ms[0]:.0f} ms (at most {took_ms[1]:.0f}), "
            f"overlapped by {self.requests:,} requests"
        )


def loads(scale: Scale, folder: Path) -> Findings:
    """A tiny resident model alone, beside loads of small models, and beside loads of a large one, in turn."""
    found = Findings("requests beside loads in the same worker")
    repository = folder / "models"
    model, (name,) = simples(repository, 1)
    _, small = magikas(repository, _MAGIKAS)
    kinds = {
        f"{1 / _LOAD_EVERY_S:.0f} loads/s (3 MB each)": (small, _LOAD_EVERY_S),
        "a load of 97 MB": ([large(repository)], _LARGE_EVERY_S),
    }
    questions = asked(model, [name])
    alone_ms: list[float] = []
    beside = {what: _Beside() for what in kinds}
    with serving(repository, folder / "server", *_FLAGS, "--load-model", name, "--workers", "1") as server:
        for _ in range(scale.rounds):
            run = _asked_for(server, questions, scale)
            found.check(run, "alone")
            alone_ms.append(run.quantile_s(0.99) * 1e3)
            for what, (names, every_s) in kinds.items():
                with _loading(server, names, every_s) as windows:
                    run = _asked_for(server, questions, scale)
                beside[what].add(run, windows, alone_ms[-1] / 1e3)
                found.check(run, f"beside {what}")
    found.shown("p99 alone, ms", alone_ms)
    for what, figures in beside.items():
        figures.report(found, what)
    found.notes.append(f"{RESIDENT_PER_S:.0f} requests/s to one tiny model in the only worker")
    return found


def _asked_for(server: RoostServer, questions: Asked, scale: Scale) -> Seen:
    schedule = steady(RESIDENT_PER_S, scale.seconds)
    return drive(server, questions, schedule, np.zeros(len(schedule.due_ns()), np.uint32))


@contextmanager
def _loading(server: RoostServer, names: Sequence[str], every_s: float) -> Iterator[Windows]:
    """Loads and unloads models in turn; gives when each load began and ended."""
    turns = itertools.cycle(names)
    loading: list[str] = []

    def load() -> None:
        loading.append(next(turns))
        control(server, loading[-1], "load")

    def unload() -> None:
        control(server, loading[-1], "unload")

    with repeatedly(load, every_s, then=unload) as windows:
        yield windows


def cycles(scale: Scale, folder: Path) -> Findings:
    """Models of different sizes, each loaded, asked and unloaded in turn."""
    found = Findings(f"{scale.cycles:,} load-infer-unload cycles")
    names = different(folder / "models", scale.different)
    with serving(folder / "models", folder / "server", *_FLAGS) as server:
        cycle = _Cycle(server)
        for name in names:
            cycle.once(name)
        first = memory_at_rest(server.pid)
        for number in range(scale.cycles - len(names)):
            cycle.once(names[number % len(names)])
        last = memory_at_rest(server.pid)
    what = f"memory of all processes (PSS) after {scale.cycles:,} cycles, by that after {len(names)}"
    found.at_most(what, CYCLES, last.pss_bytes / first.pss_bytes)
    found.notes.append(
        f"PSS {first.pss_bytes / 1e6:.1f} MB, then {last.pss_bytes / 1e6:.1f}; "
        f"RSS {first.rss_bytes / 1e6:.1f} MB, then {last.rss_bytes / 1e6:.1f}"
    )
    return found


@dataclass(slots=True)
class _Cycle:
    """Loads, asks and unloads; what a model is asked is made up from its metadata when it is loaded first."""

    server: RoostServer
    asked: dict[str, tuple[bytes, Mapping[str, str]]] = field(default_factory=dict)

    def once(self, name: str) -> None:
        """One cycle of one model.

        Raises:
            LoadFailed: If a step of it fails.
        """
        control(self.server, name, "load")
        if name not in self.asked:
            status, metadata = self.server.get(f"/v2/models/{name}")
            if status != 200:
                raise LoadFailed(f"metadata of {name}: {status} {metadata}")
            self.asked[name] = rest_body(inputs_of(metadata, 1, np.random.default_rng(0)))
        self._ask(name)
        control(self.server, name, "unload")

    def _ask(self, name: str) -> None:
        body, headers = self.asked[name]
        connection = http.client.HTTPConnection(self.server.http, timeout=60.0)
        try:
            connection.request("POST", f"/v2/models/{name}/infer", body, dict(headers))
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise LoadFailed(f"{name}: {response.status} {answer[:300]!r}")

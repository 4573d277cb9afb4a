"""Roost beside its peers: the same models, threads and load generators, in turn on one machine.

Run from a checkout: ``make bench``, or ``python -m loadtests.bench --quick`` for a first look. The peers are installed
into environments of their own under ``.venv/peers``; every server that runs was started here and is ended here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.bench_load import LoadFailed, ensure_generators, run_load
from loadtests.bench_peers import PEERS, ROOT, Peer
from loadtests.bench_plan import (
    CELLS,
    EFFICIENCY_CELLS,
    EFFICIENCY_PEER,
    EFFICIENCY_WANTED,
    GATES,
    Cell,
    is_gated,
)
from loadtests.bench_report import Results, machine, report_text, write_report
from loadtests.bench_requests import WireRequest, WrongAnswer, ask, build
from loadtests.bench_servers import Roost, RoostGrpcio, Server, end_in_order
from loadtests.bench_stats import Gate, Sample, judge
from loadtests.models import BenchModel, session, write_models

OUTPUT = ROOT / "build" / "bench"
IDLE_S = 3.0
WARM_S = 1.0
_CHECKS_S = 0.5
FIRST_ANSWER_S = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is measured: rounds of so many seconds; what no promise is about gets less."""

    rounds: int
    seconds: float

    def of(self, cell: Cell) -> Pace:
        """What a cell gets."""
        return self if is_gated(cell) else Pace(min(self.rounds, _LESS.rounds), min(self.seconds, _LESS.seconds))

    def minutes(self, cells: Sequence[Cell], names: Collection[str]) -> float:
        """About how long it takes, beginnings and checks included."""
        total_s = 0.0
        for cell in cells:
            pace = self.of(cell)
            runs = len(set(cell.servers) & set(names)) + (cell.key in EFFICIENCY_CELLS)
            total_s += runs * (WARM_S + _CHECKS_S + pace.rounds * pace.seconds)
        return total_s / 60


_LESS = Pace(3, 2)


class Bench:
    """Servers that run, and what was measured of them."""

    def __init__(self, servers: Sequence[Server], models: dict[str, BenchModel], pace: Pace) -> None:
        self.servers = {server.name: server for server in servers}
        self.models = models
        self.pace = pace
        self.results = Results()

    def measure_idle(self) -> None:
        """What servers cost that nobody asks: they must not take anything from the one that is measured."""
        before = {name: server.cpu_s() for name, server in self.servers.items()}
        time.sleep(IDLE_S)
        for name, server in self.servers.items():
            self.results.idle_cpu[name] = (server.cpu_s() - before[name]) / IDLE_S

    def run(self, cells: Iterable[Cell]) -> None:
        """Measures cell after cell."""
        for cell in cells:
            print(f"{cell.key} …", end=" ", flush=True)
            began = time.monotonic()
            self._run_cell(cell)
            print(f"{time.monotonic() - began:.0f} s", flush=True)
        for name, server in self.servers.items():
            self.results.pss_bytes[name] = server.pss_bytes()

    def _run_cell(self, cell: Cell) -> None:
        model, pace = self.models[cell.model], self.pace.of(cell)
        request = build(model, cell.protocol, cell.size)
        servers = [self.servers[name] for name in cell.servers if name in self.servers and self._is_up(cell, name)]
        lengths = {server.name: length for server in servers if (length := self._checked(cell, request, server))}
        samples = self.results.samples.setdefault(cell.key, {name: [] for name in lengths})
        for round_number in range(-1, pace.rounds):
            for server in servers:
                if server.name in lengths:
                    seconds = WARM_S if round_number < 0 else pace.seconds
                    sample = self._sample(cell, request, server, lengths[server.name], seconds)
                    if sample is None:
                        del lengths[server.name]
                    elif round_number >= 0:
                        samples[server.name].append(sample)
            if cell.key in EFFICIENCY_CELLS and round_number >= 0 and self.results.batch_rows.get(cell.key):
                rows = max(1, round(self.results.batch_rows[cell.key][-1]))
                samples.setdefault(EFFICIENCY_PEER, []).append(bare_loop(model, rows, pace.seconds))
        for server in servers:
            if server.name in lengths:
                self._checked(cell, request, server)

    def _is_up(self, cell: Cell, name: str) -> bool:
        """Whether a server runs; one that has crashed is started again."""
        server = self.servers[name]
        if server.has_crashed:
            self._trouble(cell, server, RuntimeError("it had crashed before and is started again"))
            server.stop()
            try:
                server.start()
            except AssertionError as error:
                self._trouble(cell, server, error)
                return False
        return True

    def _checked(self, cell: Cell, request: WireRequest, server: Server) -> int | None:
        """The length of the server's answer if it is right; the first one may take a while."""
        give_up = time.monotonic() + FIRST_ANSWER_S
        address = server.address(cell.protocol)
        while True:
            try:
                ask(request, address)
                return ask(request, address)
            except WrongAnswer as error:
                if time.monotonic() > give_up or self.results.samples.get(cell.key):
                    self._trouble(cell, server, error)
                    return None
                time.sleep(0.5)

    def _sample(
        self, cell: Cell, request: WireRequest, server: Server, answer_bytes: int, seconds: float
    ) -> Sample | None:
        batches = server.batches(cell.model) if isinstance(server, Roost) else None
        cpu_s = server.cpu_s()
        try:
            load = run_load(request, server.address(cell.protocol), cell.in_flight, seconds, answer_bytes)
        except LoadFailed as error:
            self._trouble(cell, server, error)
            return None
        cpu_s = server.cpu_s() - cpu_s
        if isinstance(server, Roost) and batches and server.name == Roost.name:
            self.results.batch_rows.setdefault(cell.key, []).append(server.mean_batch_rows(cell.model, batches))
        return Sample(load.rate_per_s, load.p50_s, load.p99_s, cpu_s / load.requests * 10_000)

    def _trouble(self, cell: Cell, server: Server, error: Exception) -> None:
        self.results.troubles.append(f"{cell.key}, {server.name}: {error}"[:500])
        print(f"\n  {self.results.troubles[-1]}", flush=True)


def bare_loop(model: BenchModel, rows: int, seconds: float) -> Sample:
    """ONNX Runtime alone in a loop with batches of so many rows; the rate is that of rows."""
    inputs = model.draw(rows)
    runtime = session(model.file)
    runtime.run(None, inputs)
    took_s = []
    began, cpu_s = time.perf_counter(), time.thread_time()
    while (now := time.perf_counter()) - began < seconds:
        runtime.run(None, inputs)
        took_s.append(time.perf_counter() - now)
    total_s, cpu_s = now - began, time.thread_time() - cpu_s
    done = len(took_s) * rows
    p50_s, p99_s = np.quantile(took_s, (0.5, 0.99))
    return Sample(done / total_s, float(p50_s), float(p99_s), cpu_s / done * 10_000)


def install(peers: Sequence[type[Peer]]) -> list[type[Peer]]:
    """Makes the peers' environments; a peer that cannot be had here is left out."""
    there = []
    for peer in peers:
        try:
            peer.install()
            there.append(peer)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{peer.name} is left out, it could not be installed: {error}", file=sys.stderr)
    return there


def server_classes(names: Sequence[str]) -> list[type[Server]]:
    """Those of Roost and of the peers that were asked for."""
    peers = install([peer for peer in PEERS if peer.name in names])
    return [*(roost for roost in (Roost, RoostGrpcio) if roost.name in names), *peers]


@contextmanager
def running(classes: Sequence[type[Server]], models: dict[str, BenchModel], folder: Path) -> Iterator[list[Server]]:
    """Starts servers one after the other and ends them all."""
    with ExitStack() as stack:
        servers = []
        for kind in classes:
            server = kind(list(models.values()), folder / kind.name)
            began = time.monotonic()
            try:
                server.start()
            except AssertionError as error:
                if not isinstance(server, Peer):
                    raise
                print(f"{server.name} is left out, it did not start: {error}", file=sys.stderr)
                continue
            stack.callback(server.stop)
            print(f"{server.name} is up after {time.monotonic() - began:.1f} s", flush=True)
            servers.append(server)
        yield servers


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [Roost.name, RoostGrpcio.name, *(peer.name for peer in PEERS)]
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds of a second, and only what has a gate")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each cell (default 5, quick 2)")
    parser.add_argument("--seconds", type=int, metavar="S", help="length of a run (default 3, quick 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells whose name has this in it")
    parser.add_argument("--servers", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="for report and raw results")
    return parser.parse_args(argv)


def _chosen(arguments: argparse.Namespace) -> list[Cell]:
    return [cell for cell in CELLS if arguments.only in cell.key and (is_gated(cell) or not arguments.quick)]


def _gates(results: Results) -> list[Gate]:
    efficiency = [
        Gate(f"efficiency, {cell} in flight, vs {EFFICIENCY_PEER}", cell, "roost", EFFICIENCY_PEER, EFFICIENCY_WANTED)
        for cell in EFFICIENCY_CELLS
    ]
    return [gate for gate in (*GATES, *efficiency) if gate.cell in results.samples]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for and prints the report; 1 if a server answered wrongly or failed."""
    # Whoever ends the bench early ends its servers as well.
    end_in_order()
    arguments = _arguments(argv)
    pace = Pace(arguments.rounds or (2 if arguments.quick else 5), arguments.seconds or (1 if arguments.quick else 3))
    cells = _chosen(arguments)
    ensure_generators()
    classes = server_classes(arguments.servers)
    minutes = pace.minutes(cells, [kind.name for kind in classes])
    print(f"{len(cells)} cells, about {minutes:.0f} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as name:
        folder = Path(name)
        models = write_models(folder / "models", sorted({cell.model for cell in cells}))
        with running(classes, models, folder) as servers:
            bench = Bench(servers, models, pace)
            bench.measure_idle()
            bench.run(cells)
    results = bench.results
    verdicts = [judge(gate, results.samples) for gate in _gates(results)]
    about = machine(len(os.sched_getaffinity(0)))
    text = report_text(results, verdicts, about)
    output = arguments.output / time.strftime("%Y%m%d-%H%M%S")
    write_report(output, text, results, verdicts, about)
    print(f"\n{text}\nwritten to {output}")
    return 1 if results.troubles else 0


if __name__ == "__main__":
    sys.exit(main())

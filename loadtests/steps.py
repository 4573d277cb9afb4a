"""Where a request's CPU time goes: microseconds of the front end by step of the data path, and of the worker.

The model is ``simple``, asked by wrk (REST JSON) and h2load (gRPC) with so many requests in flight: 1 makes batches of
one row, 16 makes as large ones as come about. Two servers take turns: one as it is, for the totals, and one with probes
(``loadtests.step_probes``), for how they divide. What no probe sees is the event loop and its system calls::

    python -m loadtests.steps
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.bench_load import ensure_generators, run_load
from loadtests.bench_peers import ROOT
from loadtests.bench_requests import Protocol, WireRequest, ask, build
from loadtests.bench_servers import Server, end_in_order
from loadtests.models import BenchModel, session, write_models
from loadtests.step_probes import STEPS, THE_PROBES
from tests.server import DEADLINE_S, HOST, wait_for

CASES: tuple[tuple[Protocol, int], ...] = (("json", 1), ("json", 16), ("grpc", 1), ("grpc", 16))
MODEL = "simple"
WARM_S = 1.0
LOOP = "event loop, system calls"
_BARE_RUNS = 2000


@dataclass(frozen=True, slots=True)
class Costs:
    """One run, in microseconds of CPU time for a request.

    Attributes:
        loop_us: The thread of the event loop.
        other_us: Other threads of the front end.
        worker_us: The worker.
        rows: Rows in a batch, on average.
        steps_us: Of ``loop_us``, by step; empty without probes.
    """

    loop_us: float
    other_us: float
    worker_us: float
    rows: float
    steps_us: Mapping[str, float]


class Measured(Server):
    """Roost, started by the bench with one worker."""

    name = "plain"
    launcher: tuple[str, ...] = ("roost.server.cli",)

    def command(self) -> list[str]:
        """One worker, so that there is one to look at."""
        line = [sys.executable, "-m", *self.launcher, "serve", "--workers", "1", "--log-level", "warning"]
        line += ["--model-repository", str(self.models[0].file.parent.parent.parent)]
        line += ["--state-dir", str(self.folder / "state"), "--admin-port", "0"]
        line += ["--cache-size", "0"]  # making prepared copies would be counted in
        return [*line, "--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]

    def environment(self) -> Mapping[str, str]:
        """So that the launcher is found."""
        return {"PYTHONPATH": str(ROOT)}

    def run(self, request: WireRequest, in_flight: int, seconds: float) -> Costs:
        """Loads the server and says what that cost."""
        address = self.address(request.protocol)
        length = ask(request, address)
        run_load(request, address, in_flight, WARM_S, length)
        before = (self._steps_ns(), _cpu_ns(self.pid), self._worker_ns(), self._batches())
        requests = run_load(request, address, in_flight, seconds, length).requests
        after = (self._steps_ns(), _cpu_ns(self.pid), self._worker_ns(), self._batches())
        steps_us = {step: (ns - before[0].get(step, 0.0)) / requests / 1e3 for step, ns in after[0].items()}
        loop_us, all_us = ((after[1][i] - before[1][i]) / requests / 1e3 for i in (0, 1))
        rows = (after[3][0] - before[3][0]) / max(1, after[3][1] - before[3][1])
        return Costs(loop_us, all_us - loop_us, (after[2] - before[2]) / requests / 1e3, rows, steps_us)

    def _steps_ns(self) -> Mapping[str, float]:
        return {}

    def _worker_ns(self) -> int:
        return sum(_cpu_ns(child.pid)[1] for child in psutil.Process(self.pid).children())

    def _batches(self) -> tuple[int, int]:
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=DEADLINE_S)
        try:
            connection.request("GET", f"/v2/models/{MODEL}/stats")
            stats = json.loads(connection.getresponse().read())["model_stats"][0]
        finally:
            connection.close()
        return int(stats["inference_count"]), int(stats["execution_count"])


class Probed(Measured):
    """The same with probes."""

    name = "probed"

    def __init__(self, models: Sequence[BenchModel], folder: Path) -> None:
        super().__init__(models, folder)
        self._file = folder / "steps"
        self.launcher = ("loadtests.step_probes", str(self._file))

    def _steps_ns(self) -> Mapping[str, float]:
        lines = self._lines()
        psutil.Process(self.pid).send_signal(signal.SIGUSR1)
        wait_for(lambda: len(self._lines()) > len(lines), "the steps")
        steps: dict[str, float] = json.loads(self._lines()[-1])
        return steps

    def _lines(self) -> list[str]:
        text = self._file.read_text(encoding="ascii") if self._file.exists() else ""
        return text.splitlines() if text.endswith("\n") else []


def _cpu_ns(pid: int) -> tuple[int, int]:
    """CPU time of a process's first thread, and of all."""
    times = {
        int(task.name): int((task / "schedstat").read_text(encoding="ascii").split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    return times[pid], sum(times.values())


def budget(plain: Sequence[Costs], probed: Sequence[Costs]) -> dict[str, float]:
    """Medians over rounds. The time of the server without probes is divided as that of the other one is."""
    shares = [_shares(costs) for costs in probed]
    loop_us = statistics.median(costs.loop_us for costs in plain)
    rows = {step: loop_us * statistics.median(share[step] for share in shares) for step in (*STEPS, LOOP)}
    rows["front end, event loop's thread"] = loop_us
    rows["front end, other threads"] = statistics.median(costs.other_us for costs in plain)
    rows["worker"] = statistics.median(costs.worker_us for costs in plain)
    return rows


def _shares(costs: Costs) -> dict[str, float]:
    """What each step has of the thread's time, without that of the probes; the rest is the event loop's."""
    own_us = costs.loop_us - costs.steps_us[THE_PROBES]
    shares = {step: costs.steps_us.get(step, 0.0) / own_us for step in STEPS}
    return {**shares, LOOP: 1 - sum(shares.values())}


def model_us(model: BenchModel, rows: int) -> float:
    """What the model alone takes for a batch, by the rows in it."""
    inputs, bare = model.draw(rows), session(model.file)
    began_s = time.thread_time()
    for _ in range(_BARE_RUNS):
        bare.run(None, inputs)
    return (time.thread_time() - began_s) / _BARE_RUNS / rows * 1e6


def measure(model: BenchModel, folder: Path, rounds: int, seconds: float) -> list[list[list[Costs]]]:
    """All cases in turn: for each a list of runs without and one with probes."""
    found: list[list[list[Costs]]] = [[[], []] for _ in CASES]
    with ExitStack() as stack:
        servers = [kind([model], folder / kind.name) for kind in (Measured, Probed)]
        for server in servers:
            server.start()
            stack.callback(server.stop)
        for _ in range(rounds):
            for case, (protocol, in_flight) in enumerate(CASES):
                for which, server in enumerate(servers):
                    found[case][which].append(server.run(build(model, protocol, 1), in_flight, seconds))
    return found


def main() -> int:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run")
    options = parser.parse_args()
    ensure_generators()
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="roost-steps-") as name:
        folder = Path(name)
        model = write_models(folder / "models", [MODEL])[MODEL]
        found = measure(model, folder, options.rounds, options.seconds)
        columns = [budget(plain, probed) for plain, probed in found]
        batches = [statistics.median(costs.rows for costs in plain) for plain, _ in found]
        for column, rows in zip(columns, batches, strict=True):
            column["of it the model alone"] = model_us(model, max(1, round(rows)))
    print(as_text(columns, batches))
    return 0


def as_text(columns: Sequence[Mapping[str, float]], batches: Sequence[float]) -> str:
    """A table in Markdown, microseconds for a request."""
    heads = [
        f"{'REST JSON' if protocol == 'json' else 'gRPC'}, {in_flight} in flight (batches of {rows:.1f})"
        for (protocol, in_flight), rows in zip(CASES, batches, strict=True)
    ]
    lines = ["| us of CPU time for a request | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    lines += [f"| {row} | " + " | ".join(f"{column[row]:.1f}" for column in columns) + " |" for row in columns[0]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

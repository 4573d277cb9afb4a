"""Many models in the memory of a few: random requests over copies of a real model, with a budget that holds some.

It starts its own server, checks every answer against ONNX Runtime, watches the memory meanwhile and prints a report::

    python loadtests/many_models.py --models 40 --fits 10 --requests 2000 --clients 8
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.core.tensors import Tensor, from_array, to_array
from roost.core.units import format_bytes
from roost.router.sizes import estimated_bytes

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # as a script, only this folder is there
    sys.path.insert(0, str(ROOT))

from tests.clients import TRANSPORTS, Client, connect  # noqa: E402
from tests.server import RoostServer, private_bytes_of, started  # noqa: E402

SAMPLES = 20
FEATURES_PER_END = 1024
NO_BYTE = 256
SAMPLE_EVERY_S = 0.02

Features = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is done.

    Attributes:
        models: How many copies of the model there are.
        fits: How many of them the memory budget holds.
        requests: How many requests go to random ones.
        clients: From how many clients at once, in turn over REST and gRPC.
        workers: How many worker processes the server has.
        probes: How many single requests are timed for warm and cold models each.
        limit_s: When to give up.
        seed: Makes the choice of models repeatable.
    """

    models: int = 40
    fits: int = 10
    requests: int = 2000
    clients: int = 8
    workers: int = 1
    probes: int = 50
    limit_s: float = 300.0
    seed: int = 0


@dataclass(slots=True)
class Report:
    """What was seen. Latencies in seconds; ``most_*`` are the highest of all samples."""

    scenario: Scenario
    budget_bytes: int
    idle_bytes: int
    took_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    mixed_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    loads: int = 0
    evictions: int = 0
    load_failures: int = 0
    resident: int = 0
    samples: int = 0
    most_used_bytes: int = 0
    most_private_bytes: int = 0
    most_resident: int = 0
    loaded_twice: set[str] = field(default_factory=set)

    def text(self) -> str:
        """The report for people."""
        done = len(self.mixed_s)
        ratio = (self.most_private_bytes - self.idle_bytes) / self.budget_bytes
        lines = [
            f"{self.scenario.models} models, memory for {self.scenario.fits}, {self.scenario.clients} clients, "
            f"{self.scenario.workers} worker(s)",
            f"  requests   {done} in {self.took_s:.1f} s: {done / self.took_s:.0f}/s, {len(self.wrong)} wrong",
            f"  mixed      {_percentiles(self.mixed_s)}   (random models, all clients at once)",
            f"  warm       {_percentiles(self.warm_s)}   (model in memory, one request at a time)",
            f"  cold       {_percentiles(self.cold_s)}   (model not in memory, one request at a time)",
            f"  loads      {self.loads}, evictions {self.evictions}, failures {self.load_failures}, "
            f"at most {self.most_resident} in memory",
            f"  accounted  at most {format_bytes(self.most_used_bytes)} of {format_bytes(self.budget_bytes)} "
            f"in {self.samples} samples",
            f"  anonymous  at most {format_bytes(self.most_private_bytes)} in all processes, "
            f"{format_bytes(self.idle_bytes)} idle: idle + {ratio:.2f} x budget",
        ]
        return "\n".join(lines)


def _percentiles(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "-"
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return "  ".join(
        f"{name} {value * 1e3:7.1f} ms"
        for name, value in zip(("p50", "p90", "p99", "max"), (cuts[49], cuts[89], cuts[98], max(seconds)), strict=True)
    )


def model_file() -> Path:
    """The model that comes with the package ``magika``."""
    spec = importlib.util.find_spec("magika")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package magika is not installed: pip install magika==1.0.3")
    return Path(spec.submodule_search_locations[0]) / "models" / "standard_v3_3" / "model.onnx"


def sample_inputs() -> list[Features]:
    """Features of files of many kinds, int32 ``[1, 2048]`` each: the bytes at both ends."""
    patterns = (
        "*",
        "docs/*.md",
        "proto/inference/*",
        "proto/roost/**/*",
        "server/roost/**/*.wav",
        "tests/*.py",
        ".ci/*",
    )
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    rows = []
    for path in (model_file(), *(path for path in paths if path.stat().st_size > 64)):
        data = path.read_bytes()
        begin, end = data.lstrip()[:FEATURES_PER_END], data.rstrip()[-FEATURES_PER_END:]
        row = np.full((1, 2 * FEATURES_PER_END), NO_BYTE, np.int32)
        row[0, : len(begin)] = np.frombuffer(begin, np.uint8)
        row[0, -len(end) :] = np.frombuffer(end, np.uint8)
        rows.append(row)
    return rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]


def expected_labels(inputs: Sequence[Features]) -> list[int]:
    """What ONNX Runtime itself answers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model_file()), providers=["CPUExecutionProvider"])
    return [int(np.argmax(session.run(["target_label"], {"bytes": row})[0])) for row in inputs]


class _Run:
    """One run against a server that is up."""

    def __init__(self, scenario: Scenario, server: RoostServer, report: Report) -> None:
        self._scenario = scenario
        self._server = server
        self._report = report
        self._names = [name_of(number) for number in range(scenario.models)]
        self._random = random.Random(scenario.seed)
        rows = sample_inputs()
        self._inputs: list[list[Tensor]] = [[from_array("bytes", "INT32", row)] for row in rows]
        self._labels = expected_labels(rows)

    async def mixed(self) -> None:
        """All clients at once, each in turn a request to a random model."""
        draws = iter([self._draw(self._names) for _ in range(self._scenario.requests)])

        async def work(client: Client) -> None:
            for name, sample in draws:
                self._report.mixed_s.append(await self._timed(client, name, sample))

        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connect(self._server, TRANSPORTS[number % 2]))
                for number in range(self._scenario.clients)
            ]
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(work(client))
            self._report.took_s = time.monotonic() - began

    async def single(self) -> None:
        """One request at a time, to models that are in memory and to others."""
        async with connect(self._server, "rest") as client:
            for _ in range(self._scenario.probes):
                resident = await asyncio.to_thread(self._server.resident)
                cold = sorted(set(self._names) - resident)
                if resident:
                    self._report.warm_s.append(await self._timed(client, *self._draw(sorted(resident))))
                if cold:
                    self._report.cold_s.append(await self._timed(client, *self._draw(cold)))

    def _draw(self, names: Sequence[str]) -> tuple[str, int]:
        return self._random.choice(names), self._random.randrange(len(self._labels))

    async def _timed(self, client: Client, name: str, sample: int) -> float:
        began = time.monotonic()
        answer = await client.infer(name, self._inputs[sample])
        took_s = time.monotonic() - began
        label = int(np.argmax(to_array(answer.outputs[0])))
        if (answer.model_name, label) != (name, self._labels[sample]):
            self._report.wrong.append(f"{name}: {answer.model_name} said {label}, not {self._labels[sample]}")
        return took_s


def name_of(number: int) -> str:
    """The name of one of the copies."""
    return f"magika-{number:03}"


async def _watch(server: RoostServer, report: Report) -> None:
    """Samples the server's books and the kernel's until it is cancelled."""
    while True:
        status: dict[str, Any] = await asyncio.to_thread(server.status)
        device = status["devices"][0]
        instances = [instance for worker in status["workers"] for instance in worker["instances"]]
        pids = [server.pid, *(worker["pid"] for worker in status["workers"] if worker["pid"])]
        report.samples += 1
        report.most_used_bytes = max(report.most_used_bytes, device["used_bytes"])
        report.most_private_bytes = max(report.most_private_bytes, sum(map(private_bytes_of, pids)))
        report.most_resident = max(report.most_resident, sum(i["state"] == "ready" for i in instances))
        coming = Counter(i["model"] for i in instances if i["state"] in ("loading", "ready"))
        report.loaded_twice |= {name for name, count in coming.items() if count > 1}
        await asyncio.sleep(SAMPLE_EVERY_S)


async def _while_watching(server: RoostServer, report: Report, steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
    async with asyncio.timeout(report.scenario.limit_s), asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(server, report))
        for step in steps:
            await step()
        watch.cancel()


def run(scenario: Scenario, folder: Path) -> Report:
    """Starts a server in ``folder``, does what the scenario says, stops the server and says what was seen."""
    source = model_file()
    for number in range(scenario.models):
        target = folder / "models" / name_of(number) / "1" / "model.onnx"
        target.parent.mkdir(parents=True)
        target.symlink_to(source)
    budget_bytes = scenario.fits * estimated_bytes(source.stat().st_size)
    flags = ("--workers", str(scenario.workers), "--memory-budget", str(budget_bytes), "--log-level", "warning")
    with started(folder / "models", folder / "run", *flags) as server:
        report = Report(scenario, budget_bytes, server.private_bytes())
        steps = _Run(scenario, server, report)
        asyncio.run(_while_watching(server, report, (steps.mixed, steps.single)))
        report.loads = int(server.metric("roost_loads_total"))
        report.evictions = int(server.metric("roost_evictions_total"))
        report.load_failures = int(server.metric("roost_load_failures_total"))
        report.resident = len(server.resident())
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the scenario of the command line and prints the report; 1 if an answer was wrong or memory too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Scenario()
    for name, what in (
        ("models", "copies of the model"),
        ("fits", "copies that the memory budget holds"),
        ("requests", "requests to random models"),
        ("clients", "clients at once, in turn over REST and gRPC"),
        ("workers", "worker processes"),
        ("probes", "single requests to warm and to cold models"),
        ("seed", "seed of the random choices"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{what} (default {value})")
    parser.add_argument(
        "--limit",
        type=float,
        default=default.limit_s,
        metavar="S",
        help=f"give up after (default {default.limit_s:g} s)",
    )
    values = vars(parser.parse_args(argv))
    scenario = Scenario(limit_s=values.pop("limit"), **values)
    with tempfile.TemporaryDirectory(prefix="roost-many-models-") as folder:
        report = run(scenario, Path(folder))
    print(report.text())
    over = report.most_used_bytes > report.budget_bytes
    return 1 if report.wrong or report.loaded_twice or over else 0


if __name__ == "__main__":
    sys.exit(main())

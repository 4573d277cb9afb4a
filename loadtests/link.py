"""What the way to a worker and back costs, by the size of the tensor: inline in frames, or in the shared arena.

Run from a checkout: ``python -m loadtests.link``. A real worker process runs an ONNX model that copies its input; the
router's end of the link is used as the router does, on uvloop, with so many runs in flight. Rounds of both kinds
alternate. Shown are medians of rounds: microseconds from send to answer, and of CPU time of both processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from roost.core.errors import Limit, RoostError
from roost.core.frames import Call, FrameType, Response, Run, WireTensor
from roost.router import places
from roost.router.admission import ByteBudget
from roost.router.link import Link
from roost.router.process import WorkerSpec, launch

from tests.models import write_identity

SIZES = (64, 4 << 10, 16 << 10, 32 << 10, 64 << 10, 256 << 10, 1 << 20, 4_800_000, 16 << 20)
ARENA_BYTES = 1 << 30
_ROUND_BYTES = 512 << 20
_MAX_RUNS = 1000
_MIN_RUNS = 20
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Listener:
    """Settles a future for each run."""

    def __init__(self) -> None:
        self.answers = ByteBudget(ARENA_BYTES, "answers", Limit.ANSWER_BUDGET)
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting: dict[int, asyncio.Future[Response]] = {}

    def on_hello(self, hello: dict[str, Any]) -> None:
        """The worker is up."""
        self.up.set_result(None)

    def on_response(self, run: int, response: Response) -> None:
        """A run is answered."""
        self.waiting.pop(run).set_result(response)

    def on_run_error(self, run: int, error: Exception) -> None:
        """A run has failed."""
        self.waiting.pop(run).set_exception(error)

    def on_call(self, number: int, call: Call | None) -> None:
        """No model calls another one."""

    def on_response_refused(self, run: int, error: RoostError) -> None:
        """There was no memory for a response."""

    def on_lost(self, link: Link) -> None:
        """The worker has ended."""


class Way:
    """A worker with a loaded model."""

    def __init__(self, link: Link, listener: Listener, pid: int) -> None:
        self._link = link
        self._listener = listener
        self._pid = pid

    async def ask(self, data: bytes) -> None:
        """One run; the answer is looked at."""
        number = self._link.next_number()
        future = self._listener.waiting[number] = asyncio.get_running_loop().create_future()
        shape = (len(data),)
        expected = WireTensor("OUTPUT0", "UINT8", shape, b"")
        self._link.send_run(number, Run(1, 0, [WireTensor("INPUT0", "UINT8", shape, data)]), [expected])
        (output,) = (await future).outputs
        assert isinstance(output.data, memoryview)
        if len(output.data) != len(data) or output.data[-8:] != data[-8:]:
            raise SystemExit("a wrong answer")

    async def round(self, data: bytes, in_flight: int) -> tuple[float, float]:
        """Microseconds of a run: from send to answer, and of CPU time here and there."""
        runs = max(_MIN_RUNS, min(_MAX_RUNS, _ROUND_BYTES // (2 * len(data)))) // in_flight
        latencies: list[float] = []

        async def client() -> None:
            for _ in range(runs):
                began = time.perf_counter()
                await self.ask(data)
                latencies.append(time.perf_counter() - began)

        cpu_s = self._cpu_s()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(client())
        cpu_s = self._cpu_s() - cpu_s
        return statistics.median(latencies) * 1e6, cpu_s / len(latencies) * 1e6

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return time.process_time() + (int(fields[11]) + int(fields[12])) * _TICK_S


@asynccontextmanager
async def way(model: Path, arena_bytes: int) -> AsyncIterator[Way]:
    """Starts a worker and loads the model."""
    listener = Listener()
    process = await launch(WorkerSpec("onnx", "cpu", 4, 1, arena_bytes=arena_bytes), 0, 1, listener)
    try:
        await listener.up
        fields = {"instance": 1, "backend": "onnxruntime", "path": str(model), "root": str(model.parent), "options": {}}
        await process.link.call(FrameType.LOAD, fields)
        yield Way(process.link, listener, process.pid)
    finally:
        process.link.abort()
        await process.wait()


async def measure(rounds: int, in_flight: int, sizes: list[int]) -> None:
    """Prints a table as Markdown."""
    places.ARENA_FROM_BYTES = 1  # what it is to be chosen by is measured here
    with tempfile.TemporaryDirectory() as folder:
        model = write_identity(Path(folder) / "model.onnx", "UINT8", (-1,))
        async with AsyncExitStack() as stack:
            inline = await stack.enter_async_context(way(model, 0))
            arena = await stack.enter_async_context(way(model, ARENA_BYTES))
            print("| bytes | inline | arena | inline, CPU | arena, CPU |\n|---|---|---|---|---|")
            for size in sizes:
                data = np.random.default_rng(size).bytes(size)
                found: list[list[tuple[float, float]]] = [[], []]
                for number in range(rounds + 1):
                    for at, each in enumerate((inline, arena)):
                        result = await each.round(data, in_flight)
                        if number:  # the first is for warming up
                            found[at].append(result)
                cells = [statistics.median(r[i] for r in found[at]) for i in (0, 1) for at in (0, 1)]
                print(f"| {size:,} | " + " | ".join(f"{cell:,.0f}" for cell in cells) + " |", flush=True)


def main() -> None:
    """Measures what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}, {arguments.rounds} rounds, microseconds")
    print(f"{arguments.in_flight} in flight\n")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(arguments.rounds, arguments.in_flight, arguments.sizes))


if __name__ == "__main__":
    main()

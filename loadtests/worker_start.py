"""Starts workers in both ways, by turns, and says how long each takes until it says hello, and what memory it has.

Run from a checkout: ``python -m loadtests.worker_start``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roost.core.errors import Limit, RoostError
from roost.core.frames import Call, Response
from roost.router.admission import ByteBudget
from roost.router.forking import fork_server
from roost.router.link import Link
from roost.router.process import Launch, WorkerProcess, WorkerSpec, launch

SPEC = WorkerSpec("onnx", "cpu", slots=4, threads=1, arena_bytes=64 << 20)


class Listener:
    """Waits for the hello of a worker."""

    def __init__(self) -> None:
        self.answers = ByteBudget(1 << 20, "answers", Limit.ANSWER_BUDGET)
        self.hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_hello(self, hello: dict[str, Any]) -> None:
        """It is up."""
        self.hello.set_result(None)

    def on_response(self, run: int, response: Response) -> None:
        """Nothing is run."""

    def on_run_error(self, run: int, error: Exception) -> None:
        """Nothing is run."""

    def on_call(self, number: int, call: Call | None) -> None:
        """No model calls another one."""

    def on_response_refused(self, run: int, error: RoostError) -> None:
        """Nothing is run."""

    def on_lost(self, link: Link) -> None:
        """It has been ended."""


async def start(starter: Launch, number: int) -> tuple[WorkerProcess, float]:
    """Starts one; returns it and the seconds until its hello."""
    listener, began = Listener(), time.perf_counter()
    process = await starter(SPEC, number, 1, listener)
    await listener.hello
    return process, time.perf_counter() - began


async def end(processes: Sequence[WorkerProcess]) -> None:
    """Ends them."""
    for process in processes:
        process.kill()
        await process.wait()


def anonymous_mib(pid: int) -> float:
    """Anonymous memory; of pages that n processes share the n-th part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "Pss_Anon":
            return int(value.split()[0]) / 1024
    return 0.0


async def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="how workers are started")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="how many there are when memory is looked at")
    arguments = parser.parse_args()
    async with fork_server(SPEC) as forks:
        first, until_first_s = await start(forks.launch, 0)
        await end([first])
        print(f"the first fork, with the start of the fork server: {until_first_s * 1e3:.0f} ms")
        ways: dict[str, Launch] = {"spawned": launch, "forked": forks.launch}
        took_s: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds):
            for name, starter in ways.items():
                process, seconds = await start(starter, number)
                took_s[name].append(seconds)
                await end([process])
        for name, starter in ways.items():
            processes = [(await start(starter, number))[0] for number in range(arguments.workers)]
            pids = [process.pid for process in processes] + ([forks.pid] if name == "forked" else [])
            median_ms, most_ms = statistics.median(took_s[name]) * 1e3, max(took_s[name]) * 1e3
            print(
                f"{name}: median {median_ms:.0f} ms, most {most_ms:.0f} ms; "
                f"{len(processes)} take {sum(map(anonymous_mib, pids)):.1f} MiB together"
            )
            await end(processes)


if __name__ == "__main__":
    asyncio.run(main())

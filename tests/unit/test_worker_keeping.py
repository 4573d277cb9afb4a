"""A worker's process is kept running: started, watched, ended, and started again."""

from __future__ import annotations

import asyncio
import contextlib
from typing import cast

from roost.core.errors import Limit
from roost.router.admission import ByteBudget
from roost.router.ends import End
from roost.router.link import LinkListener
from roost.router.process import WorkerProcess, WorkerSpec
from roost.router.worker import START_TIMEOUT_S, Worker, WorkerEvents

from tests.unit.mesh_fakes import FakeProcess, Farm
from tests.virtual_time import virtual

SPEC = WorkerSpec("onnx", "cpu", 1, 1)


class Events:
    """Notes what the mesh is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def worker_up(self, worker: Worker) -> None:
        self.told.append("up")

    def worker_lost(self, worker: Worker) -> None:
        self.told.append("lost")

    def worker_reaped(self, worker: Worker, end: End) -> None:
        self.told.append(end)


class Place:
    """A worker whose first process ends as a test wants before anybody knows that it was started."""

    def __init__(self, *, ends_early: bool = False, is_silent: bool = False) -> None:
        self.farm = Farm({}, lambda: 0)
        self.events = Events()
        self.ends_early, self.is_silent = ends_early, is_silent
        budget = ByteBudget(1, "answers", Limit.ANSWER_BUDGET)
        self.worker = Worker(0, SPEC, cast(WorkerEvents, self.events), self.launch, budget)

    async def launch(self, spec: WorkerSpec, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        if epoch == 1 and self.is_silent:
            process = FakeProcess(self.farm, spec, 1, listener)
            self.farm.processes.append(process)
            return process
        started = await self.farm.launch(spec, worker, epoch, listener)
        if epoch == 1 and self.ends_early:
            cast(FakeProcess, started).end(1)
        return started

    async def keep_for(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.worker.keep_running()


@virtual
async def test_a_process_that_ends_before_anybody_knows_of_it() -> None:
    place = Place(ends_early=True)
    await place.keep_for(1)
    assert place.events.told[:2] == [End.EXITED, "up"]
    assert place.worker.epoch == 2


@virtual
async def test_a_process_that_never_says_hello() -> None:
    place = Place(is_silent=True)
    await place.keep_for(2 * START_TIMEOUT_S)
    first, second, *_ = place.events.told
    assert isinstance(first, End)
    assert second == "up"
    assert place.worker.epoch == 2

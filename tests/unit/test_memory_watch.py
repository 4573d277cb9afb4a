"""Workers that take more than their models account for: trimmed, charged, replaced; no process, and no time passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from roost.core.figures import Figures
from roost.core.tasks import in_background
from roost.router.drift import ALLOWED_BYTES, FIRST_PAUSE_S, SETTLED_AFTER_S
from roost.router.learned import Learned
from roost.router.measured import measured_conditions
from roost.router.memory_watch import COUNT_EVERY_S, DRAIN_S, LEFT_BYTES, LOOK_EVERY_S, MemoryWatch
from roost.router.revision import Revision
from roost.router.worker import Worker

from tests.memory_store import MemoryStore
from tests.unit.mesh_fakes import Bed, FakeProcess, InlineExecutor, bed, worker_of
from tests.virtual_time import settle, virtual

MIB = 1 << 20
IDLE = 30 * MIB
BUDGET = 1000 * MIB
OVER = ALLOWED_BYTES + MIB
A_WHILE_S = 15.0
MOST_MAPPINGS = 65_530


@dataclass
class FakeKernel:
    """Says that processes take what their models do, and what the test says beyond.

    Attributes:
        bed: The mesh.
        beyond: By process.
        count: Mappings of each.
    """

    bed: Bed
    beyond: dict[int, int] = field(default_factory=dict)
    count: int = 100

    def memory(self, pid: int) -> Figures:
        process = next((process for process in self.bed.farm.processes if process.pid == pid), None)
        if process is None:
            raise ProcessLookupError
        models = sum(self.bed.sizes[name] for name in process.loaded.values())
        return Figures(IDLE + models + self.beyond.get(pid, 0), 5 * MIB)

    def mappings(self, pid: int) -> int:
        return self.count

    def most_mappings(self) -> int:
        return MOST_MAPPINGS


@dataclass
class Place:
    """A mesh whose memory is watched."""

    bed: Bed
    kernel: FakeKernel
    learned: Learned
    trims: list[int] = field(default_factory=list)

    async def lose(self, pid: int) -> None:
        """A process takes more than it should, and nobody ran when that began."""
        await asyncio.sleep(2 * LOOK_EVERY_S)
        self.kernel.beyond[pid] = OVER
        await asyncio.sleep(2 * LOOK_EVERY_S)

    async def use(self, revision: Revision) -> None:
        """One request."""
        sent = self.bed.submit(revision)
        await settle()
        self.bed.job(revision).answer()
        await sent.future


@asynccontextmanager
async def watched(*, workers: int = 1, slots: int = 4) -> AsyncIterator[Place]:
    async with bed(BUDGET, workers=workers, slots=slots) as made:
        place = Place(made, FakeKernel(made), Learned(MemoryStore()))
        made.farm.on_trim = lambda process: place.trims.append(process.pid)
        mesh = made.mesh
        watch = MemoryWatch(
            mesh.workers, made.ledger, mesh.loader.room, mesh, place.learned, InlineExecutor(), place.kernel
        )
        async with in_background(watch.run()):
            await settle()
            yield place


@virtual
async def test_the_books_and_the_kernel_are_beside_each_other() -> None:
    async with watched() as place:
        model = place.bed.model("m", 10 * MIB)
        await place.bed.make_resident(model)
        (worker,) = place.bed.mesh.workers
        place.kernel.beyond[worker.pid] = MIB
        await asyncio.sleep(COUNT_EVERY_S)
        memory = worker.memory
        assert _books(worker) == (IDLE, IDLE + 10 * MIB, IDLE + 11 * MIB)
        assert (memory.mapped_bytes, memory.mappings, memory.drift_bytes) == (5 * MIB, 100, MIB)
        assert (memory.trims, memory.recycles, place.trims) == (0, 0, [])


@virtual
async def test_a_worker_that_gives_its_free_memory_back_stays() -> None:
    async with watched() as place:
        (worker,) = place.bed.mesh.workers
        pid = worker.pid

        def trim(process: FakeProcess) -> None:
            place.kernel.beyond[process.pid] = 0

        place.bed.farm.on_trim = trim
        place.kernel.beyond[pid] = OVER
        await asyncio.sleep(10 * A_WHILE_S)
        assert (worker.pid, worker.memory.trims, worker.memory.recycles) == (pid, 1, 0)


@virtual
async def test_what_loads_leave_behind_is_given_back_when_nothing_happens() -> None:
    async with watched() as place:
        made = place.bed
        model = made.model("m", 10 * MIB)
        await made.make_resident(model)
        (worker,) = made.mesh.workers
        place.kernel.beyond[worker.pid] = 2 * LEFT_BYTES
        for _ in range(10):
            await place.use(model)
            await asyncio.sleep(LOOK_EVERY_S)
        assert place.trims == []
        await asyncio.sleep(A_WHILE_S)
        assert place.trims == [worker.pid]  # once, though that did not help
        place.kernel.beyond[worker.pid] += 2 * LEFT_BYTES
        await asyncio.sleep(A_WHILE_S)
        assert len(place.trims) == 2


@virtual
async def test_a_worker_that_lost_memory_is_replaced_and_no_request_fails() -> None:
    async with watched() as place:
        made = place.bed
        model, other = made.model("m", 10 * MIB), made.model("n", 10 * MIB)
        await made.make_resident(model, other)
        (worker,) = made.mesh.workers
        pid = worker.pid
        await place.lose(pid)
        made.farm.answer_runs_after(0.3)
        sent = []
        while worker.memory.recycles == 0 or worker.pid in (0, pid):
            sent += [made.submit(model), made.submit(other)]
            await asyncio.sleep(0.1)
        sent.append(made.submit(model))
        outcomes = await asyncio.gather(*(each.future for each in sent))
        assert len(outcomes) == len(sent)
        assert set(place.trims) == {pid}
        assert (worker.memory.idle_bytes, worker.memory.recycles) == (IDLE, 1)
        await asyncio.sleep(10 * A_WHILE_S)
        assert worker.memory.recycles == 1


@virtual
async def test_what_models_know_of_sequences_puts_it_off() -> None:
    async with watched() as place:
        made = place.bed
        model = made.model("m", 10 * MIB)
        await made.make_resident(model)
        (worker,), (instance,) = made.mesh.workers, model.instances
        pid = worker.pid
        made.mesh.leases.take(instance)
        await place.lose(pid)
        await asyncio.sleep(10 * A_WHILE_S)
        assert (worker.pid, worker.memory.recycles, worker.recycling) == (pid, 0, False)
        made.mesh.leases.give_back(instance)
        await asyncio.sleep(FIRST_PAUSE_S + A_WHILE_S)
        assert worker.memory.recycles == 1


@virtual
async def test_runs_that_take_long_put_it_off_and_others_do_not_wait_for_them() -> None:
    async with watched() as place:
        made = place.bed
        slow, quick = made.model("slow", 10 * MIB), made.model("quick", 10 * MIB)
        await made.make_resident(slow, quick)
        (worker,) = made.mesh.workers
        pid = worker.pid
        await place.lose(pid)
        stream = made.submit(slow)
        while not worker.recycling:  # noqa: ASYNC110 - no time passes
            await asyncio.sleep(0.1)
        sent = made.submit(quick)
        await asyncio.sleep(2 * DRAIN_S)
        assert (worker.pid, worker.memory.recycles, worker.recycling) == (pid, 0, False)
        made.job(quick).answer()
        await sent.future
        made.job(slow).answer()
        await stream.future
        await asyncio.sleep(FIRST_PAUSE_S + A_WHILE_S)
        assert worker.memory.recycles == 1
        assert worker.pid != pid


@virtual
async def test_of_two_workers_one_goes_on() -> None:
    async with watched(workers=2) as place:
        made = place.bed
        models = [made.model(f"m{i}", 10 * MIB) for i in range(2)]
        await made.make_resident(*models)
        bad, good = (worker_of(model) for model in models)
        assert bad is not good
        pid = good.pid
        await place.lose(bad.pid)
        while not bad.memory.recycles:
            await place.use(models[1])
            await asyncio.sleep(0.1)
        assert (good.pid, good.memory.recycles) == (pid, 0)
        await settle()
        await place.use(models[0])


@virtual
async def test_what_a_model_needs_in_its_runs_is_accounted_for_and_remembered() -> None:
    async with watched() as place:
        made = place.bed
        hungry = made.model("hungry", 10 * MIB)
        others = [made.model(f"m{i}", 300 * MIB) for i in range(3)]
        await made.make_resident(*others, hungry)
        (worker,) = made.mesh.workers
        (instance,) = hungry.instances
        await asyncio.sleep(2 * LOOK_EVERY_S)
        place.kernel.beyond[worker.pid] = 200 * MIB
        for _ in range(int(A_WHILE_S)):
            await place.use(hungry)
            await asyncio.sleep(1)
        made.sizes["hungry"] = 210 * MIB
        place.kernel.beyond.clear()
        assert instance.figures == Figures(210 * MIB)
        assert made.farm.models() == ["hungry", "m1", "m2"]  # the one used longest ago had to go
        assert worker.memory.recycles == 0
        await asyncio.sleep(SETTLED_AFTER_S)
        assert hungry.artifact is not None
        known = place.learned.get_measured(hungry.artifact.digest, measured_conditions(hungry.description))
        assert known is not None
        assert known.figures == Figures(210 * MIB)


@pytest.mark.parametrize(("count", "recycles"), [(MOST_MAPPINGS // 2, 0), (MOST_MAPPINGS - 100, 1)])
def test_a_worker_that_can_hardly_map_any_more_is_replaced(count: int, recycles: int) -> None:
    @virtual
    async def check() -> None:
        async with watched() as place:
            (worker,) = place.bed.mesh.workers
            place.kernel.count = count
            await asyncio.sleep(2 * COUNT_EVERY_S)
            assert worker.memory.recycles == recycles

    check()


@virtual
async def test_a_process_that_came_with_models_has_the_same_idle_share() -> None:
    async with watched() as place:
        made = place.bed
        model = made.model("m", 200 * MIB)
        (worker,) = made.mesh.workers
        await made.make_resident(model)
        made.process_of(model).end(1)
        made.farm.answer_runs_after(0.0)
        await made.infer(model)
        await asyncio.sleep(2)
        assert _books(worker) == (IDLE, IDLE + 200 * MIB, IDLE + 200 * MIB)


def _books(worker: Worker) -> tuple[int, int, int]:
    return worker.memory.idle_bytes, worker.memory.believed_bytes, worker.memory.private_bytes

"""When models are measured in the background, and what follows; no process, and no time passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from roost.core.figures import Figures
from roost.core.names import DEFAULT_NAMESPACE, VersionKey
from roost.core.tasks import in_background
from roost.registry_client.digest import Artifact
from roost.registry_client.model_config import parse_config_text
from roost.registry_client.model_folder import ModelFolder
from roost.router.background import LINGER_S, LOOK_EVERY_S, PATIENCE_S
from roost.router.learned import Learned, Measured
from roost.router.measured import measured_conditions
from roost.router.measuring import MAX_ATTEMPTS, Measuring
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.preparer import Preparer, PreparerSpec
from roost.router.revision import Instance, Revision
from roost.router.room import Room
from roost.router.states import InstanceEvent
from roost.router.worker import Worker
from roost.runtimes.prepared.cache import Copy

from tests.memory_store import MemoryStore
from tests.unit.mesh_fakes import InlineExecutor
from tests.unit.preparer_fakes import FakeProcess, Job
from tests.virtual_time import settle, virtual

MIB = 1 << 20
BUDGET_BYTES = 1 << 30
ESTIMATE = 13 * MIB
TAKEN = {"private_bytes": 4 * MIB, "mapped_bytes": 0, "mappings": 3, "load_s": 0.02, "peak_bytes": 9 * MIB}
TAKEN["run_bytes"] = 3 * MIB
FOUND = Measured(Figures(4 * MIB, 0, 3), 0.02, 9 * MIB, 3 * MIB)
DONE = {"result": {"taken": TAKEN}}
DAY_S = 24 * 3600.0


@dataclass
class Bed:
    """What is measured, and on whose account; ``answer`` and ``is_busy`` are up to the test."""

    budget_bytes: int = BUDGET_BYTES
    answer: Callable[[Job], Any] = lambda _: DONE
    is_busy: bool = False
    jobs: list[Job] = field(default_factory=list)
    processes: list[FakeProcess] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(Limits(self.budget_bytes))
        self.room = Room(self.ledger, lambda idle, busy: None)
        self.learned = Learned(MemoryStore())
        self.worker = cast(Worker, type("Worker", (), {"id": 0, "instances": {}})())
        self.measuring = Measuring(
            self.learned,
            self.ledger,
            self.room,
            self,
            Preparer(PreparerSpec(), self._launch),
            InlineExecutor(),
            lambda: self.is_busy,
        )

    def evict_idle(self, numbers: Sequence[int]) -> None:
        """Plays the loader."""
        for number in numbers:
            self.evicted.append(number)
            self.ledger.gone(number)

    async def _launch(self, spec: PreparerSpec) -> FakeProcess:
        self.processes.append(FakeProcess(len(self.processes) + 1, lambda job: self.answer(job), self.jobs))
        return self.processes[-1]

    async def load(self, revision: Revision, copy: Copy | None = None) -> Instance:
        """A revision is loaded."""
        number = len(self.worker.instances) + 1
        instance = Instance(number, revision, self.worker, Figures(ESTIMATE), copy=copy)
        self.ledger.reserve(number, revision, instance.figures, place=0)
        self.ledger.loaded(number, asyncio.get_running_loop().time(), load_s=0.02)
        instance.advance(InstanceEvent.LOADED)
        revision.instances.append(instance)
        self.worker.instances[number] = instance
        self.measuring.loaded(revision)
        await settle()
        return instance

    def known(self, revision: Revision) -> Measured | None:
        assert revision.artifact is not None
        return self.learned.get_measured(revision.artifact.digest, measured_conditions(revision.description))


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[Bed]:
    """A bed whose background runs; at the end no process and no memory may be left."""
    made = Bed(**changes)
    async with in_background(made.measuring.run()):
        await settle()
        yield made
        await settle()
    made.room.stop()
    assert all(process.ended.is_set() for process in made.processes)
    assert all(number > 0 for number in made.ledger.holdings)


def revision_of(name: str = "m", digest: str = "d", config: str = "", backend: str = "onnxruntime") -> Revision:
    folder = cast(ModelFolder, type("Folder", (), {"path": f"/models/{name}"})())
    description = parse_config_text(f"backend: '{backend}' {config}", name)
    made = Revision(VersionKey(DEFAULT_NAMESPACE, name, "1"), folder, description)
    made.artifact = Artifact(f"/models/{name}/1/model.onnx", f"/models/{name}/1", digest, 3 * MIB, ())
    return made


@virtual
async def test_what_is_found_out_is_accounted_and_kept() -> None:
    async with running() as b:
        revision = revision_of()
        instance = await b.load(revision)
        (job,) = b.jobs
        assert (job["job"], job["order"]["digest"]) == ("measure", "d")
        assert 0 < job["order"]["memory_bytes"] < BUDGET_BYTES
        assert b.known(revision) == FOUND
        assert instance.figures == FOUND.figures
        assert b.ledger.used_bytes == 4 * MIB


@virtual
async def test_models_of_the_same_files_are_measured_once() -> None:
    async with running(is_busy=True) as b:
        instances = [await b.load(revision_of(name)) for name in "abc"]
        other = await b.load(revision_of("o", "other"))
        b.answer = lambda job: DONE if job["order"]["digest"] == "d" else {"error": "no"}
        b.is_busy = False
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert [job["order"]["digest"] for job in b.jobs] == ["d", "other"]
        assert {instance.figures for instance in instances} == {FOUND.figures}
        assert other.figures == Figures(ESTIMATE)
        await b.load(revision_of("later"))
        assert len(b.jobs) == 2


DECLARED = "parameters { key: 'roost.memory_bytes' value { string_value: '5MiB' } }"


@pytest.mark.parametrize(
    "revision",
    [revision_of(config=DECLARED), revision_of(backend="dummy")],
    ids=["declared", "a runtime that is not measured"],
)
def test_which_models_are_not_measured(revision: Revision) -> None:
    @virtual
    async def check() -> None:
        async with running() as b:
            await b.load(revision)
            assert b.jobs == []

    check()


@virtual
async def test_what_is_known_or_was_loaded_from_a_copy_is_not_measured() -> None:
    async with running() as b:
        known = revision_of()
        known.measured = FOUND
        await b.load(known)
        await b.load(revision_of(), cast(Copy, object()))
        stored = revision_of("s", "stored")
        b.learned.put_measured("stored", measured_conditions(stored.description), FOUND)
        await b.load(stored)
        assert b.jobs == []


@pytest.mark.parametrize("answer", [{"error": "not enough memory"}, {"result": {"reason": "busy"}}, {"result": 7}])
@virtual
async def test_what_fails_is_tried_again_but_not_for_ever(answer: Any) -> None:
    async with running(answer=lambda _: answer) as b:
        revision = revision_of()
        instance = await b.load(revision)
        await asyncio.sleep(DAY_S)
        await b.load(revision)
        assert len(b.jobs) == MAX_ATTEMPTS
        assert instance.figures == Figures(ESTIMATE)


@virtual
async def test_a_load_gets_its_memory_at_once_and_it_is_measured_later() -> None:
    async with running(answer=lambda _: None) as b:
        await b.load(revision_of())
        assert b.room.give_way()
        await settle()
        assert b.ledger.used_bytes == ESTIMATE
        b.answer = lambda _: DONE
        await asyncio.sleep(3 * LINGER_S)
        assert (len(b.jobs), b.ledger.used_bytes) == (2, 4 * MIB)


@pytest.mark.parametrize(("used_later", "jobs"), [(False, 1), (True, 0)])
@virtual
async def test_only_what_was_not_used_since_the_load_may_go(used_later: bool, jobs: int) -> None:
    async with running(budget_bytes=400 * MIB) as b:
        b.ledger.reserve(9, "other", Figures(300 * MIB))
        b.ledger.loaded(9, 0.0, load_s=0.1)
        b.ledger.lease(9, 1.0)
        b.ledger.release(9, 1.0)
        await b.load(revision_of())
        if used_later:
            now = asyncio.get_running_loop().time() + 1.0
            b.ledger.lease(9, now)
            b.ledger.release(9, now)
        await asyncio.sleep(PATIENCE_S / 2)
        assert b.evicted == []
        await asyncio.sleep(PATIENCE_S)
        assert (b.evicted, len(b.jobs)) == ([9] * jobs, jobs)


@virtual
async def test_a_budget_that_is_too_small_and_a_revision_that_was_replaced() -> None:
    async with running(budget_bytes=100 * MIB) as b:
        await b.load(revision_of())
        await asyncio.sleep(DAY_S)
        assert b.jobs == []
    async with running(is_busy=True) as b:
        revision = revision_of()
        await b.load(revision)
        revision.retired = True
        b.is_busy = False
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert b.jobs == []

"""Prepared copies in the mesh: when they are made, checked and used; no process, and no time passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from roost.core.figures import Figures
from roost.core.names import DEFAULT_NAMESPACE, VersionKey
from roost.core.tasks import in_background
from roost.registry_client.digest import Artifact
from roost.registry_client.model_config import parse_config_text
from roost.registry_client.model_folder import ModelFolder
from roost.router.background import LINGER_S, LOOK_EVERY_S, PATIENCE_S, RETRY_AFTER_S
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.prepared_copies import MAX_ATTEMPTS, MAX_FAULTS, MAX_TIMES_MADE, PreparedCopies
from roost.router.prepared_counts import PreparedCounts
from roost.router.preparer import Preparer, PreparerSpec
from roost.router.revision import Revision
from roost.router.room import Room
from roost.runtimes.prepared.cache import Copy, CopyCache
from roost.runtimes.prepared.forms import LARGE_BYTES, SMALL_BYTES
from roost.runtimes.prepared.identity import copy_key
from roost.runtimes.prepared.making import CopyOrder
from roost.runtimes.prepared.manifest import Manifest

from tests.unit.mesh_fakes import InlineExecutor
from tests.unit.preparer_fakes import FakeProcess, Job
from tests.virtual_time import settle, virtual

MADE = {"result": {"made": True, "reason": "", "passing": False}}
REFUSED = {"result": {"made": False, "reason": "no better", "passing": False}}
PASSING = {"result": {"made": False, "reason": "the disk is full", "passing": True}}
BUDGET_BYTES = 1 << 30
SLOW_S = 0.5
DAY_S = 24 * 3600.0
KEY = copy_key("m", "onnxruntime", {})
CONVERTED = "sklearn parameters { key: 'convert_to_onnx' value { string_value: 'true' } }"


@dataclass
class Loaded:
    """Plays the loader: what is evicted or retired."""

    ledger: Ledger
    evicted: list[int] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)

    def evict_idle(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.evicted.append(number)
            self.ledger.gone(number)

    def retire_copy(self, key: str) -> None:
        self.retired.append(key)


@dataclass
class Bed:
    """Copies, and what they work with; ``answer`` and ``is_busy`` are up to the test."""

    cache: CopyCache
    budget_bytes: int = BUDGET_BYTES
    answer: Callable[[Job], Any] = lambda _: MADE
    is_busy: bool = False
    jobs: list[Job] = field(default_factory=list)
    processes: list[FakeProcess] = field(default_factory=list)
    found: Copy | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(Limits(self.budget_bytes))
        self.room = Room(self.ledger, lambda idle, busy: None)
        self.loaded = Loaded(self.ledger)
        self.counts = PreparedCounts()
        self.copies = PreparedCopies(
            self.cache,
            self.ledger,
            self.room,
            self.loaded,
            Preparer(PreparerSpec(), self._launch),
            InlineExecutor(),
            self.counts,
            lambda: self.is_busy,
        )

    async def _launch(self, spec: PreparerSpec) -> FakeProcess:
        assert not self.is_running()
        self.processes.append(FakeProcess(len(self.processes) + 1, lambda job: self.answer(job), self.jobs))
        return self.processes[-1]

    def is_running(self) -> bool:
        return any(not process.ended.is_set() for process in self.processes)

    async def load(self, revision: Revision, load_s: float = SLOW_S) -> None:
        """A revision is loaded, without a copy."""
        self.copies.loaded(revision, load_s, None)
        await settle()


@asynccontextmanager
async def running(cache: CopyCache, **changes: Any) -> AsyncIterator[Bed]:
    """A bed whose background runs; at the end no process and no memory may be left.

    The copy of ``before`` is looked up before anything is verified.
    """
    before = changes.pop("before", None)
    made = Bed(cache, **changes)
    made.found = await made.copies.find(before) if before is not None else None
    async with in_background(made.copies.run()):
        await settle()
        yield made
        await settle()
    made.room.stop()
    assert not made.is_running()
    assert -2 not in made.ledger.holdings


def revision_of(
    name: str = "m", size_bytes: int = LARGE_BYTES, backend: str = "onnxruntime", file: str = "model.onnx"
) -> Revision:
    """A revision; texts after the backend's name are more lines of its configuration."""
    folder = cast(ModelFolder, type("Folder", (), {"path": f"/models/{name}"})())
    backend, _, more = backend.partition(" ")
    text = f"backend: '{backend}' {more}"
    made = Revision(VersionKey(DEFAULT_NAMESPACE, name, "1"), folder, parse_config_text(text, name))
    made.artifact = Artifact(f"/models/{name}/1/{file}", f"/models/{name}/1", name, size_bytes, ())
    return made


def keep(cache: CopyCache, revision: Revision) -> str:
    assert revision.artifact is not None
    key = copy_key(revision.artifact.digest, "onnxruntime", {})
    with cache.making(key) as folder:
        (folder / "model.onnx").write_bytes(b"copy")
        cache.keep(
            key, folder, Manifest(revision.artifact.digest, "onnxruntime", "", "model.onnx", cache.records(folder))
        )
    return key


async def found(bed: Bed, revision: Revision) -> Copy:
    copy = await bed.copies.find(revision)
    assert copy is not None
    return copy


@pytest.fixture
def cache(tmp_path: Path) -> CopyCache:
    return CopyCache(tmp_path / "cache", 1 << 30)


class TestMaking:
    @virtual
    async def test_a_model_that_loads_slowly_gets_a_copy(self, cache: CopyCache) -> None:
        async with running(cache) as b:
            await b.load(revision_of())
            (job,) = b.jobs
            assert (job["job"], job["order"]["digest"], job["cache_dir"]) == ("prepare_copy", "m", str(cache.folder))
            assert 0 < job["order"]["memory_bytes"] < BUDGET_BYTES
            assert (b.counts.made, b.ledger.used_bytes, b.is_running()) == (1, 0, False)

    @pytest.mark.parametrize(
        ("size_bytes", "load_s", "backend", "file", "jobs"),
        [
            (SMALL_BYTES, 0.001, "onnxruntime", "model.onnx", 0),
            (SMALL_BYTES, SLOW_S, "onnxruntime", "model.onnx", 1),
            (SMALL_BYTES - 1, SLOW_S, "onnxruntime", "model.onnx", 0),
            (LARGE_BYTES, 0.001, "onnxruntime", "model.onnx", 1),
            (LARGE_BYTES, SLOW_S, "dummy", "model.dummy", 0),
            (1, SLOW_S, "tensorflow", "model.keras", 1),
            (LARGE_BYTES, 0.001, "tensorflow", "model.keras", 0),
            (LARGE_BYTES, SLOW_S, "tensorflow", "model.savedmodel", 0),
            (1, SLOW_S, CONVERTED, "model.skops", 1),
            (LARGE_BYTES, SLOW_S, "sklearn", "model.skops", 0),
        ],
    )
    @virtual
    async def test_which_models_are_tried(
        self, cache: CopyCache, size_bytes: int, load_s: float, backend: str, file: str, jobs: int
    ) -> None:
        async with running(cache, budget_bytes=4 * BUDGET_BYTES) as b:
            await b.load(revision_of("m", size_bytes, backend, file), load_s)
            assert len(b.jobs) == jobs

    @virtual
    async def test_a_copy_of_what_ran_code_is_for_those_who_may(self, cache: CopyCache) -> None:
        async with running(cache, budget_bytes=4 * BUDGET_BYTES) as b:
            orders = []
            for may_bring_code in (True, False):
                revision = revision_of("m", 1, "tensorflow", "model.keras")
                revision.may_bring_code = may_bring_code
                await b.load(revision)
                orders.append(CopyOrder(**b.jobs[-1]["order"]))
            allowed, strict = orders
            assert "roost.allow_code" in allowed.options
            assert allowed.key != strict.key

    @virtual
    async def test_a_refusal_is_final(self, cache: CopyCache) -> None:
        async with running(cache, answer=lambda _: REFUSED) as b:
            for _ in range(3):
                await b.load(revision_of())
            assert (len(b.jobs), b.counts.refused) == (1, 1)

    @pytest.mark.parametrize("answer", [PASSING, {"error": "not enough memory"}, {"result": 7}])
    @virtual
    async def test_what_may_pass_is_tried_again_but_not_for_ever(self, cache: CopyCache, answer: Any) -> None:
        async with running(cache, answer=lambda _: answer) as b:
            await b.load(revision_of())
            assert len(b.jobs) == 1
            await asyncio.sleep(RETRY_AFTER_S + LOOK_EVERY_S)
            assert len(b.jobs) == 2
            await asyncio.sleep(DAY_S)
            await b.load(revision_of())
            assert len(b.jobs) == b.counts.failures == MAX_ATTEMPTS

    @virtual
    async def test_a_copy_that_is_gone_is_made_again_but_not_for_ever(self, cache: CopyCache) -> None:
        async with running(cache) as b:
            for _ in range(MAX_TIMES_MADE + 2):
                await b.load(revision_of())
            assert len(b.jobs) == MAX_TIMES_MADE

    @virtual
    async def test_a_revision_that_was_replaced_gets_none(self, cache: CopyCache) -> None:
        async with running(cache, is_busy=True) as b:
            revision = revision_of()
            await b.load(revision)
            revision.retired = True
            b.is_busy = False
            await asyncio.sleep(2 * LOOK_EVERY_S)
            assert b.jobs == []


class TestGivingWay:
    @virtual
    async def test_it_waits_while_proofs_are_made(self, cache: CopyCache) -> None:
        async with running(cache, is_busy=True) as b:
            await b.load(revision_of())
            await asyncio.sleep(100.0)
            assert b.jobs == []
            b.is_busy = False
            await asyncio.sleep(2 * LOOK_EVERY_S)
            assert len(b.jobs) == 1

    @virtual
    async def test_a_load_gets_its_memory_at_once_and_the_copy_is_made_later(self, cache: CopyCache) -> None:
        async with running(cache, answer=lambda _: None) as b:
            assert not b.room.give_way()
            await b.load(revision_of())
            assert b.is_running()
            assert b.room.give_way()
            await settle()
            assert (b.is_running(), b.ledger.used_bytes) == (False, 0)
            b.answer = lambda _: MADE
            await asyncio.sleep(3 * LINGER_S)
            assert (len(b.jobs), b.counts.made, b.counts.failures) == (2, 1, 0)

    @pytest.mark.parametrize(("used_later", "evicted"), [(False, [1]), (True, [])])
    @virtual
    async def test_only_what_was_not_used_since_the_load_may_go(
        self, cache: CopyCache, used_later: bool, evicted: list[int]
    ) -> None:
        async with running(cache) as b:
            b.ledger.reserve(1, "other", Figures(BUDGET_BYTES - 1000))
            b.ledger.loaded(1, 0.0, load_s=0.1)
            b.ledger.lease(1, 1.0)
            b.ledger.release(1, 1.0)
            await b.load(revision_of())
            if used_later:
                now = asyncio.get_running_loop().time() + 1.0
                b.ledger.lease(1, now)
                b.ledger.release(1, now)
            await asyncio.sleep(PATIENCE_S / 2)
            assert b.loaded.evicted == []
            await asyncio.sleep(PATIENCE_S)
            assert b.loaded.evicted == evicted
            assert len(b.jobs) == len(evicted)

    @virtual
    async def test_a_budget_that_is_too_small(self, cache: CopyCache) -> None:
        async with running(cache, budget_bytes=1 << 20) as b:
            await b.load(revision_of())
            await asyncio.sleep(DAY_S)
            assert b.jobs == []


class TestUsing:
    @virtual
    async def test_a_copy_that_fails_is_given_up(self, cache: CopyCache) -> None:
        revision = revision_of()
        async with running(cache) as b:
            assert await b.copies.find(revision) is None
            for fault in range(MAX_FAULTS):
                keep(cache, revision)
                b.copies.failed(revision, await found(b, revision), lost=False)
                assert cache.find(copy_key("m", "onnxruntime", {})) is None, "it is there no more"
                assert b.counts.failures == fault + 1
            keep(cache, revision)
            assert await b.copies.find(revision) is None
            await b.load(revision)
            assert b.jobs == []

    @virtual
    async def test_a_lost_worker_may_have_had_another_reason(self, cache: CopyCache) -> None:
        revision = revision_of()
        keep(cache, revision)
        async with running(cache) as b:
            for _ in range(MAX_FAULTS):
                b.copies.failed(revision, await found(b, revision), lost=True)
            assert await b.copies.find(revision) is None

    @virtual
    async def test_loads_from_copies_are_counted_and_order_nothing(self, cache: CopyCache) -> None:
        revision = revision_of()
        keep(cache, revision)
        async with running(cache) as b:
            b.copies.loaded(revision, SLOW_S, await found(b, revision))
            await settle()
            assert (b.jobs, b.counts.loads) == ([], 1)


class TestChecking:
    @virtual
    async def test_copies_are_verified_at_the_start_and_damaged_ones_retired(self, cache: CopyCache) -> None:
        good, bad, _ = (keep(cache, revision_of(name)) for name in ("a", "b", "c"))
        for key in (good, bad):
            (cache.folder / key / "checked").unlink()
        async with running(cache, answer=lambda job: {"result": {"whole": job["key"] == good}}) as b:
            assert {job["key"] for job in b.jobs} == {good, bad}
            assert {job["job"] for job in b.jobs} == {"check_copy"}
            assert (b.loaded.retired, b.counts.damaged) == ([bad], 1)
            assert b.counts.bytes > 0
            assert not b.is_running()

    @virtual
    async def test_what_was_loading_when_the_damage_was_found_is_retired_as_well(self, cache: CopyCache) -> None:
        revision = revision_of()
        key = keep(cache, revision)
        (cache.folder / key / "checked").unlink()
        async with running(cache, answer=lambda _: {"result": {"whole": False}}, before=revision) as b:
            assert b.loaded.retired == [key]
            assert b.found is not None
            b.copies.loaded(revision, SLOW_S, b.found)
            await settle()
            assert b.loaded.retired == [key, key]
            await b.copies.find(revision)
            b.copies.loaded(revision, SLOW_S, b.found)
            await settle()
            assert b.loaded.retired == [key, key], "that was another one"

    @pytest.mark.parametrize("answer", [{"error": "not enough memory"}, {"result": {"reason": "no descriptors"}}])
    @virtual
    async def test_what_can_not_be_verified_is_not_damaged(self, cache: CopyCache, answer: Any) -> None:
        (cache.folder / keep(cache, revision_of()) / "checked").unlink()
        async with running(cache, answer=lambda _: answer) as b:
            assert (b.loaded.retired, b.counts.damaged) == ([], 0)


@virtual
async def test_what_was_being_made_at_the_end_is_removed(cache: CopyCache) -> None:
    left = cache.folder / f"making-{KEY}"

    def begin(_: Job) -> None:
        left.mkdir()

    async with running(cache, answer=begin) as b:
        await b.load(revision_of())
        assert left.is_dir()
    assert not left.exists()

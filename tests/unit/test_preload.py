"""What was in use before the start is loaded again, in nobody's place; and how it is known what was in use."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from roost.core.errors import Internal, ResourceExhausted
from roost.core.names import DEFAULT_NAMESPACE, VersionKey
from roost.core.tasks import in_background
from roost.router.learned import Learned
from roost.router.preload import KEPT_S, MISFITS, PAUSE_S, WORKING_SET_S, Preload
from roost.router.recency import VERSIONS_AT_A_TIME, WRITE_EVERY_S, Recency
from roost.router.stats import Stats

from tests.memory_store import MemoryStore
from tests.unit.mesh_fakes import Bed, Farm, InlineExecutor, bed
from tests.virtual_time import settle, virtual

HOUR_S = 3600.0


def key_of(name: str) -> VersionKey:
    return VersionKey(DEFAULT_NAMESPACE, name, "1")


def preload_of(on: Bed, ages_s: dict[str, float], store: MemoryStore | None = None) -> Preload:
    """A preload that knows how long ago models were used last."""
    now, learned = time.time(), Learned(store or MemoryStore())
    learned.put_last_uses({key_of(name): now - age_s for name, age_s in ages_s.items()})
    return Preload(learned, on.catalog, on.mesh.loader, on.ledger, InlineExecutor(), lambda: on.mesh.busy)


@virtual
async def test_what_was_used_last_is_loaded_first_as_far_as_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with bed(100) as on:
        for name, size in (("never", 5), ("a", 40), ("b", 40), ("c", 40), ("d", 10)):
            on.model(name, size)
        preload = preload_of(on, {"d": 4 * HOUR_S, "c": 3 * HOUR_S, "a": HOUR_S, "b": 2 * HOUR_S})
        await preload.run()
        assert on.farm.loads_done == ["a", "b", "d"]
        assert (preload.loaded, preload.too_large, preload.failed) == (3, 1, 0)
        assert "loaded 3 models again" in caplog.text


@virtual
async def test_what_it_has_loaded_goes_least_recently_used_first_and_before_what_was_used_since() -> None:
    async with bed(100) as on:
        models = {name: on.model(name, 25) for name in ("used", "a", "b", "c", "d", "e")}
        await on.make_resident(models["used"])
        await preload_of(on, {"c": 3 * HOUR_S, "a": HOUR_S, "b": 2 * HOUR_S}).run()
        assert on.farm.models() == ["a", "b", "c", "used"]
        with pytest.raises(ResourceExhausted):  # a look at a model that was never used takes nobody's place
            await on.mesh.loader.bring(models["d"], claim=False, older_than=-math.inf)
        await on.make_resident(models["d"])
        assert on.farm.models() == ["a", "b", "d", "used"]
        await on.make_resident(models["a"], models["e"])
        assert on.farm.models() == ["a", "d", "e", "used"]


@virtual
async def test_nothing_is_evicted_for_it() -> None:
    async with bed(100) as on:
        used, unused, big = on.model("used", 40), on.model("unused", 30), on.model("big", 50)
        await on.make_resident(used)
        await on.mesh.loader.bring(unused, claim=False)
        preload = preload_of(on, {"big": 1.0})
        await preload.run()
        assert on.farm.models() == ["unused", "used"]
        assert (preload.loaded, preload.too_large) == (0, 1)
        assert not big.instances


@virtual
async def test_only_the_working_set_is_loaded() -> None:
    async with bed(100) as on:
        for name in ("a", "b", "old"):
            on.model(name, 10)
        down_s = 10 * WORKING_SET_S  # the server was not running for long: what was in use still is what was in use
        store = MemoryStore()
        ages_s = {"a": down_s, "b": down_s + WORKING_SET_S / 2, "old": down_s + WORKING_SET_S + 60.0}
        await preload_of(on, ages_s, store).run()
        assert on.farm.loads_done == ["a", "b"]


@virtual
async def test_models_that_are_gone_are_forgotten() -> None:
    async with bed(100) as on:
        on.model("a", 10)
        store = MemoryStore()
        preload = preload_of(on, {"gone": 1.0, "a": 2.0, "old": KEPT_S - HOUR_S, "ancient": KEPT_S + HOUR_S}, store)
        await preload.run()
        assert on.farm.loads_done == ["a"]
        assert [key for key, _ in Learned(store).last_uses()] == [key_of("a"), key_of("old")]
        assert preload.failed == 0


@virtual
async def test_a_model_that_fails_stops_no_other() -> None:
    async with bed(100) as on:
        broken, fine = on.model("broken", 10), on.model("fine", 10)
        on.farm.on_call = Farm.loads_held
        preload = preload_of(on, {"broken": 1.0, "fine": 2.0})
        async with in_background(preload.run()):
            await settle()
            on.call(broken).fail(Internal("broken"))
            await settle()
            on.call(fine).succeed()
            await settle()
        assert (preload.loaded, preload.failed) == (1, 1)
        assert fine.resident()


@virtual
async def test_after_many_that_do_not_fit_no_more_are_looked_at() -> None:
    async with bed(100) as on:
        on.model("first", 60)
        for number in range(MISFITS):
            on.model(f"large-{number}", 50)
        on.model("small", 10)
        names = ["first", *(f"large-{number}" for number in range(MISFITS)), "small"]
        await preload_of(on, {name: float(age) for age, name in enumerate(names)}).run()
        assert on.farm.loads_done == ["first"]


@virtual
async def test_it_gives_way_while_there_are_requests() -> None:
    async with bed(100) as on:
        served, a, b = on.model("served", 10), on.model("a", 10), on.model("b", 10)
        await on.make_resident(served)
        on.submit(served)
        async with in_background(preload_of(on, {"a": 1.0, "b": 2.0}).run()):
            await settle()
            assert not a.instances
            on.submit(b)  # a request for what would be loaded later is not kept waiting
            await settle()
            assert b.resident()
            assert not a.instances
            await asyncio.sleep(1.5 * PAUSE_S)
            assert a.resident()
            for _ in on.sent:
                on.answer_all()
                await settle()
        assert on.farm.loads_done == ["served", "b", "a"]


@pytest.mark.parametrize("broken", ["fails", "is empty"])
@virtual
async def test_without_a_store_nothing_is_loaded(broken: str) -> None:
    async with bed(100) as on:
        on.model("a", 10)
        store = MemoryStore()
        preload = preload_of(on, {"a": 1.0} if broken == "fails" else {}, store)
        store.failing = broken == "fails"
        await preload.run()
        assert on.farm.loads_done == []


@asynccontextmanager
async def recency(store: MemoryStore, stats: Stats) -> AsyncIterator[Recency]:
    made = Recency(Learned(store), stats, InlineExecutor())
    async with in_background(made.run()):
        await settle()
        yield made


def use(stats: Stats, *names: str) -> None:
    for place, name in enumerate(names):
        stats.of(name, "1").last_at = time.time() + place * 1e-6  # two looks at the clock may say the same


def used(store: MemoryStore) -> list[str]:
    return [key.name for key, _ in Learned(store).last_uses()]


@virtual
async def test_uses_are_written_together_every_few_seconds_and_at_the_end() -> None:
    store, stats = MemoryStore(), Stats()
    stats.of("never", "1")
    stats.of("", "").last_at = time.time()  # what was asked of models that do not exist
    async with recency(store, stats):
        use(stats, "a")
        assert used(store) == []
        await asyncio.sleep(WRITE_EVERY_S + 0.1)
        assert used(store) == ["a"]
        with_a = store.scan("")
        use(stats, "b")
        await asyncio.sleep(WRITE_EVERY_S)
        assert used(store) == ["b", "a"]
        assert store.scan("").items() >= with_a.items(), "what has not changed is not written again"
        use(stats, "a", "c")
    assert used(store) == ["c", "a", "b"]


@virtual
async def test_uses_that_could_not_be_written_are_written_later() -> None:
    store, stats = MemoryStore(), Stats()
    async with recency(store, stats):
        use(stats, "a")
        store.failing = True
        await asyncio.sleep(WRITE_EVERY_S + 0.1)
        store.failing = False
        await asyncio.sleep(WRITE_EVERY_S)
        assert used(store) == ["a"]


@virtual
async def test_very_many_versions_are_looked_at_in_turns() -> None:
    store, stats = MemoryStore(), Stats()
    use(stats, *(str(number) for number in range(2 * VERSIONS_AT_A_TIME + 1)))
    made = Recency(Learned(store), stats, InlineExecutor())
    await made.write()
    assert len(used(store)) == 2 * VERSIONS_AT_A_TIME + 1

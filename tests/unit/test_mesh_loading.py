"""Which load goes first, what it may take, who waits for it and for how long: the mesh on fake workers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, cast

import pytest
from roost.core.errors import Cancelled, InvalidArgument, Limit, ResourceExhausted, RoostError
from roost.core.frames import FrameType
from roost.registry_client.digest import Artifact
from roost.registry_client.model_config import ModelDescription
from roost.router.instances import CANCEL_TIMEOUT_S
from roost.router.link import LinkLost
from roost.router.loads import LoadPriority
from roost.router.states import InstanceState

from tests.unit.mesh_fakes import Bed, Call, FakeFolder, Farm, Sent, bed, worker_of
from tests.virtual_time import settle, virtual

pytestmark = pytest.mark.filterwarnings("error")
CRASH = 1


async def outcome_of(awaited: Awaitable[object]) -> RoostError | None:
    try:
        await awaited
    except RoostError as error:
        return error
    return None


def cancellable(call: Call) -> None:
    """A worker whose loads end when they are cancelled, and not before a second has passed."""

    def look() -> None:
        if call.future.done():
            return
        if call.cancelled:
            call.fail(Cancelled("the load was cancelled"))
        elif asyncio.get_running_loop().time() >= done_at:
            call.succeed()
        else:
            asyncio.get_running_loop().call_later(0.01, look)

    done_at = asyncio.get_running_loop().time() + (1.0 if call.type is FrameType.LOAD else 0.0)
    asyncio.get_running_loop().call_soon(look)


async def answer(on: Bed, *sent: Sent) -> None:
    """Answers runs until these are answered."""
    for one in sent:
        while not one.future.done():
            await settle()
            on.answer_all()
    await settle()


# Which goes first


@virtual
async def test_requests_overtake_all_loads_that_have_not_begun() -> None:
    async with bed(1000, load_concurrency=1) as on:
        on.farm.on_call = Farm.held
        background = [on.model(f"b{i}", 10) for i in range(20)]
        for model in background:
            on.mesh.loader.add_copy(model, priority=LoadPriority.BACKGROUND)
        await settle()
        fresh = on.model("fresh", 10)
        sent = [on.submit(fresh), on.submit(background[-1])]
        await settle()
        on.farm.on_call = Farm.soon
        for call in list(on.farm.calls):
            call.succeed()
        await answer(on, *sent)
        assert on.farm.loads_done[:3] == ["b0", "b19", "fresh"]
        assert on.farm.loads_done[3:] == [f"b{i}" for i in range(1, 19)]


@virtual
async def test_the_order_of_priorities() -> None:
    async with bed(1000, load_concurrency=1) as on:
        on.farm.on_call = Farm.loads_held
        first = on.model("first", 10)
        on.mesh.loader.add_copy(first)
        await settle()
        for priority in reversed(LoadPriority):
            on.mesh.loader.add_copy(on.model(priority.name, 10), priority=priority)
            on.mesh.loader.add_copy(on.model(f"{priority.name} too", 10), priority=priority)
        await settle()
        on.farm.on_call = Farm.soon
        on.call(first).succeed()
        await asyncio.sleep(1)
        expected = [name for priority in LoadPriority for name in (priority.name, f"{priority.name} too")]
        assert on.farm.loads_done == ["first", *expected]


@virtual
async def test_models_that_are_worth_more_are_loaded_first_but_no_other_waits_for_ever() -> None:
    async with bed(1000, load_concurrency=1) as on:
        on.farm.on_call = Farm.after(1.0)

        def load(name: str, priority: int) -> None:
            model = on.model(name, 1)
            policy = replace(model.description.policy, priority=priority)
            model.description = replace(model.description, policy=policy)
            on.mesh.loader.add_copy(model)

        for name, priority in (("first", 0), ("low", -1), ("normal", 0), ("high", 1)):
            load(name, priority)
            await settle()
        flood = [f"flood{number}" for number in range(20)]
        for name in flood:  # twice as many as can be loaded
            load(name, 1000)
            await asyncio.sleep(0.5)
        await asyncio.sleep(20)
        expected = ["first", *flood[:5], "high", *flood[5:10], "normal", *flood[10:15], "low", *flood[15:]]
        assert on.farm.loads_done == expected


@virtual
async def test_one_turn_is_left_for_what_somebody_waits_for() -> None:
    async with bed(1000, load_concurrency=3) as on:
        on.farm.on_call = Farm.held
        for i in range(5):
            on.mesh.loader.add_copy(on.model(f"b{i}", 10), priority=LoadPriority.PRELOAD)
        await settle()
        assert len(on.farm.calls) == 2
        sent = on.submit(on.model("a", 10))
        await settle()
        assert [call.model for call in on.farm.calls] == ["b0", "b1", "a"]
        on.farm.on_call = Farm.soon
        for call in list(on.farm.calls):
            call.succeed()
        await answer(on, sent)


@virtual
async def test_memory_that_a_less_urgent_load_only_waits_with_is_a_requests() -> None:
    async with bed(100, load_concurrency=1) as on:
        used = on.model("used", 40)
        await on.make_resident(used)
        on.farm.on_call = Farm.loads_held
        begun, waits = on.model("begun", 20), on.model("waits", 40)
        for model in (begun, waits):
            on.mesh.loader.add_copy(model)
        await settle()
        assert on.ledger.used_bytes == 100
        sent = on.submit(on.model("a", 40))
        await settle()
        on.farm.on_call = Farm.soon
        on.call(begun).succeed()
        await answer(on, sent)
        assert on.farm.models() == ["a", "begun", "used"], "nothing was evicted for it"
        assert waits.load is None


@virtual
async def test_no_more_is_evicted_ahead_than_can_soon_be_loaded() -> None:
    async with bed(100, load_concurrency=1) as on:
        old = [on.model(f"old{i}", 10) for i in range(10)]
        await on.make_resident(*old)
        on.farm.on_call = Farm.loads_held
        sent = [on.submit(on.model(f"new{i}", 10)) for i in range(10)]
        await settle()
        assert len(on.farm.models()) == 8
        on.farm.on_call = Farm.soon
        for call in list(on.farm.calls):
            call.succeed()
        await answer(on, *sent)


# Copies


@virtual
async def test_copies_come_and_go_beside_requests() -> None:
    async with bed(100, workers=2, slots=1) as on:
        a = on.model("a", 30)
        await on.make_resident(a)
        assert await on.mesh.loader.add_copy(a) is None
        assert len({instance.worker for instance in a.instances}) == 2
        sent = [on.submit(a) for _ in range(2)]
        await settle()
        assert len(on.farm.jobs) == 2
        busy = a.instances[0]
        on.mesh.loader.drop_copy(busy)
        assert busy.state is InstanceState.DRAINING
        on.mesh.loader.drop_copy(busy)
        await answer(on, *sent)
        assert on.farm.models() == ["a"]
        on.mesh.loader.drop_copy(*a.instances)
        await settle()
        assert on.farm.models() == []


@virtual
async def test_a_copy_that_can_not_be_loaded_harms_nobody() -> None:
    async with bed(100, workers=2) as on:
        a = on.model("a", 30)
        await on.make_resident(a)
        running, waiting = on.submit(a), on.submit(a)
        await settle()
        on.farm.on_call = lambda call: call.fail(InvalidArgument("no"))
        assert isinstance(await on.mesh.loader.add_copy(a), InvalidArgument)
        assert a.failure is None
        assert not waiting.future.done()
        on.farm.on_call = Farm.soon
        await answer(on, running, waiting)


@virtual
async def test_a_copy_takes_nothing_from_those_who_used_it_since() -> None:
    async with bed(100, workers=2) as on:
        a, b = on.model("a", 60), on.model("b", 40)
        await on.make_resident(a, b)
        error = await on.mesh.loader.add_copy(b)
        assert isinstance(error, ResourceExhausted)
        assert "another instance of model 'b'" in error.message
        assert await on.mesh.loader.add_copy(b, older_than=asyncio.get_running_loop().time() + 1) is None
        assert on.farm.models() == ["b", "b"]


@virtual
async def test_a_request_is_not_refused_with_what_was_to_be_loaded_in_nobodys_place() -> None:
    for turns in range(12):  # of the event loop, at each of which the request may come
        async with bed(10) as on:
            a, b = on.model("a", 6), on.model("b", 6)
            await on.make_resident(a)
            on.mesh.loader.ensure(b, priority=LoadPriority.BACKGROUND, older_than=-math.inf, kept=True)
            for _ in range(turns):
                await asyncio.sleep(0)
            sent = on.submit(b)
            await answer(on, sent)
            assert sent.future.exception() is None, turns


@virtual
async def test_a_copy_that_is_retired_while_it_waits_or_loads_does_not_come() -> None:
    async with bed(1000, load_concurrency=1) as on:
        on.farm.on_call = cancellable
        first, second = on.model("first", 10), on.model("second", 10)
        loads = [on.mesh.loader.add_copy(model) for model in (first, second)]
        await asyncio.sleep(0.1)
        for model in (second, first):
            on.mesh.retire(model)
        await asyncio.sleep(0.1)
        assert [isinstance(load.result(), Cancelled) for load in loads] == [True, True]
        assert on.farm.loads_done == []


# Given up


@virtual
async def test_a_load_that_nobody_waits_for_is_given_up_once_it_is_in_the_way() -> None:
    async with bed(100) as on:
        on.farm.on_call = cancellable
        a, b = on.model("a", 100), on.model("b", 100)
        gone = on.submit(a)
        await asyncio.sleep(0.2)
        gone.cancel()
        await asyncio.sleep(0.2)
        assert not on.call(a).cancelled, "nobody minds"
        sent = on.submit(b)
        await asyncio.sleep(0.2)
        assert a.load is None
        on.farm.answer_runs_after(0.01)
        await sent.future
        assert on.farm.loads_done == ["b"]


@virtual
async def test_a_load_is_given_up_once_and_then_finished() -> None:
    async with bed(100) as on:
        on.farm.on_call = cancellable
        on.farm.answer_runs_after(0.01)
        slow, other = on.model("slow", 100), on.model("other", 100)
        for _ in range(2):
            hasty = on.submit(slow, timeout_s=0.3)
            await asyncio.sleep(0.1)
            sent = on.submit(other)
            assert isinstance(await outcome_of(hasty.future), RoostError)
            await sent.future
            on.mesh.loader.drop_copy(*other.instances)
            await settle()
        assert on.farm.loads_done == ["other", "slow", "other"]


@virtual
async def test_a_load_that_takes_too_long_is_given_up_and_its_worker_stays() -> None:
    async with bed(load_timeout_s=5.0) as on:
        a, patient = on.model("a", 10), on.model("patient", 10)
        policy = replace(patient.description.policy, load_timeout_s=20.0)
        patient.description = replace(patient.description, policy=policy)
        on.farm.on_call = lambda call: None
        asked = {model: on.submit(model) for model in (a, patient)}
        await asyncio.sleep(5.1)
        assert on.call(a).cancelled
        on.call(a).fail(Cancelled("the load was cancelled"))
        error = await outcome_of(asked[a].future)
        assert error is not None
        assert "it did not load within 5 s" in error.message
        await asyncio.sleep(10)
        assert not on.call(patient).cancelled
        on.farm.on_call = Farm.soon
        on.call(patient).succeed()
        await answer(on, asked[patient])
        assert on.mesh.workers[0].epoch == 1


@virtual
async def test_a_load_that_can_not_be_interrupted_costs_its_worker_a_little_later() -> None:
    async with bed(load_timeout_s=5.0) as on:
        a = on.model("a", 10)
        on.farm.on_call = Farm.held
        sent = on.submit(a)
        await asyncio.sleep(5.0 + CANCEL_TIMEOUT_S / 2)
        assert on.mesh.workers[0].epoch == 1
        error = await outcome_of(sent.future)
        assert error is not None
        assert "it did not load within 5 s" in error.message
        await asyncio.sleep(1)
        assert on.mesh.workers[0].epoch == 2


# Waits that would be too long


@virtual
async def test_a_request_is_refused_at_once_if_the_load_takes_longer_than_it_may_wait() -> None:
    async with bed(100) as on:
        on.farm.on_call = Farm.after(3.0)
        on.farm.answer_runs_after(0.01)
        a, b = on.model("a", 100), on.model("b", 100)
        await on.infer(a)  # nothing is known of it yet
        await on.infer(b)
        sent = on.submit(a, timeout_s=1.0)
        await settle()
        error = await outcome_of(sent.future)
        assert isinstance(error, ResourceExhausted)
        assert error.limit is Limit.LOAD_WAIT
        assert error.retry_after_s == pytest.approx(3.0, abs=0.1)
        await asyncio.sleep(3.0 + 3.1)  # the unload takes as long
        assert on.farm.models() == ["a"], "it was loaded all the same, or it never would be"
        await on.infer(a, timeout_s=0.1)


@virtual
async def test_nobody_is_refused_who_may_wait_long_enough() -> None:
    async with bed(100) as on:
        on.farm.on_call = Farm.after(1.0)
        on.farm.answer_runs_after(0.01)
        models = [on.model(name, 100) for name in "abc"]
        for _ in range(2):
            await asyncio.gather(*(on.infer(model, timeout_s=20.0) for model in models))


@virtual
async def test_a_flood_of_cold_models_is_bounded_by_deadlines() -> None:
    async with bed(1000, load_concurrency=1) as on:
        on.farm.on_call = Farm.after(0.1)
        on.farm.answer_runs_after(0.01)
        await on.infer(on.model("first", 1))
        flood = [on.submit(on.model(f"m{i}", 1), timeout_s=2.0) for i in range(100)]
        await settle()
        refused = [sent for sent in flood if sent.future.done()]
        assert 70 < len(refused) < 90, "those that can't be loaded in time, and at once"
        errors = [await outcome_of(sent.future) for sent in flood]
        assert {error.limit for error in errors if error is not None} <= {Limit.LOAD_WAIT, Limit.DEADLINE}
        assert errors.count(None) >= 18
        await asyncio.sleep(10)
        assert len(on.farm.loads_done) <= 2 + errors.count(None), "what expires in the line is not loaded"


@virtual
async def test_a_budget_full_of_busy_models_refuses_those_who_can_not_wait_for_their_protection_to_end() -> None:
    async with bed(100, slots=4) as on:
        busy, cold = on.model("busy", 100), on.model("cold", 100)
        await on.make_resident(busy)
        running = on.submit(busy)
        await settle()
        hasty = on.submit(cold, timeout_s=0.5)
        look = on.group.create_task(outcome_of(on.mesh.loader.bring(on.model("new", 10), deadline=0.0)))
        error = await outcome_of(hasty.future)
        assert isinstance(error, ResourceExhausted)
        assert error.retry_after_s == pytest.approx(1.0, abs=0.01)
        assert isinstance(await look, ResourceExhausted)
        patient = on.submit(cold, timeout_s=5.0)
        await asyncio.sleep(1.1)
        await answer(on, running, patient)
        assert on.farm.models() == ["cold"]


@virtual
async def test_a_deadline_counts_for_those_alone_who_have_it() -> None:
    async with bed(100) as on:
        on.farm.on_call = Farm.after(1.0)
        on.farm.answer_runs_after(0.01)
        a, b = on.model("a", 100), on.model("b", 100)
        await on.infer(a)
        await on.infer(b)
        hasty, patient = on.submit(a, timeout_s=0.5), on.submit(a, timeout_s=math.inf)
        await settle()
        assert isinstance(await outcome_of(hasty.future), ResourceExhausted)
        assert await outcome_of(patient.future) is None


# Places


@virtual
async def test_a_load_waits_for_a_worker_without_taking_a_turn_or_memory() -> None:
    async with bed(100, load_concurrency=1) as on:
        a = on.model("a", 10)
        on.farm.may_start = False
        on.farm.processes[0].end(CRASH)
        await asyncio.sleep(1)
        sent = on.submit(a)
        await asyncio.sleep(1)
        assert on.ledger.used_bytes == 0
        on.farm.may_start = True
        await asyncio.sleep(10)
        await answer(on, sent)
        assert worker_of(a).up


class _Watched(FakeFolder):
    """Counts how often its files are looked at."""

    looks = 0

    def artifact(self, version: str, description: ModelDescription, cache: object) -> Artifact:
        self.looks += 1
        return super().artifact(version, description, cache)


@virtual
async def test_files_that_a_request_had_looked_at_are_not_looked_at_again_for_its_load() -> None:
    async with bed() as on:
        model = on.model("a", 10)
        folder = _Watched("a")
        model.folder = cast(Any, folder)
        await on.mesh.loader.bring(model)
        assert folder.looks == 1
        on.mesh.loader.evict(model.instances[0])
        await settle()
        await on.catalog.prepare(model)
        await on.mesh.loader.bring(model)
        assert folder.looks == 2
        on.mesh.loader.evict(model.instances[0])
        await settle()
        await asyncio.sleep(1.0)
        await on.mesh.loader.bring(model)
        assert folder.looks == 3


@virtual
async def test_a_load_that_finds_its_workers_link_closing_waits_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def closing(*_: object, **__: object) -> None:
        raise LinkLost("the worker is gone")

    async with bed() as on:
        (process,) = on.farm.processes
        monkeypatch.setattr(process.link, "call", closing)
        sent = on.submit(on.model("a", 1))
        await settle()
        assert not sent.future.done()
        process.end(CRASH)
        await asyncio.sleep(10)
        await answer(on, sent)
        assert sent.future.result().outputs

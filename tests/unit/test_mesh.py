"""Requests, loads, evictions and lost workers: the mesh on fake workers, in virtual time."""

from __future__ import annotations

import asyncio
import math
import signal
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import pytest
from roost.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RoostError,
    Unavailable,
)
from roost.core.frames import FrameType
from roost.core.requests import InferRequest, RequestContext
from roost.core.tensors import Signature, TensorSpec
from roost.router.creating import MOST_LOSSES
from roost.router.failures import ARTIFACT_TRIES
from roost.router.losses import QUARANTINE_CRASHES
from roost.router.states import Availability, InstanceState

from tests.unit.mesh_fakes import Bed, Call, Farm, bed, worker_of
from tests.virtual_time import settle, virtual

CRASH = 1
pytestmark = pytest.mark.filterwarnings("error")


async def outcome_of(awaited: Awaitable[object]) -> RoostError | None:
    try:
        await awaited
    except RoostError as error:
        return error
    return None


def availability_of(on: Bed, name: str) -> Availability:
    model = on.catalog.present(name)
    assert model is not None
    return model.versions["1"].availability


# Loads


@virtual
async def test_a_hundred_requests_at_once_make_one_load() -> None:
    async with bed(slots=4) as on:
        a = on.model("a", 10)
        on.farm.answer_runs_after(0.01)
        answers = await asyncio.gather(*(on.infer(a) for _ in range(100)))
        assert len(answers) == 100
        assert on.farm.loads_done == ["a"]
        stats = on.stats.of("a", "1")
        assert (stats.loads, stats.executions, stats.load_failures) == (1, 100, 0)


@virtual
async def test_answers_carry_what_was_sent() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        pendings = [on.submit(a, data=bytes([i]) * 3) for i in range(5)]
        for i, pending in enumerate(pendings):
            await settle()
            on.answer_all()
            (output,) = (await pending.future).outputs
            assert bytes(output.data) == bytes([i]) * 3


@virtual
async def test_a_caller_that_goes_during_the_load_takes_nobody_with_it() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        on.farm.on_call = Farm.held
        async with asyncio.TaskGroup() as group:
            first, second = (group.create_task(on.infer(a)) for _ in range(2))
            await settle()
            first.cancel()
            await settle()
            on.call(a).succeed()
            await settle()
            on.answer_all()
        assert first.cancelled()
        assert second.result().model_version == "1"


@virtual
async def test_a_load_that_nobody_waits_for_any_more_is_finished_and_kept() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        on.farm.on_call = Farm.held
        pending = on.submit(a)
        await settle()
        pending.cancel()
        on.call(a).succeed()
        await settle()
        assert on.farm.models() == ["a"]
        assert not on.farm.jobs


@virtual
async def test_a_load_in_the_line_that_nobody_wants_any_more_evicts_nothing() -> None:
    async with bed() as on:
        a, b = on.model("a", 100), on.model("b", 100)
        await on.make_resident(a)
        running = on.submit(a)
        waiting = on.submit(b)
        await settle()
        waiting.cancel()
        await settle()
        assert b.load is None
        await asyncio.sleep(100)
        on.answer_all()
        await running.future
        await settle()
        assert on.farm.models() == ["a"]


@virtual
async def test_bring_waits_for_the_load_that_a_request_began_and_survives_its_end() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        on.farm.on_call = Farm.held
        pending = on.submit(a)
        async with asyncio.TaskGroup() as group:
            group.create_task(on.mesh.loader.bring(a))
            await settle()
            pending.cancel()
            on.call(a).succeed()
        assert a.resident()
        await on.mesh.loader.bring(a)
        assert on.farm.loads_done == ["a"]


@virtual
async def test_a_failed_load_fails_all_who_wait_and_is_remembered() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        on.farm.on_call = Farm.loads_held
        pendings = [on.submit(a) for _ in range(5)]
        await settle()
        on.call(a).fail(InvalidArgument("the file is garbage"))
        for pending in pendings:
            error = await outcome_of(pending.future)
            assert isinstance(error, Unavailable)
            assert "model 'a' version 1 is not at ready state: the file is garbage" in error.message
            assert error.retry_after_s == pytest.approx(1.0, abs=0.01)
        assert availability_of(on, "a") is Availability.UNAVAILABLE
        with pytest.raises(Unavailable, match="garbage"):
            await on.mesh.loader.check(a)
        await asyncio.sleep(1.0)
        await on.mesh.loader.check(a)
        on.farm.on_call = Farm.soon
        await on.mesh.loader.bring(a)
        assert a.failure is None
        assert availability_of(on, "a") is Availability.READY
        assert on.stats.of("a", "1").load_failures == 1


@virtual
async def test_a_broken_file_is_tried_three_times_until_it_changes() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        on.farm.on_call = lambda call: call.fail(InvalidArgument("garbage")) if call.model == "a" else Farm.soon(call)
        for _ in range(ARTIFACT_TRIES):
            with pytest.raises(Unavailable):
                await on.mesh.loader.bring(a)
            await asyncio.sleep(100)
        assert on.stats.of("a", "1").load_failures == ARTIFACT_TRIES
        on.farm.on_call = Farm.soon
        with pytest.raises(Unavailable, match="garbage"):
            await on.mesh.loader.bring(a)
        a.folder.generation = 2  # type: ignore[attr-defined]
        await asyncio.sleep(2)
        await on.mesh.loader.bring(a)
        assert a.resident()


@virtual
async def test_a_model_whose_signature_contradicts_its_configuration_is_unloaded_again() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        a.description.config.input.add(name="other", data_type=6, dims=[1])
        error = await outcome_of(on.submit(a).future)
        assert error is not None
        assert "other" in error.message
        await settle()
        assert on.farm.models() == []
        assert on.ledger.used_bytes == 0


@virtual
async def test_a_load_without_end_is_given_up_and_its_worker_replaced() -> None:
    async with bed(load_timeout_s=5.0) as on:
        a, b = on.model("a", 10), on.model("b", 10)
        await on.make_resident(b)
        on.farm.on_call = Farm.loads_held
        error = await outcome_of(on.submit(a).future)
        assert error is not None
        assert "it did not load within 5 s" in error.message
        assert a.crashes == 0, "we ended it, it did not crash"
        on.farm.on_call = Farm.soon
        await asyncio.sleep(1)
        assert on.mesh.workers[0].epoch == 2
        await on.make_resident(b)


@virtual
async def test_no_more_loads_at_once_than_allowed() -> None:
    async with bed(load_concurrency=2) as on:
        models = [on.model(name, 10) for name in "abcd"]
        on.farm.on_call = Farm.held
        pendings = [on.submit(model) for model in models]
        for _ in range(2):
            await settle()
            assert len(on.farm.calls) == 2
            for call in list(on.farm.calls):
                call.succeed()
        for pending in pendings:
            await settle()
            on.answer_all()
            await pending.future


@virtual
async def test_what_the_runtime_says_is_learned_once() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.mesh.loader.bring(a)
        assert a.contract is not None
        assert a.contract.signature == on.farm.signature
        on.farm.signature = Signature((), (TensorSpec("z", "FP32", ()),))
        b = on.model("a", 10)  # the same files, as after a restart
        on.revisions.remove(a)
        on.mesh.retire(a)
        await on.catalog.prepare(b)
        assert b.contract is not None
        assert b.contract.signature == a.contract.signature


# Queues and deadlines


@virtual
async def test_one_of_those_that_wait_is_cancelled_and_the_others_are_answered() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(on.infer(a)) for _ in range(4)]
            await settle()
            tasks[2].cancel()
            for _ in range(3):
                await settle()
                on.answer_all()
        assert [task.cancelled() for task in tasks] == [False, False, True, False]
        assert on.stats.of("a", "1").executions == 4


@virtual
async def test_a_running_request_that_is_cancelled_tells_the_worker_and_keeps_its_slot_until_it_ends() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        first, second = on.submit(a), on.submit(a)
        await settle()
        first.cancel()
        job = on.job(a)
        assert job.cancelled
        await settle()
        assert on.farm.jobs == [job]
        job.answer()  # it was too late for the model to stop
        on.answer_all()
        await second.future
        assert first.future.cancelled()
        first.cancel()
        second.cancel()


@virtual
async def test_first_come_first_served_and_models_take_turns_for_a_slot() -> None:
    async with bed() as on:
        a, b = on.model("a", 10), on.model("b", 10)
        await on.make_resident(a, b)
        for model in (a, a, a, b, b):
            on.submit(model)
        order = []
        for _ in range(5):
            await settle()
            (job,) = on.farm.jobs
            order.append(job.model)
            job.answer()
        assert order == ["a", "a", "b", "a", "b"]


@virtual
@pytest.mark.parametrize("slots", [1, 3])
async def test_never_more_runs_than_slots(slots: int) -> None:
    async with bed(slots=slots) as on:
        models = [on.model(name, 10) for name in "ab"]
        on.farm.answer_runs_after(0.1)
        await asyncio.gather(*(on.infer(model) for model in models for _ in range(10)))


@virtual
async def test_the_deadline_comes_while_it_waits_loads_or_runs() -> None:
    async with bed() as on:
        a, b = on.model("a", 10), on.model("b", 10)
        await on.make_resident(a)
        on.farm.on_call = Farm.loads_held
        running = on.submit(a, timeout_s=3.0)
        await settle()
        waiting, loading = on.submit(a, timeout_s=1.0), on.submit(b, timeout_s=2.0)
        errors = [await outcome_of(pending.future) for pending in (waiting, loading, running)]
        assert all(isinstance(error, DeadlineExceeded) for error in errors)
        wheres = [error.message.split("while ")[1] for error in errors if error is not None]
        assert wheres == ["it waited", "its model was loading", "it was running"]
        assert on.job(a).cancelled
        assert on.mesh.queues.requests == 0
        on.answer_all()
        on.call(b).succeed()


@virtual
async def test_a_request_that_comes_too_late_costs_nothing() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        for timeout_s in (0.0, -1.0):
            with pytest.raises(DeadlineExceeded):
                on.submit(a, timeout_s=timeout_s)
        assert a.load is None


@virtual
async def test_a_full_queue_refuses_by_count_and_others_are_not_touched() -> None:
    async with bed(max_queue=2) as on:
        a, b = on.model("a", 10), on.model("b", 10)
        await on.make_resident(a, b)
        pendings = [on.submit(a) for _ in range(3)]
        with pytest.raises(ResourceExhausted, match=r"Exceeds maximum queue size: 2 .* 'a'") as caught:
            on.submit(a)
        assert caught.value.retry_after_s is not None
        pendings.append(on.submit(b))
        for _ in pendings:
            await settle()
            on.answer_all()


@virtual
async def test_a_full_queue_refuses_by_bytes_over_all_models() -> None:
    async with bed(max_queued_bytes=100) as on:
        a, b = on.model("a", 10), on.model("b", 10)
        await on.make_resident(a, b)
        pendings = [on.submit(a), on.submit(a, data=bytes(60))]
        with pytest.raises(ResourceExhausted):
            on.submit(b, data=bytes(41))
        pendings.append(on.submit(b, data=bytes(40)))
        assert on.mesh.queues.bytes == 100
        for _ in pendings:
            await settle()
            on.answer_all()


@virtual
async def test_a_request_without_inputs() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        pending = on.send(a, InferRequest("a", "", RequestContext(0.0), []))
        await settle()
        on.answer_all()
        assert (await pending.future).outputs == []


@virtual
async def test_a_run_that_fails_fails_its_request_alone() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        pendings = [on.submit(a) for _ in range(3)]
        await settle()
        on.job(a).fail(InvalidArgument("bad rows"))
        error = await outcome_of(pendings[0].future)
        assert isinstance(error, InvalidArgument)
        for _ in range(2):
            await settle()
            on.answer_all()
        assert [await outcome_of(p.future) for p in pendings[1:]] == [None, None]


# Memory


@virtual
async def test_the_least_recently_used_goes() -> None:
    async with bed(100) as on:
        a, b, c = (on.model(name, 50) for name in "abc")
        await on.make_resident(a, b, a, c)
        assert on.farm.models() == ["a", "c"]
        assert on.stats.of("b", "1").evictions == 1


@virtual
async def test_a_model_larger_than_the_budget_is_refused_and_nothing_goes() -> None:
    async with bed(100) as on:
        a, b = on.model("a", 100), on.model("b", 101)
        await on.make_resident(a)
        error = await outcome_of(on.submit(b).future)
        assert isinstance(error, ResourceExhausted)
        assert "101 B" in error.message
        assert "100 B" in error.message
        assert on.farm.models() == ["a"]
        assert b.failure is None, "the budget may grow"


@virtual
async def test_a_pinned_model_stays() -> None:
    async with bed(100) as on:
        pinned, b, c = on.model("pinned", 60, pin=True), on.model("b", 40), on.model("c", 40)
        await on.make_resident(pinned, b, c)
        assert on.farm.models() == ["c", "pinned"]
        assert isinstance(await outcome_of(on.submit(on.model("d", 41)).future), ResourceExhausted)


@virtual
async def test_a_pinned_model_comes_back_after_its_worker_was_lost() -> None:
    async with bed(100) as on:
        pinned = on.model("pinned", 60, pin=True)
        await on.make_resident(pinned)
        on.process_of(pinned).end(CRASH)
        await on.make_resident(pinned)


@virtual
async def test_a_busy_victim_is_drained_after_its_protection_and_its_requests_follow_it_back() -> None:
    async with bed(100) as on:
        a, b = on.model("a", 100), on.model("b", 100)
        await on.make_resident(a)
        on.submit(a)
        wanting = on.submit(b)
        on.submit(a)
        await asyncio.sleep(0.9)
        assert [i.state for i in a.instances] == [InstanceState.READY]
        await asyncio.sleep(0.2)
        assert [i.state for i in a.instances] == [InstanceState.DRAINING]
        on.job(a).answer()
        await settle()
        assert on.farm.models() == ["b"], "no new lease on what drains"
        on.job(b).answer()
        await wanting.future
        await asyncio.sleep(2)
        on.job(a).answer()


@virtual
async def test_two_hot_models_on_a_budget_for_one_both_make_progress() -> None:
    async with bed(100, slots=2) as on:
        on.farm.answer_runs_after(0.01)
        on.farm.on_call = Farm.after(0.1)
        answered: Counter[str] = Counter()

        async def client(name: str) -> None:
            revision = next(r for r in on.revisions if r.key.name == name)
            while not stop.is_set():
                await on.infer(revision)
                answered[name] += 1

        for name in "ab":
            on.model(name, 100)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for name in "aaabbb":
                group.create_task(client(name))
            await asyncio.sleep(60)
            stop.set()
        assert min(answered.values()) > 0.3 * sum(answered.values())
        assert 20 < len(on.farm.loads_done) < 120


@virtual
async def test_loads_take_their_turn_in_the_line() -> None:
    async with bed(100) as on:
        a = on.model("a", 100)
        await on.make_resident(a)
        on.submit(a)
        await settle()
        models = [on.model(name, size) for name, size in (("large", 90), ("small", 5), ("tiny", 5))]
        for model in models:
            on.submit(model)
        await asyncio.sleep(2)
        assert on.farm.loads_done == ["a"], "a small one does not overtake a large one, which might wait for ever"
        on.answer_all()
        await settle()
        assert on.farm.loads_done == ["a", "large", "small", "tiny"]
        for _ in models:
            on.answer_all()
            await settle()


@virtual
async def test_a_reservation_holds_while_the_load_waits_for_its_turn() -> None:
    async with bed(100, load_concurrency=1) as on:
        a, b, c = (on.model(name, 50) for name in "abc")
        on.farm.on_call = Farm.held
        for model in (a, b, c):
            on.submit(model)
        await settle()
        assert on.ledger.reserved_bytes == 100
        assert len(on.farm.calls) == 1
        on.farm.on_call = Farm.soon
        on.call(a).succeed()
        for _ in range(3):
            await asyncio.sleep(2)
            on.answer_all()


@virtual
async def test_a_look_at_a_model_evicts_nothing_that_was_used() -> None:
    async with bed(100) as on:
        a, b = on.model("a", 60), on.model("b", 60)
        await on.make_resident(a)
        with pytest.raises(ResourceExhausted, match=r"config\.pbtxt"):
            await on.mesh.loader.bring(b, claim=False, older_than=-math.inf)
        assert on.farm.models() == ["a"]


@virtual
async def test_looks_at_many_models_take_each_others_place() -> None:
    async with bed(100) as on:
        models = [on.model(f"m{i}", 60) for i in range(8)]
        on.farm.on_call = Farm.after(0.1)
        await asyncio.gather(*(on.mesh.loader.bring(m, claim=False, older_than=-math.inf) for m in models))
        assert all((model.contract or model.former) is not None for model in models)
        assert len(on.farm.models()) == 1


@virtual
async def test_a_request_does_not_share_the_fate_of_a_look_at_its_model() -> None:
    async with bed(100) as on:
        a, b = on.model("a", 60), on.model("b", 60)
        on.farm.on_call = Farm.held
        used = on.submit(a)
        async with asyncio.TaskGroup() as group:
            await settle()
            look = group.create_task(on.mesh.loader.bring(b, claim=False, older_than=-math.inf))
            await settle()
            asked = on.submit(b)
            on.farm.on_call = Farm.soon
            on.call(a).succeed()
            await settle()
            on.answer_all()
            await used.future
            await settle()
            on.answer_all()
            await asked.future
        assert look.done()
        assert on.farm.models() == ["b"]


@virtual
async def test_a_request_goes_before_looks_in_the_line() -> None:
    async with bed(100) as on:
        a, b, c = (on.model(name, 100) for name in "abc")
        on.farm.on_call = Farm.loads_held
        used = on.submit(a)
        async with asyncio.TaskGroup() as group:
            await settle()
            look = group.create_task(outcome_of(on.mesh.loader.bring(b, claim=False, older_than=-math.inf)))
            await settle()
            asked = on.submit(c)
            await settle()
            on.farm.on_call = Farm.soon
            on.call(a).succeed()
            await settle()
            on.answer_all()
            await used.future
            await settle()
            on.answer_all()
            await asked.future
        assert isinstance(look.result(), ResourceExhausted)
        assert on.farm.loads_done == ["a", "c"]


@virtual
async def test_an_unload_that_fails_or_never_ends_costs_the_worker() -> None:
    async with bed(100) as on:
        a, b = on.model("a", 100), on.model("b", 100)
        for answer in (lambda call: call.fail(Internal("no")), Farm.held):
            await on.make_resident(a)
            epoch = worker_of(a).epoch

            def on_call(call: Call, answer: object = answer) -> None:
                if call.type is FrameType.UNLOAD and callable(answer):
                    answer(call)
                else:
                    Farm.soon(call)

            on.farm.on_call = on_call
            pending = on.submit(b)
            await asyncio.sleep(100)
            on.farm.on_call = Farm.soon
            on.answer_all()
            await pending.future
            assert worker_of(b).epoch == epoch + 1


@virtual
async def test_a_load_that_is_undone_without_end_costs_the_worker() -> None:
    async with bed(100) as on:
        a, b = on.model("a", 100), on.model("b", 100)
        a.description.config.input.add(name="other", data_type=6, dims=[1])
        on.farm.on_call = lambda call: Farm.held(call) if call.type is FrameType.UNLOAD else Farm.soon(call)
        error = await outcome_of(on.submit(a).future)
        assert error is not None
        assert "other" in error.message
        pending = on.submit(b)
        await asyncio.sleep(1)
        on.answer_all()
        await pending.future
        assert worker_of(b).epoch == 2


# Retired revisions


@virtual
async def test_a_retired_revision_goes_at_once_if_it_is_idle() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        on.mesh.retire(a)
        await settle()
        assert on.farm.models() == []


@virtual
async def test_a_retired_revision_answers_what_it_has_accepted() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        pendings = [on.submit(a) for _ in range(3)]
        on.mesh.retire(a)
        for pending in pendings:
            await settle()
            on.answer_all()
            await pending.future
        await settle()
        assert on.farm.models() == []


@virtual
@pytest.mark.parametrize("through", ["request", "load call"])
async def test_a_revision_that_is_retired_while_it_loads_does_not_stay(through: str) -> None:
    async with bed() as on:
        a = on.model("a", 10)
        on.farm.on_call = Farm.loads_held
        async with asyncio.TaskGroup() as group:
            if through == "request":
                on.submit(a)
            else:
                group.create_task(on.mesh.loader.bring(a))
            await settle()
            on.mesh.retire(a)
            on.call(a).succeed()
        await settle()
        on.answer_all()
        await settle()
        assert on.farm.models() == []


@virtual
async def test_a_load_that_was_given_up_takes_no_turn() -> None:
    async with bed(load_concurrency=1) as on:
        on.farm.on_call = Farm.loads_held
        a, b, c = (on.model(name, 10) for name in "abc")
        calls = [asyncio.create_task(on.mesh.loader.bring(model)) for model in (a, b, c)]
        await settle()
        calls[1].cancel()
        on.mesh.retire(b)
        await settle()
        on.call(a).succeed()
        await settle()
        on.call(c).succeed()
        await calls[2]
        assert on.farm.loads_done == ["a", "c"]


# Lost workers


@virtual
async def test_what_ran_is_answered_and_what_had_not_begun_is_retried_first_and_in_order() -> None:
    async with bed(slots=3) as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        pendings = [on.submit(a, data=bytes([i])) for i in range(5)]
        await settle()
        on.job(a, 1).start()
        on.process_of(a).end(CRASH)
        error = await outcome_of(pendings[1].future)
        assert isinstance(error, Unavailable)
        assert not pendings[0].future.done()
        await asyncio.sleep(1)
        assert [bytes(job.run.inputs[0].data) for job in on.farm.jobs] == [b"\0", b"\2", b"\3"]  # type: ignore[arg-type]
        on.answer_all()
        await settle()
        on.answer_all()
        assert [await outcome_of(p.future) is None for p in pendings] == [True, False, True, True, True]
        assert on.farm.loads_done == ["a", "a"]


@virtual
async def test_a_worker_that_answers_nothing_is_ended_and_replaced() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        pending = on.submit(a)
        await settle()
        on.process_of(a).hung.set()
        await asyncio.sleep(1)
        assert on.mesh.workers[0].epoch == 2
        on.answer_all()
        assert await outcome_of(pending.future) is None, "it had not begun"


@virtual
async def test_a_worker_that_loads_may_be_silent() -> None:
    async with bed() as on:
        a, b = on.model("a", 10), on.model("b", 10)
        await on.make_resident(a)
        on.farm.on_call = Farm.loads_held
        pending = on.submit(b)
        await settle()
        on.process_of(a).hung.set()
        await asyncio.sleep(1)
        assert on.mesh.workers[0].epoch == 1
        on.farm.on_call = Farm.soon
        for call in list(on.farm.calls):
            call.succeed()
        await settle()
        on.answer_all()
        assert await outcome_of(pending.future) is None


@virtual
async def test_it_is_retried_once() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        pending = on.submit(a)
        for _ in range(2):
            await asyncio.sleep(1)
            on.process_of(a).end(CRASH)
        assert isinstance(await outcome_of(pending.future), Unavailable)


@virtual
async def test_another_worker_takes_over_at_once() -> None:
    async with bed(workers=2) as on:
        a, b = on.model("a", 10), on.model("b", 10)
        await on.make_resident(a, b)
        assert worker_of(a) is not worker_of(b)
        on.farm.may_start = False
        pending = on.submit(a)
        on.process_of(a).end(CRASH)
        await settle()
        assert worker_of(a) is worker_of(b)
        on.answer_all()
        await pending.future
        on.farm.may_start = True
        await asyncio.sleep(20)


@virtual
async def test_a_load_whose_worker_is_lost_is_tried_again() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        on.farm.on_call = Farm.loads_held
        first = on.submit(a)
        await settle()
        on.farm.processes[0].end(CRASH)
        await asyncio.sleep(1)
        on.call(a).succeed()
        await settle()
        on.answer_all()
        await first.future
        on.process_of(a).end(CRASH)
        second = on.submit(a)
        for _ in range(MOST_LOSSES):
            await asyncio.sleep(2)
            on.farm.processes[0].end(CRASH)
        error = await outcome_of(second.future)
        assert isinstance(error, Unavailable)
        assert "lost while loading" in error.message or "in quarantine" in error.message


@virtual
async def test_a_worker_that_is_lost_between_the_reply_and_the_end_of_the_load() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        on.farm.on_call = Farm.loads_held
        pending = on.submit(a)
        await settle()
        call = on.call(a)
        on.farm.on_call = Farm.soon
        call.succeed()
        call.process.end(CRASH)  # before the task that waits for the reply has its turn
        await asyncio.sleep(1)
        on.answer_all()
        await pending.future
        assert on.farm.loads_done == ["a", "a"]


@virtual
async def test_the_memory_of_a_lost_worker_is_taken_until_it_has_ended() -> None:
    """A process that lost its link may take a while to end; what it holds must be neither used nor evicted."""
    async with bed(100, workers=2) as on:
        a, b, c = on.model("a", 50), on.model("b", 50), on.model("c", 60)
        await on.make_resident(a, b)
        on.farm.may_start = False
        on.farm.death_takes_s = 0.5
        on.process_of(a).lose_link()
        pending = on.submit(c)
        await asyncio.sleep(0.4)
        assert on.ledger.used_bytes == 50, "b made room, a is still there"
        assert on.farm.loads_done == ["a", "b"]
        await asyncio.sleep(0.4)
        on.answer_all()
        await pending.future
        assert "c" in on.farm.models()
        on.farm.may_start = True
        await asyncio.sleep(20)


@virtual
async def test_a_lost_worker_takes_unloads_and_drains_with_it() -> None:
    async with bed(100) as on:
        a, b = on.model("a", 100), on.model("b", 100)
        await on.make_resident(a)
        on.farm.on_call = Farm.held
        pending = on.submit(b)
        await settle()
        on.farm.on_call = Farm.soon
        (call,) = on.farm.calls
        assert call.type is FrameType.UNLOAD
        call.process.end(CRASH)
        await asyncio.sleep(1)
        on.answer_all()
        await pending.future


@virtual
async def test_expired_and_cancelled_runs_of_a_lost_worker_are_not_sent_again() -> None:
    async with bed(slots=2) as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        expired, cancelled = on.submit(a, timeout_s=1.0), on.submit(a)
        await asyncio.sleep(2)
        cancelled.cancel()
        on.process_of(a).end(CRASH)
        await asyncio.sleep(2)
        assert not on.farm.jobs
        assert isinstance(await outcome_of(expired.future), DeadlineExceeded)


@virtual
async def test_a_worker_that_can_not_be_started_is_tried_again() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        on.farm.may_start = False
        on.process_of(a).end(CRASH)
        await asyncio.sleep(5)
        assert not on.mesh.ready
        pending = on.submit(a)
        on.farm.may_start = True
        await asyncio.sleep(10)
        on.answer_all()
        await pending.future


@virtual
async def test_a_model_that_ends_three_workers_is_put_in_quarantine_with_all_that_wait_for_it() -> None:
    async with bed() as on:
        bad, good = on.model("bad", 10), on.model("good", 10)
        pendings = [on.submit(bad) for _ in range(10)]
        for _ in range(QUARANTINE_CRASHES):
            await asyncio.sleep(20)
            on.job(bad).start()
            on.process_of(bad).end(-signal.SIGSEGV)
        errors = [await outcome_of(pending.future) for pending in pendings]
        assert all(isinstance(error, Unavailable) for error in errors)
        assert "quarantine" in str(errors[-1])
        await asyncio.sleep(100)
        with pytest.raises(Unavailable, match="quarantine"):
            await on.mesh.loader.check(bad)
        assert availability_of(on, "bad") is Availability.UNAVAILABLE
        assert on.mesh.workers[0].restarts == QUARANTINE_CRASHES
        await on.make_resident(good)


@virtual
async def test_a_load_that_ends_workers_is_put_in_quarantine_and_stays_there() -> None:
    async with bed(workers=2) as on:
        bad = on.model("bad", 10)
        on.farm.on_call = lambda call: call.process.end_soon(CRASH)
        while bad.crashes < QUARANTINE_CRASHES:
            await outcome_of(on.submit(bad).future)
            await asyncio.sleep(100)
        with pytest.raises(Unavailable, match="quarantine"):
            await on.mesh.loader.check(bad)
        bad.folder.generation = 2  # type: ignore[attr-defined]
        on.farm.on_call = Farm.soon
        await asyncio.sleep(2)
        await on.mesh.loader.bring(bad)
        assert bad.crashes == 0


@virtual
async def test_an_operators_kill_and_an_answer_in_between_are_no_crashes_in_a_row() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        for _ in range(2 * QUARANTINE_CRASHES):
            await on.make_resident(a)
            on.submit(a)
            await settle()
            on.job(a).start()
            on.process_of(a).end(-signal.SIGKILL)
            await asyncio.sleep(20)
        assert a.crashes == 0
        for _ in range(2 * QUARANTINE_CRASHES):
            await on.make_resident(a)
            on.submit(a)
            await settle()
            on.job(a).start()
            on.process_of(a).end(CRASH)
            await asyncio.sleep(20)
        assert a.failure is None


@virtual
async def test_a_model_that_only_lay_on_a_worker_that_ended_is_no_suspect() -> None:
    async with bed() as on:
        a, b = on.model("a", 10), on.model("b", 10)
        for _ in range(QUARANTINE_CRASHES + 1):
            await on.make_resident(a, b)
            on.submit(a)
            await settle()
            on.process_of(b).end(CRASH)
            await asyncio.sleep(20)
            on.answer_all()
        assert (a.crashes, b.crashes) == (0, 0)


# Start and stop


async def begin(**changes: Any) -> None:
    async with bed(**changes):
        pass


@virtual
async def test_start_fails_if_the_workers_do_not_come_up() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await begin(may_start=False)
    assert caught.group_contains(Unavailable, match="do not start")


@virtual
async def test_stop_waits_for_a_process_that_is_ending_already() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        on.farm.death_takes_s = 0.5
        on.process_of(a).end(CRASH)
        await settle()
        await on.mesh.stop()
        assert on.ledger.used_bytes == 0


@virtual
async def test_stop_answers_all_that_is_left() -> None:
    left: list[Awaitable[object]] = []
    async with bed(100) as on:
        a, b, c = (on.model(name, 60) for name in "abc")
        await on.make_resident(a)
        on.farm.on_call = Farm.held
        left += [on.submit(model).future for model in (a, a, b, c)]
        waiter = on.group.create_task(outcome_of(on.mesh.loader.bring(c)))
        await settle()
        just_asked = on.submit(on.model("d", 1))
        await on.mesh.stop()
        assert isinstance(await waiter, Unavailable)
        assert all([isinstance(await outcome_of(future), Unavailable) for future in left])
        assert isinstance(await outcome_of(just_asked.future), Unavailable)
        after = on.submit(b)
        assert isinstance(await outcome_of(after.future), Unavailable)
        on.revisions.clear()

"""Copies follow what comes, on fake workers and in virtual time: loaded, spread, used and taken out again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from roost.core.errors import FailedPrecondition, Internal, RoostError
from roost.core.requests import InferRequest, InferResponse, RequestContext
from roost.core.tasks import in_background
from roost.core.tensors import Tensor
from roost.registry_client.policy import ModelPolicy
from roost.router.copies import CALM_S, PERIOD_S
from roost.router.copy_counts import CopyReason
from roost.router.intake import Intake
from roost.router.least import LeastCopies
from roost.router.revision import Revision
from roost.router.scaling import RETRY_S, Scaling
from roost.router.spares import SCARCE, Spares
from roost.router.steady import MINUTE_S, MINUTES

from tests.unit.mesh_fakes import Bed, Farm, InlineExecutor, bed
from tests.virtual_time import settle, virtual

RUN_S = 0.1


@asynccontextmanager
async def scaled(
    budget: int = 100, *, workers: int = 4, labels: Iterable[dict[str, str]] = (), **how: Any
) -> AsyncIterator[Bed]:
    """A mesh whose copies are scaled, and whose runs take as long as they say."""
    async with bed(budget, workers=workers, worker_labels=tuple(labels), **how) as on:
        on.farm.run_ns = int(RUN_S * 1e9)
        on.farm.answer_runs_after(RUN_S)
        least, spares = LeastCopies(on.catalog, InlineExecutor()), Spares(on.mesh.workers, on.ledger)
        async with in_background(Scaling(on.mesh, on.ledger, least, spares, on.stats.copies).run()):
            yield on


def model_of(on: Bed, name: str, size: int = 10, **policy: Any) -> Revision:
    """A model whose owner asks for something."""
    made = on.model(name, size)
    made.description = replace(made.description, policy=ModelPolicy(memory_bytes=size, **policy))
    if policy.get("min_copies"):
        model = on.catalog.present(name)
        assert model is not None
        model.description = made.description
        on.catalog.least.add(name)
    return made


def send(on: Bed, revision: Revision, outcomes: list[InferResponse | RoostError], timeout_s: float = math.inf) -> None:
    """Sends a request that is counted, as those of clients are."""
    now = time.monotonic()
    context = RequestContext(now, now + timeout_s, served_by=revision.served_by)
    request = InferRequest(revision.key.name, "", context, [Tensor("x", "UINT8", (4,), b"1234")])
    intake = revision.intake or Intake(on.farm.signature, 0, batches=False)
    on.mesh.submit(revision, request, outcomes.append, intake.measure(request), recorded=True)


async def traffic(on: Bed, revision: Revision, rate: float, seconds: float) -> list[InferResponse | RoostError]:
    """Sends so many requests a second for some time; what became of those that have ended by then."""
    outcomes: list[InferResponse | RoostError] = []
    for _ in range(int(rate * seconds)):
        send(on, revision, outcomes)
        await asyncio.sleep(1 / rate)
    return outcomes


def places(revision: Revision) -> list[int]:
    """The workers that have a copy."""
    return sorted(instance.worker.id for instance in revision.instances)


@virtual
async def test_copies_follow_the_rate_within_seconds_and_fall_back_one_by_one() -> None:
    async with scaled() as on:
        a = model_of(on, "a")
        await traffic(on, a, 5, 20.0)
        assert places(a) == [0], "half of what one can do is no reason for another"
        await traffic(on, a, 25, 3.0)
        assert places(a) == [0, 1, 2, 3], "two and a half times of it are"
        await asyncio.sleep(CALM_S / 2)
        assert len(places(a)) == 4
        seen = []
        for _ in range(4):
            await asyncio.sleep(CALM_S)
            seen.append(len(places(a)))
        assert seen == [3, 2, 1, 1]
        counts = on.stats.copies
        assert (counts.added[CopyReason.LOAD], counts.dropped, counts.failed) == (3, 3, 0)


@virtual
async def test_requests_that_wait_are_answered_by_the_new_copy_and_their_wait_is_for_a_slot() -> None:
    async with scaled(workers=2) as on:
        a = model_of(on, "a")
        outcomes = await traffic(on, a, 19, 10.0)
        await asyncio.sleep(10)
        assert len(outcomes) == 190
        assert all(isinstance(outcome, InferResponse) for outcome in outcomes)
        assert places(a) == [0, 1]
        counted = on.stats.of("a", "1")
        assert counted.loads == 2
        assert counted.load_wait_s < 0.01


@virtual
async def test_never_more_than_the_owner_wants_nor_than_there_are_workers_with_time() -> None:
    async with scaled() as on:
        a, b = model_of(on, "a", max_copies=2), model_of(on, "b")
        async with asyncio.TaskGroup() as group:
            for revision in (a, b):
                group.create_task(traffic(on, revision, 40, 20.0))
        assert len(places(a)) == 2
        assert len(places(b)) <= 4
        await asyncio.sleep(200)


@virtual
async def test_a_burst_adds_nothing_and_neither_does_one_worker() -> None:
    async with scaled() as on:
        a = model_of(on, "a")
        for _ in range(10):
            await traffic(on, a, 1000, 0.004)
            await asyncio.sleep(5)
        assert places(a) == [0]
    async with scaled(workers=1) as on:
        a = model_of(on, "a")
        await traffic(on, a, 20, 10.0)
        assert places(a) == [0]
        await asyncio.sleep(20)


@virtual
async def test_the_least_number_is_there_without_a_request_comes_back_and_is_never_evicted() -> None:
    async with scaled(60, workers=3) as on:
        a, b = model_of(on, "a", 10, min_copies=2), model_of(on, "b", 40)
        await asyncio.sleep(2 * PERIOD_S)
        assert places(a) == [0, 1]
        await on.infer(b)
        lost = on.process_of(a)
        lost.end(1)
        await asyncio.sleep(2)
        assert len(set(places(a))) == 2
        c = model_of(on, "c", 40)
        for _ in range(5):
            for revision in (b, c):
                await on.infer(revision)
        assert len(places(a)) == 2
        assert on.stats.copies.lacking == 0
        await traffic(on, a, 50, 5.0)
        await asyncio.sleep(10 * CALM_S)
        assert len(places(a)) == 2, "no more than the least are left, and no less"


@virtual
async def test_more_copies_at_least_than_workers_are_spread_as_far_as_they_go() -> None:
    async with scaled(workers=2) as on:
        a = model_of(on, "a", min_copies=3)
        await asyncio.sleep(5 * PERIOD_S)
        assert places(a) == [0, 0, 1]


@virtual
async def test_what_can_not_all_fit_is_said_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with scaled(100, workers=2) as on:
        a, b = model_of(on, "a", 60, min_copies=2), model_of(on, "b", 40)
        await on.infer(b)
        await asyncio.sleep(3)
        assert len(places(a)) == 1
        assert on.stats.copies.lacking == 1
        await on.infer(b)
        await on.infer(a)
        assert len([record for record in caplog.records if "gets no other copy" in record.message]) == 1


@virtual
async def test_a_copy_that_can_not_be_loaded_fails_no_request_and_is_tried_again_later() -> None:
    async with scaled(workers=2) as on:
        a = model_of(on, "a")
        await traffic(on, a, 1, 1.0)
        on.farm.on_call = lambda call: (
            call.fail(Internal("no")) if call.process is on.farm.processes[1] else call.succeed()
        )
        outcomes = await traffic(on, a, 15, RETRY_S)
        assert (on.stats.copies.failed, places(a), a.failure) == (1, [0], None)
        on.farm.on_call = Farm.soon
        outcomes += await traffic(on, a, 15, RETRY_S)
        assert places(a) == [0, 1]
        assert not [outcome for outcome in outcomes if isinstance(outcome, RoostError)]
        await asyncio.sleep(100)


@virtual
async def test_files_that_have_changed_are_not_loaded_beside_what_is_loaded() -> None:
    async with scaled(workers=2) as on:
        a = model_of(on, "a")
        await traffic(on, a, 1, 1.0)
        a.folder.generation = 2  # type: ignore[attr-defined]
        await traffic(on, a, 15, 3.0)
        assert places(a) == [0]
        assert a.artifact is not None
        assert a.artifact.digest == "a-1"
        await asyncio.sleep(100)


@virtual
async def test_labels_say_where_copies_are_and_one_that_nobody_has_is_named() -> None:
    labels = ({"zone": "a"}, {"disk": "ssd"}, {"disk": "ssd", "zone": "a"})
    async with scaled(workers=3, labels=labels) as on:
        fast = model_of(on, "fast", required_labels={"disk": "ssd"}, preferred_labels={"zone": "a"})
        nowhere = model_of(on, "nowhere", required_labels={"disk": "tape"})
        await traffic(on, fast, 1, 1.0)
        assert places(fast) == [2]
        await traffic(on, fast, 40, 5.0)
        assert places(fast) == [1, 2]
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="labels 'disk=tape', and there is none"):
                await on.infer(nowhere)
        assert nowhere.failure is None
        await asyncio.sleep(100)


@virtual
async def test_what_is_used_all_the_time_gets_a_spare_copy_while_memory_is_plenty() -> None:
    async with scaled(1000, workers=2) as on:
        steady, burst, only = model_of(on, "steady"), model_of(on, "burst"), model_of(on, "only", max_copies=1)
        await traffic(on, burst, 5, 60.0)
        for _ in range(MINUTES * 6 + 6):
            await on.infer(steady)
            await on.infer(only)
            await asyncio.sleep(MINUTE_S / 6)
        assert [len(places(revision)) for revision in (steady, burst, only)] == [2, 1, 1]
        assert on.stats.copies.added[CopyReason.SPARE] == 1
        big = model_of(on, "big", int(1000 * SCARCE))
        for _ in range(6):
            for revision in (big, steady):
                await on.infer(revision)
            await asyncio.sleep(MINUTE_S / 6)
        assert len(places(steady)) == 1, "it goes when memory is scarce"


@virtual
async def test_a_batch_goes_where_it_has_to_wait_least() -> None:
    async with bed(workers=2, slots=2) as on:
        a, b = on.model("a", 10, batch=4), on.model("b", 10)
        await on.make_resident(a)
        assert await on.mesh.loader.add_copy(a) is None
        await on.make_resident(b)
        first, second = (instance.worker for instance in a.instances)
        (busy,) = b.instances
        idle = second if busy.worker is first else first
        slow = on.submit(b)
        await settle()
        for _ in range(3):
            quick = on.submit(a)
            await settle()
            assert on.job(a).process.pid == idle.pid
            on.job(a).answer()
            await quick.future
        await asyncio.sleep(10)  # what was sent to the other worker is long overdue: it may hang
        running, waiting = on.submit(a), on.submit(a)
        await settle()
        assert [job.process.pid for job in on.farm.jobs if job.model == "a"] == [idle.pid]
        on.job(a).answer()
        await settle()
        on.job(a).answer()
        await asyncio.gather(running.future, waiting.future)
        on.answer_all()
        await slow.future


@virtual
async def test_least_copies_that_do_not_all_fit_have_one_another_never_evicted() -> None:
    async with scaled(100, workers=2) as on:
        models = [model_of(on, f"m{number}", 20, min_copies=2) for number in range(4)]
        await asyncio.sleep(60)
        assert len(on.farm.loads_done) == 5
        assert sum(len(places(model)) for model in models) == 5
        assert sum(on.stats.of(model.key.name, "1").evictions for model in models) == 0
        assert on.stats.copies.lacking == 3

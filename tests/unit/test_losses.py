"""What a lost worker had: what runs again and what does not, and what comes back without being asked for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import pytest
from roost.core.errors import RoostError, Unavailable
from roost.router.losses import QUARANTINE_CRASHES
from roost.router.revision import Revision

from tests.unit.mesh_fakes import Bed, FakeProcess, Farm, bed
from tests.virtual_time import settle, virtual

pytestmark = pytest.mark.filterwarnings("error")


async def outcome_of(awaited: Awaitable[object]) -> RoostError | None:
    try:
        await awaited
    except RoostError as error:
        return error
    return None


def stateless(on: Bed, name: str, size: int = 10, **config: object) -> Revision:
    revision = on.model(name, size, **config)  # type: ignore[arg-type]
    revision.stateless = True
    return revision


def be_killed(process: FakeProcess) -> None:
    process.end(-signal.SIGKILL)


def run_out_of_memory(process: FakeProcess) -> None:
    process.out_of_memory = True
    process.end(-signal.SIGKILL)


def crash(process: FakeProcess) -> None:
    process.end(-signal.SIGSEGV)


def end_beside_a_copy(process: FakeProcess) -> None:
    process.end(-signal.SIGSEGV, keeps_link=True)


def hang(process: FakeProcess) -> None:
    process.hung.set()


def be_stopped(process: FakeProcess) -> None:
    process.stop_seen.set()


End = Callable[[FakeProcess], None]


@pytest.mark.parametrize(
    ("end", "is_stateless", "runs_again"),
    [
        (be_killed, True, True),
        (be_stopped, True, True),
        (be_killed, False, False),
        (crash, True, False),
        (end_beside_a_copy, True, False),
        (hang, True, False),
        (run_out_of_memory, True, False),
    ],
)
def test_what_had_begun_runs_again_if_that_harms_nobody(end: End, is_stateless: bool, runs_again: bool) -> None:
    @virtual
    async def scene() -> None:
        async with bed(slots=2) as on:
            a = on.model("a", 10, batch=4)
            a.stateless = is_stateless
            await on.make_resident(a)
            sent = [on.submit(a, data=data) for data in (b"1", b"2")]
            await settle()
            on.job(a).start()
            end(on.process_of(a))
            await asyncio.sleep(2)
            if runs_again:
                (job,) = on.farm.jobs
                assert job.data == b"12"
            on.answer_all()
            outcomes = [await outcome_of(each.future) for each in sent]
            assert outcomes == [None, None] if runs_again else all(isinstance(o, Unavailable) for o in outcomes)

    scene()


@virtual
async def test_it_runs_again_once() -> None:
    async with bed() as on:
        a = stateless(on, "a")
        await on.make_resident(a)
        sent = on.submit(a)
        for _ in range(2):
            await asyncio.sleep(5)
            on.job(a).start()
            be_killed(on.process_of(a))
        assert isinstance(await outcome_of(sent.future), Unavailable)


@virtual
async def test_it_waits_until_the_process_has_ended_but_not_longer_than_its_client() -> None:
    async with bed(slots=2) as on:
        a = stateless(on, "a")
        await on.make_resident(a)
        on.farm.death_takes_s = 0.5
        kept, left = on.submit(a), on.submit(a)
        await settle()
        for job in on.farm.jobs:
            job.start()
        be_killed(on.process_of(a))
        await asyncio.sleep(0.1)
        left.cancel()
        assert not kept.future.done()
        await asyncio.sleep(1)
        (job,) = on.farm.jobs
        job.answer()
        assert await outcome_of(kept.future) is None


@virtual
async def test_an_end_for_want_of_memory_counts_against_what_ran() -> None:
    async with bed() as on:
        a = stateless(on, "a")
        for _ in range(QUARANTINE_CRASHES):
            await on.make_resident(a)
            a.crashes, crashes = QUARANTINE_CRASHES - 1, a.crashes
            assert crashes == 0, "an answer in between"
            sent = on.submit(a)
            await settle()
            on.job(a).start()
            run_out_of_memory(on.process_of(a))
            assert isinstance(await outcome_of(sent.future), Unavailable)
            assert a.failure is not None
            a.failure, a.crashes = None, 0
            await asyncio.sleep(100)


@virtual
async def test_the_last_strike_is_one_that_nobody_else_can_be_blamed_for() -> None:
    async with bed(slots=2) as on:
        bad, good = stateless(on, "bad"), stateless(on, "good")
        for strike in range(QUARANTINE_CRASHES):
            await on.make_resident(*(model for model in (bad, good) if not model.resident()))
            bad.crashes = good.crashes = strike
            sent = [on.submit(model) for model in (bad, good)]
            await settle()
            for job in on.farm.jobs:
                job.start()
            crash(on.process_of(bad))
            assert all([isinstance(await outcome_of(each.future), Unavailable) for each in sent])
            await asyncio.sleep(20)
            assert (bad.crashes, good.crashes) == (min(strike + 1, QUARANTINE_CRASHES - 1),) * 2
        await on.make_resident(bad)
        bad.crashes = QUARANTINE_CRASHES - 1
        alone = on.submit(bad)
        await settle()
        on.job(bad).start()
        crash(on.process_of(bad))
        assert isinstance(await outcome_of(alone.future), Unavailable)
        await settle()
        assert bad.failure is not None
        assert bad.failure.final
        assert good.failure is None


@virtual
async def test_that_no_worker_comes_is_not_held_against_a_model() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        await on.make_resident(a)
        on.farm.may_start = False
        crash(on.process_of(a))
        assert isinstance(await outcome_of(on.submit(a).future), Unavailable)
        assert a.failure is None
        on.farm.may_start = True
        await asyncio.sleep(20)
        await on.make_resident(a)


# What comes back


@virtual
async def test_what_was_resident_comes_back_by_itself_in_the_order_of_its_last_use() -> None:
    async with bed() as on:
        models = [on.model(name, 10) for name in "abcd"]
        for model in (*models, models[1]):
            await on.make_resident(model)
            await asyncio.sleep(1)
        on.farm.loads_done.clear()
        be_killed(on.process_of(models[0]))
        await asyncio.sleep(1)
        assert on.farm.loads_done == ["b", "d", "c", "a"]
        assert on.farm.models() == ["a", "b", "c", "d"]
        for model in (on.model("large", 80), models[1]):  # which finds the others as they were used
            await on.make_resident(model)
        assert on.farm.models() == ["b", "d", "large"]


@virtual
async def test_what_was_never_used_or_is_gone_does_not_come_back() -> None:
    async with bed() as on:
        used, unused, retired = on.model("used", 10), on.model("unused", 10), on.model("retired", 10)
        await on.make_resident(used, retired)
        await on.mesh.loader.bring(unused, claim=False)
        process = on.process_of(used)
        on.farm.death_takes_s = 0.1
        be_killed(process)
        on.mesh.retire(retired)
        await asyncio.sleep(1)
        assert on.farm.models() == ["used"]
        on.revisions.remove(retired)


@virtual
async def test_nothing_that_was_used_later_goes_for_what_comes_back() -> None:
    async with bed(100, workers=2) as on:
        old, older = on.model("old", 40), on.model("older", 40)
        await on.make_resident(older)
        await asyncio.sleep(1)
        await on.make_resident(old)
        on.farm.may_start = False
        be_killed(on.process_of(older))
        await asyncio.sleep(1)
        await on.make_resident(on.model("new", 60))
        on.farm.may_start = True
        await asyncio.sleep(10)
        assert on.farm.models() == ["new", "old"]


@pytest.mark.parametrize(
    ("end", "back"),
    [(be_killed, ["other", "pinned", "ran"]), (crash, ["other", "pinned"]), (run_out_of_memory, ["pinned"])],
)
def test_what_may_have_been_the_end_of_its_worker_stays_away(end: End, back: list[str]) -> None:
    @virtual
    async def scene() -> None:
        async with bed() as on:
            ran, other, pinned = on.model("ran", 10), on.model("other", 10), on.model("pinned", 10, pin=True)
            await on.make_resident(ran, other, pinned)
            sent = on.submit(ran)
            await settle()
            on.job(ran).start()
            end(on.process_of(ran))
            assert isinstance(await outcome_of(sent.future), Unavailable)
            await asyncio.sleep(1)
            assert on.farm.models() == back

    scene()


@virtual
async def test_requests_go_before_what_comes_back() -> None:
    async with bed(load_concurrency=1) as on:
        models = [on.model(name, 10) for name in "abcdef"]
        await on.make_resident(*models)
        on.farm.loads_done.clear()
        on.farm.on_call = Farm.after(0.1)
        be_killed(on.process_of(models[0]))
        await asyncio.sleep(0.05)
        sent = on.submit(models[0])
        await asyncio.sleep(5)
        on.answer_all()
        assert await outcome_of(sent.future) is None
        assert on.farm.loads_done.index("a") <= 2, "two were under way"
        assert on.farm.models() == ["a", "b", "c", "d", "e", "f"]


@virtual
async def test_a_worker_that_does_not_come_back_leaves_the_others_alone() -> None:
    async with bed(workers=2) as on:
        a, b = on.model("a", 10), on.model("b", 10)
        await on.make_resident(a, b)
        on.farm.may_start = False
        be_killed(on.process_of(a))
        await asyncio.sleep(30)
        assert on.farm.models() == ["b"]
        on.farm.may_start = True
        await asyncio.sleep(20)
        assert on.farm.models() == ["a", "b"]

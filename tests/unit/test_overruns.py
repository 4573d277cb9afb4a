"""Runs that go on although nobody waits for them: their worker is ended, and what else ran there runs again."""

from __future__ import annotations

import asyncio

import pytest
from roost.core.errors import DeadlineExceeded, Unavailable
from roost.router.losses import QUARANTINE_CRASHES
from roost.router.overruns import BLOCKING_GRACE_S, GRACE_S

from tests.unit.mesh_fakes import Bed, Sent, bed
from tests.unit.test_losses import outcome_of, stateless
from tests.virtual_time import settle, virtual

pytestmark = pytest.mark.filterwarnings("error")

BETWEEN_S = (BLOCKING_GRACE_S + GRACE_S) / 2


async def give_up(on: Bed, *names: str) -> list[Sent]:
    """Begins a run of each model, whose client goes away."""
    given_up = [on.submit(next(r for r in on.revisions if r.key.name == name)) for name in names]
    await settle()
    for sent, name in zip(given_up, names, strict=True):
        on.job(next(r for r in on.revisions if r.key.name == name)).start()
        sent.cancel()
    return given_up


@virtual
async def test_what_else_ran_there_runs_again() -> None:
    async with bed(slots=2) as on:
        endless, other = stateless(on, "endless"), stateless(on, "other")
        await on.make_resident(endless, other)
        process = on.process_of(endless)
        await give_up(on, "endless")
        sent = on.submit(other)
        await settle()
        on.job(other).start()
        await asyncio.sleep(BETWEEN_S)
        assert on.farm.processes == [process], "it has time, as nobody is kept from running"
        await asyncio.sleep(GRACE_S)
        assert process not in on.farm.processes
        on.job(other).answer()
        assert await outcome_of(sent.future) is None
        assert (endless.crashes, other.crashes) == (1, 0)


@virtual
async def test_it_has_less_time_where_nobody_else_can_run() -> None:
    async with bed(slots=2) as on:
        endless, more, other = (stateless(on, name) for name in ("endless", "more", "other"))
        await on.make_resident(endless, more, other)
        await give_up(on, "endless", "more")
        sent = on.submit(other)
        await asyncio.sleep(BETWEEN_S)
        on.job(other).answer()
        assert await outcome_of(sent.future) is None


@virtual
async def test_one_that_ends_and_one_that_may_take_long_are_left_alone() -> None:
    async with bed(slots=2) as on:
        quick, slow = stateless(on, "quick"), stateless(on, "slow")
        on.farm.run_ns = int(GRACE_S * 1e9)
        await on.make_resident(quick, slow)  # so long a run takes
        processes = [*on.farm.processes]
        await give_up(on, "quick", "slow")
        await asyncio.sleep(GRACE_S / 2)
        on.job(quick).answer()
        await asyncio.sleep(2 * GRACE_S)
        assert on.farm.processes == processes
        on.job(slow).answer()
        await asyncio.sleep(10 * GRACE_S)
        assert on.farm.processes == processes


@virtual
async def test_a_model_that_never_answers_is_put_in_quarantine() -> None:
    async with bed() as on:
        endless = stateless(on, "endless")
        await on.make_resident(endless)
        for _ in range(QUARANTINE_CRASHES):
            sent = on.submit(endless, timeout_s=1)
            await asyncio.sleep(0.5)
            on.job(endless).start()
            assert isinstance(await outcome_of(sent.future), DeadlineExceeded)
            await asyncio.sleep(2 * GRACE_S)
        assert endless.failure is not None
        assert endless.failure.final
        assert isinstance(await outcome_of(on.mesh.loader.bring(endless)), Unavailable)

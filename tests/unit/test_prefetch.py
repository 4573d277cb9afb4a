"""Models that are used on a timer are loaded before their next use, and never in the place of what is in use."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable, Iterable

from roost.core.errors import InvalidArgument
from roost.router.eviction import Lru
from roost.router.prefetch import Prefetch
from roost.router.revision import Revision

from tests.unit.mesh_fakes import Bed, bed
from tests.virtual_time import virtual


class Timetable(Lru):
    """Expects each owner at one time and wants it so many seconds before."""

    def __init__(self, lead_s: float, *uses: tuple[Revision, float]) -> None:
        super().__init__()
        self.lead_s = lead_s
        self.uses = list(uses)

    def next_due(self) -> float:
        return min((at - self.lead_s for _, at in self.uses), default=math.inf)

    def due(self, now: float) -> Iterable[tuple[Hashable, float]]:
        due = [use for use in self.uses if use[1] - self.lead_s <= now]
        self.uses = [use for use in self.uses if use not in due]
        return due


async def after(made: Bed, policy: Timetable, seconds: float) -> list[str]:
    """What is loaded once the prefetch has run for so long."""
    task = asyncio.create_task(Prefetch(policy, made.mesh.loader.bring).run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return made.farm.models()


@virtual
async def test_what_is_due_is_loaded_before_its_use() -> None:
    async with bed(100) as made:
        policy = Timetable(2.5, (made.model("a", 40), time.monotonic() + 30.0))
        assert await after(made, policy, 27.0) == []
        assert await after(made, policy, 1.0) == ["a"]


@virtual
async def test_what_was_used_within_the_time_that_is_left_stays() -> None:
    async with bed(100) as made:
        busy, timer = made.model("busy", 70), made.model("timer", 40)
        await made.make_resident(busy)
        await asyncio.sleep(1.0)
        assert await after(made, Timetable(2.0, (timer, time.monotonic() + 2.0)), 3.0) == ["busy"]
        await asyncio.sleep(9.0)
        assert await after(made, Timetable(2.0, (timer, time.monotonic() + 2.0)), 3.0) == ["timer"]


@virtual
async def test_a_load_that_fails_is_nobodys_business_and_is_not_tried_again() -> None:
    async with bed(100) as made:
        broken, fine = made.model("broken", 40), made.model("fine", 40)
        made.farm.on_call = lambda call: call.fail(InvalidArgument("no")) if call.model == "broken" else call.succeed()
        now = time.monotonic()
        policy = Timetable(2.0, (broken, now + 3.0), (fine, now + 6.0), (broken, now + 6.0))
        assert await after(made, policy, 9.0) == ["fine"]

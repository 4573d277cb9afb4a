"""The mesh against a naive model of it: after every step both have loaded the same and answered the same.

The model is one list of what is in memory, the longest unused first, and the rules of eviction read off the documents.
Steps come in any order, and everything comes to rest after each, so that there is one right outcome. What happens
while loads, unloads and ends of workers are under way is the business of ``test_mesh_interleaving``.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roost.core.errors import ResourceExhausted
from roost.core.figures import Figures
from roost.router.revision import Revision

from tests.unit.mesh_fakes import Bed, Job, Sent, bed
from tests.virtual_time import run, settle

BUDGET = 100
SIZES = {"a": 10, "b": 20, "c": 30, "d": 40, "e": 60, "f": 100, "g": 101, "p": 15, "q": 20}
PINNED = "pq"
LONG_S = 1000.0
Step: TypeAlias = tuple[str, str | int | tuple[str, int]]

NAMES = st.sampled_from(sorted(SIZES))
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.sampled_from(["use"] * 4 + ["use and answer"] * 5 + ["look", "unload"]), NAMES),
    st.tuples(st.sampled_from(["answer"] * 5 + ["lose", "leave", "time"]), st.integers(0, 7)),
    st.tuples(st.just("resize"), st.tuples(NAMES, st.sampled_from([5, 25, 45, 101]))),
)


@dataclass
class Row:
    """A model in memory."""

    size: int
    pinned: bool
    runs: int = 0
    was_used: bool = False


class Naive:
    """What the mesh has to do.

    Attributes:
        rows: What is in memory, the longest unused first.
        loads: All loads so far.
        blocked: The model that requests wait for, since what runs has all the memory.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.loads: list[str] = []
        self.blocked = ""

    def fits_never(self, name: str) -> bool:
        return SIZES[name] > BUDGET - sum(row.size for row in self.rows.values() if row.pinned)

    @property
    def missing(self) -> int:
        """How much more is taken than there is; negative: less."""
        return sum(row.size for row in self.rows.values()) - BUDGET

    def load(self, name: str, *, use: bool) -> bool:
        """Loads it if that is possible now; for a mere look, only what was never used may go."""
        if not self.make_room(SIZES[name], use=use):
            return False
        row = Row(SIZES[name], name in PINNED)
        self.rows = {**self.rows, name: row} if use else {name: row, **self.rows}
        self.loads.append(name)
        return True

    def make_room(self, size: int, *, use: bool = True) -> bool:
        """Evicts what has to go, if that suffices."""
        missing = self.missing + size
        victims: list[str] = []
        for other, row in self.rows.items():
            if missing > 0 and not (row.pinned or row.runs) and (use or not row.was_used):
                victims.append(other)
                missing -= row.size
        if missing > 0:
            return False
        for other in reversed(victims):  # some may not be needed, now that larger ones go
            if self.rows[other].size <= -missing:
                missing += self.rows[other].size
            else:
                del self.rows[other]
        return True

    def touch(self, name: str, runs: int) -> None:
        """So many runs more, or fewer; either is recent."""
        row = self.rows.pop(name)
        row.runs += runs
        row.was_used = True
        self.rows[name] = row


class Script:
    """Does the same with both."""

    def __init__(self, on: Bed) -> None:
        self.on = on
        self.naive = Naive()
        self.models = {name: self.model(name) for name in SIZES}
        self.blocked: list[Sent] = []

    def model(self, name: str) -> Revision:
        return self.on.model(name, SIZES[name], pin=name in PINNED)

    async def carry_out(self, step: Step) -> None:
        match step:
            case "use", str(name):
                await self.use(name)
            case "use and answer", str(name):
                await self.use_and_answer(name)
            case "look", str(name) if not self.naive.blocked:
                await self.look(name)
            case "unload", str(name) if not self.naive.blocked:
                await self.unload(name)
            case "answer", int(index) if self.on.farm.jobs:
                await self.answer(self.on.farm.jobs[index % len(self.on.farm.jobs)])
            case "lose", int(index):
                await self.lose(index)
            case "leave", _ if self.naive.blocked:
                await self.leave()
            case "time", _:
                await self.pass_time()
            case "resize", (str(name), int(size)) if name in self.naive.rows and name not in PINNED:
                await self.resize(name, size)
        self.compare(step)

    def compare(self, step: Step) -> None:
        on, naive = self.on, self.naive
        on.sizes.update({name: size for name, size in SIZES.items() if name not in naive.rows})
        assert on.farm.models() == sorted(naive.rows), step
        assert on.farm.loads_done == naive.loads, step
        assert on.ledger.used_bytes == sum(row.size for row in naive.rows.values())
        assert sorted(job.model for job in on.farm.jobs) == sorted(
            n for n, row in naive.rows.items() for _ in range(row.runs)
        )

    async def use(self, name: str) -> None:
        naive = self.naive
        if naive.blocked not in ("", name) and name not in naive.rows:
            return  # in what order two of them come to their loads is tested elsewhere
        sent = self.on.submit(self.models[name])
        await settle()
        if name in naive.rows:
            naive.touch(name, 1)
        elif naive.fits_never(name):
            assert isinstance(sent.future.exception(), ResourceExhausted)
        elif not naive.blocked and naive.load(name, use=True):
            naive.touch(name, 1)
        elif sent.future.done():
            assert isinstance(sent.future.exception(), ResourceExhausted)
        else:
            naive.blocked = name
            self.blocked.append(sent)

    async def use_and_answer(self, name: str) -> None:
        await self.use(name)
        if name in self.naive.rows:
            await self.answer(self.on.job(self.models[name], -1))

    async def answer(self, job: Job) -> None:
        naive = self.naive
        naive.touch(job.model, -1)
        job.answer()
        await settle()
        self.go_on()

    def go_on(self) -> None:
        """Something has changed: others go if more is taken than there is, and what is blocked may go on."""
        naive = self.naive
        naive.make_room(0)
        if naive.blocked and naive.load(naive.blocked, use=True):
            naive.touch(naive.blocked, len(self.blocked))
            naive.blocked = ""
            self.blocked.clear()

    async def resize(self, name: str, size: int) -> None:
        """It turns out that a model takes more or less than was thought, until it is loaded the next time."""
        (instance,) = self.models[name].instances
        self.on.sizes[name] = min(size, self.on.sizes[name])  # that it grows is not the mesh's fault
        instance.figures = Figures(size)
        self.on.ledger.resized(instance.id, instance.figures)
        self.on.mesh.loader.room.changed()
        self.naive.rows[name].size = size
        await settle()
        self.go_on()

    async def leave(self) -> None:
        """All who wait go."""
        for sent in self.blocked:
            sent.cancel()
        self.blocked.clear()
        self.naive.blocked = ""
        await settle()
        self.go_on()

    async def look(self, name: str) -> None:
        """Somebody looks at a model, which is no use of it."""
        naive = self.naive
        has_room = name in naive.rows or (not naive.fits_never(name) and naive.load(name, use=False))
        try:
            await self.on.mesh.loader.bring(self.models[name], claim=False, older_than=-math.inf)
        except ResourceExhausted:
            assert not has_room
        else:
            assert has_room

    async def unload(self, name: str) -> None:
        """A call takes the model from service, and brings it back."""
        row = self.naive.rows.get(name)
        if row is not None and row.runs:
            return
        self.naive.rows.pop(name, None)
        self.on.mesh.retire(self.models[name])
        await settle()
        self.models[name] = self.model(name)

    async def lose(self, index: int) -> None:
        """A worker ends when nothing runs: what it had may come back by itself, in place of what was used before."""
        await self.answer_all()
        process = self.on.farm.processes[index % len(self.on.farm.processes)]
        lost = set(process.loaded.values())
        process.end()
        await asyncio.sleep(LONG_S)
        naive, there = self.naive, self.on.farm.models()
        assert len(set(there)) == len(there)
        assert set(there) <= naive.rows.keys()
        warmest_first = list(reversed(naive.rows))
        for gone in naive.rows.keys() - lost - set(there):
            assert lost & set(there) & set(warmest_first[: warmest_first.index(gone)])
        again = {name: Row(SIZES[name], name in PINNED) for name in lost}
        naive.rows = {name: again.get(name, row) for name, row in naive.rows.items() if name in there}
        naive.loads = list(self.on.farm.loads_done)
        for name in there:  # in whatever order they came back
            await self.use_and_answer(name)

    async def answer_all(self) -> None:
        while self.on.farm.jobs:
            await self.answer(self.on.farm.jobs[0])

    async def pass_time(self) -> None:
        """What is idle stays so for any time. What runs for long may have to go, which is tested elsewhere."""
        await self.answer_all()
        await asyncio.sleep(LONG_S)

    async def come_to_an_end(self) -> None:
        await self.answer_all()
        self.compare(("the end", 0))
        assert not self.naive.blocked
        self.on.sizes.update({name: row.size for name, row in self.naive.rows.items()})


async def play(steps: list[Step], workers: int) -> None:
    async with bed(BUDGET, workers=workers, slots=64) as on:
        script = Script(on)
        for step in steps:
            await script.carry_out(step)
        await script.come_to_an_end()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=10, max_size=50), st.integers(1, 2))
def test_the_mesh_does_as_its_model(steps: list[Step], workers: int) -> None:
    run(play(steps, workers))

"""The mesh under arbitrary interleavings of requests, answers, failures, losses, cancellations and time.

Whatever happens, every request is settled once, the budget holds, no model is loaded twice at a time (the fake workers
see to both), and when the workers behave again, nothing is left behind.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from typing import Any, TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roost.core.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RoostError,
    Unavailable,
)
from roost.core.figures import Figures
from roost.core.frames import FrameType
from roost.router.revision import Instance, Revision
from roost.router.states import InstanceState

from tests.unit.mesh_fakes import Bed, Farm, Sent, bed
from tests.virtual_time import run, settle

BUDGET = 100
DECOUPLED = "bg"
BATCHING = "chi"
IN_ORDER = "i"
SIZES = {"a": 30, "b": 40, "c": 60, "d": 100, "e": 101, "f": 10, "g": 10, "h": 10, "i": 10}
Step: TypeAlias = tuple[str, Any]

INDEX = st.integers(0, 7)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(
        st.just("submit"),
        st.tuples(st.sampled_from("abbccdefghhhiii"), st.sampled_from([math.inf, math.inf, 0.5, 5.0])),
    ),
    st.tuples(st.just("submit"), st.tuples(st.sampled_from("abcfghhi"), st.just(math.inf))),
    st.tuples(st.sampled_from(["answer", "answer", "start", "fail", "cancel", "call done", "call done"]), INDEX),
    st.tuples(st.sampled_from(["emit", "emit", "take", "refuse"]), INDEX),
    st.tuples(st.just("call fails"), st.tuples(INDEX, st.sampled_from([InvalidArgument, ResourceExhausted, Internal]))),
    st.tuples(st.just("lose"), st.tuples(INDEX, st.sampled_from([1, -signal.SIGKILL, None]))),
    st.tuples(st.sampled_from(["look", "bring", "bring and go", "retire"]), st.sampled_from("abcd")),
    st.tuples(st.just("add copy"), st.tuples(st.sampled_from("bcfghi"), st.sampled_from([-math.inf, math.inf]))),
    st.tuples(st.just("drop copy"), INDEX),
    st.tuples(st.just("grow"), st.tuples(INDEX, st.sampled_from([5, 30, 80]))),
    st.tuples(st.just("time"), st.sampled_from([0.01, 0.3, 1.2, 10.0, 100.0])),
    st.tuples(st.just("may start"), st.booleans()),
)


class Script:
    """Carries steps out; some say nothing to the present state and are skipped."""

    def __init__(self, on: Bed) -> None:
        self.on = on
        self.models = {name: self.model(name) for name in SIZES}
        self.settled: dict[Sent, int] = {}
        self.tasks: list[asyncio.Task[RoostError | None]] = []
        self.grown: dict[int, int] = {}

    async def carry_out(self, step: Step) -> None:
        on, farm = self.on, self.on.farm
        match step:
            case "submit", (name, timeout_s):
                self.submit(self.models[name], timeout_s)
            case "answer" | "start" | "fail" as what, index if farm.jobs:
                job = farm.jobs[index % len(farm.jobs)]
                if what == "answer":
                    job.answer()
                elif what == "fail":
                    job.fail(Internal("failed"))
                elif not job.started:
                    job.start()
            case "emit", index if farm.jobs:
                farm.jobs[index % len(farm.jobs)].emit()
            case "refuse", index if farm.jobs:
                job = farm.jobs[index % len(farm.jobs)]
                job.process.listener.on_response_refused(job.number, ResourceExhausted("no memory"))
            case "take", index if on.sent:
                self.tasks.append(on.group.create_task(self.take(on.sent[-1 - index % len(on.sent)])))
            case "cancel", index if on.sent:
                on.sent[-1 - index % len(on.sent)].cancel()
            case "call done", index if farm.calls:
                call = farm.calls[index % len(farm.calls)]
                if call.cancelled and index % 2:  # else it came too late
                    call.fail(Cancelled("the load was cancelled"))
                else:
                    call.succeed()
            case "call fails", (index, error) if farm.calls:
                call = farm.calls[index % len(farm.calls)]
                if call.type is FrameType.LOAD:
                    call.fail(error("failed"))
            case "lose", (index, code) if farm.processes:
                process = farm.processes[index % len(farm.processes)]
                if code is None:
                    process.lose_link()
                else:
                    process.end(code)
            case "look" | "bring" | "bring and go" as what, name:
                self.bring(self.models[name], what)
            case "retire", name:
                on.mesh.retire(self.models[name])
                self.models[name] = self.model(name)
            case "add copy", (name, older_than):
                on.mesh.loader.add_copy(self.models[name], older_than=older_than)
            case "drop copy", index:
                ready = [i for revision in on.revisions for i in revision.instances if i.state is InstanceState.READY]
                if ready:
                    on.mesh.loader.drop_copy(ready[index % len(ready)])
            case "grow", (index, more):
                self.grow(index, more)
            case "time", seconds:
                await asyncio.sleep(seconds)
            case "may start", value:
                farm.may_start = value
        self.check()

    def model(self, name: str) -> Revision:
        config: dict[str, Any] = {}
        if name in IN_ORDER:
            config = {"dynamic_batching": {"preserve_ordering": True}, "instance_group": [{"count": 2}]}
        batch = 4 if name in BATCHING else 0
        revision = self.on.model(name, SIZES[name], pin=name == "a", decoupled=name in DECOUPLED, batch=batch, **config)
        revision.stateless = name not in (*DECOUPLED, "a")
        return revision

    async def take(self, pending: Sent) -> RoostError | None:
        """Takes a response of a stream, if there is one."""
        if pending.stream is None or pending.future.cancelled():
            return None
        try:
            async with asyncio.timeout(0):
                await pending.stream.take()
        except TimeoutError:
            pass
        except RoostError as error:
            return error
        return None

    def submit(self, revision: Revision, timeout_s: float) -> None:
        try:
            pending = self.on.submit(revision, timeout_s=timeout_s, data=b"12")
        except ResourceExhausted:
            return
        self.settled[pending] = 0

        def settled(future: asyncio.Future[Any]) -> None:
            self.settled[pending] += 1
            if not future.cancelled():
                future.exception()

        pending.future.add_done_callback(settled)

    def bring(self, revision: Revision, what: str) -> None:
        looks = {"claim": False, "older_than": -math.inf} if what == "look" else {}

        async def outcome() -> RoostError | None:
            try:
                async with asyncio.timeout(0.05 if what == "bring and go" else None):
                    await self.on.mesh.loader.bring(revision, **looks)  # type: ignore[arg-type]
            except TimeoutError:
                pass
            except RoostError as error:
                return error
            return None

        self.tasks.append(self.on.group.create_task(outcome()))

    def grow(self, index: int, more: int) -> None:
        """An instance turns out to take more than was reserved for it."""
        loaded = [i for revision in self.on.revisions for i in revision.instances if i.state is InstanceState.READY]
        if loaded:
            instance = loaded[index % len(loaded)]
            self.resize(instance, instance.figures.private_bytes + more)
            self.grown[instance.id] = self.grown.get(instance.id, 0) + more

    def resize(self, instance: Instance, size: int) -> None:
        instance.figures = Figures(size)
        self.on.ledger.resized(instance.id, instance.figures)
        self.on.mesh.loader.room.changed()

    def check(self) -> None:
        on = self.on
        assert on.ledger.used_bytes <= BUDGET + sum(
            self.grown[n] for n in self.grown.keys() & on.ledger.holdings.keys()
        )
        on.farm.check_memory()
        queued = [pending for revision in on.revisions for pending in revision.queue]
        assert on.mesh.queues.requests == len(queued)
        assert on.mesh.queues.bytes == sum(pending.nbytes for pending in queued)
        assert len(set(queued)) == len(queued)
        assert not [pending for pending in queued if pending.settled]
        for worker in on.mesh.workers:
            for number, batch in worker.runs.items():
                assert batch.instance.worker is worker
                assert batch.number == number
                assert batch.open == sum(not (p.settled or p.outcome is not None) for p in batch.requests)
                assert batch in batch.instance.runs
                for pending in batch.requests:
                    assert pending not in queued
                    assert pending.batch is batch
        for revision in on.revisions:
            waits = len(revision.queue) > 0
            assert on.ledger.claimed(revision) >= (waits and not revision.pumping)
            assert revision.queued_rows == sum(pending.rows for pending in revision.queue)
            assert not revision.in_order or not (revision.in_order[0].settled or revision.in_order[0].outcome)
            assert [p.due for p in revision.queue] == sorted(p.due for p in revision.queue)

    async def come_to_an_end(self) -> None:
        """From now on workers do what they are told; all that is left has its turn."""
        farm = self.on.farm
        farm.may_start = True
        farm.on_call = Farm.soon
        farm.answer_runs_after(0.01)
        for call in list(farm.calls):
            call.succeed()
        for job in list(farm.jobs):
            job.answer()
        await asyncio.sleep(300)
        assert self.on.ledger.used_bytes <= BUDGET, "idle ones go until what has grown fits"
        for revision in self.on.revisions:
            for instance in revision.instances:
                self.resize(instance, self.on.sizes[revision.key.name])
        for task in self.tasks:
            assert task.done()
            task.result()
        for pending, count in self.settled.items():
            assert count == 1
            assert_sensible(pending)


def assert_sensible(pending: Sent) -> None:
    if pending.future.cancelled():
        return
    error = pending.future.exception()
    assert error is None or isinstance(error, Unavailable | ResourceExhausted | DeadlineExceeded | Internal)
    assert not isinstance(error, Cancelled)
    if pending.pending.revision.key.name == "e":
        assert error is not None, "it is larger than the budget"


async def play(steps: list[tuple[Step, bool]], workers: int, slots: int, death_takes_s: float, stop: bool) -> None:
    async with bed(BUDGET, workers=workers, slots=slots, load_concurrency=2, max_queue=5) as on:
        on.farm.on_call = Farm.held
        on.farm.death_takes_s = death_takes_s
        script = Script(on)
        for step, then_settle in steps:
            await script.carry_out(step)
            if then_settle:
                await settle()
                script.check()
        if stop:
            await on.mesh.stop()
            await settle()
            assert all(count == 1 for count in script.settled.values())
            assert all(task.done() for task in script.tasks)
            on.revisions.clear()
            on.farm.jobs.clear()
        else:
            await script.come_to_an_end()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(STEPS, st.booleans()), max_size=40),
    st.integers(1, 2),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([False, False, True]),
)
def test_any_interleaving(
    steps: list[tuple[Step, bool]], workers: int, slots: int, death_takes_s: float, stop: bool
) -> None:
    run(play(steps, workers, slots, death_takes_s, stop))
    assert time.monotonic() != 0  # the real clock is back

"""Answers that are kept for requests that are the same, on a mesh of fake workers in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import DeadlineExceeded, Internal
from roost.core.frames import FrameType, WireTensor
from roost.core.requests import InferRequest, InferResponse, RequestContext, RequestedOutput
from roost.core.tensors import Signature, Tensor, TensorSpec
from roost.router.inference import Inference
from roost.router.response_cache import ResponseCache
from roost.router.revision import Revision
from roost.router.states import InstanceState
from roost.router.statistics import statistics
from roost.router.stats import Stats
from roost.router.traffic import Traffic
from roost.server.metrics_triton import triton_slices

from tests.unit.mesh_fakes import Bed, Call, FakeFolder, Farm, InlineExecutor, bed
from tests.virtual_time import settle, virtual

LIMIT_BYTES = 64 << 10
TENSORS = Signature(
    (TensorSpec("x", "UINT8", (-1,)), TensorSpec("z", "INT32", (-1, -1), optional=True)),
    (TensorSpec("y", "UINT8", (-1,)), TensorSpec("more", "UINT8", (-1,), optional=True)),
)


@dataclass
class Place:
    """A mesh with two models that keep their answers."""

    on: Bed
    inference: Inference
    models: dict[str, Revision] = field(default_factory=dict)
    runs: int = 0

    async def ask(self, request: InferRequest) -> bytes:
        """What the model answers, as far as this tells it from other answers."""
        response = await self.inference.infer(request)
        assert (response.id, response.model_name) == (request.id, request.model_name)
        return b"|".join(bytes(output.data) for output in response.outputs)

    def begin(self, request: InferRequest) -> asyncio.Task[InferResponse]:
        return asyncio.get_running_loop().create_task(self.inference.infer(request))


@asynccontextmanager
async def place(limit_bytes: int = LIMIT_BYTES, *, answers: bool = True) -> AsyncIterator[Place]:
    """Runs are answered at once, with what they were asked, and counted."""
    async with bed(slots=4, max_queued_bytes=1 << 24, max_answer_bytes=1 << 24) as on:
        on.farm.signature = TENSORS
        cache = ResponseCache(limit_bytes, on.stats.cache, on.catalog.prepare)
        at = Place(on, Inference(on.catalog, on.mesh, Traffic(), InlineExecutor(), responses=cache))
        for name in ("a", "b"):
            at.models[name] = on.model(name, 10, response_cache={"enable": True})
            await on.mesh.loader.bring(at.models[name])

        def on_run(job: Any) -> None:
            at.runs += 1
            if answers:
                asyncio.get_running_loop().call_soon(job.answer)

        on.farm.on_run = on_run
        yield at
        for model in at.models.values():
            cache.forget(model)
        assert (on.stats.cache.bytes, on.stats.cache.entries) == (0, 0)


def ask(data: bytes = b"12", model: str = "a", *, timeout_s: float = 10.0, **changes: Any) -> InferRequest:
    now = time.monotonic()
    tensors = [Tensor("x", "UINT8", (len(data),), data)]
    return InferRequest(model, "", RequestContext(now, now + timeout_s), tensors, id=str(now), **changes)


def with_matrix(shape: tuple[int, int]) -> InferRequest:
    request = ask()
    request.inputs.append(Tensor("z", "INT32", shape, bytes(24)))
    return request


def counts_of(stats: Stats, model: str = "a") -> tuple[int, int]:
    cache = stats.of(model, "1").cache
    return (cache.hits, cache.misses) if cache is not None else (0, 0)


OTHERS: dict[str, Callable[[], InferRequest]] = {
    "other elements": lambda: ask(b"13"),
    "another shape": lambda: ask(b"123"),
    "another model": lambda: ask(model="b"),
    "an output": lambda: ask(outputs=[RequestedOutput("y")]),
    "another output": lambda: ask(outputs=[RequestedOutput("y"), RequestedOutput("more")]),
    "an output's parameter": lambda: ask(outputs=[RequestedOutput("y", parameters={"p": 1})]),
    "a parameter": lambda: ask(parameters={"p": 1}),
    "its type": lambda: ask(parameters={"p": True}),
    "its value": lambda: ask(parameters={"p": "1"}),
    "another input": lambda: with_matrix((2, 3)),
    "the same elements in another shape": lambda: with_matrix((3, 2)),
}


@virtual
async def test_what_is_the_same_and_what_is_not() -> None:
    async with place() as at:
        await at.ask(ask())
        for number, (what, request) in enumerate(OTHERS.items(), start=2):
            await at.ask(request())
            assert at.runs == number, f"{what} is another request"
        for what, request in {"itself": ask, **OTHERS}.items():
            again = request()
            again.inputs.reverse()
            await at.ask(again)
            assert at.runs == len(OTHERS) + 1, f"{what} is known"
        assert counts_of(at.on.stats) == (len(OTHERS), len(OTHERS))
        assert counts_of(at.on.stats, "b") == (1, 1)


@virtual
async def test_statistics_and_metrics() -> None:
    async with place() as at:
        for _ in range(3):
            await at.ask(ask())
        (shown,) = await statistics(at.on.catalog, Traffic(), at.on.stats, "a", "")
        steps = shown.inference_stats
        assert (steps.cache_hit.count, steps.cache_miss.count) == (2, 1)
        assert (shown.execution_count, shown.inference_count) == (1, 1)
        text = "".join(triton_slices([[at.models["a"], at.models["b"], at.on.model("c", 1)]], at.on.stats))
        assert 'nv_cache_num_hits_per_model{model="a",version="1"} 2\n' in text
        assert 'nv_cache_num_misses_per_model{model="b",version="1"} 0\n' in text
        assert 'nv_cache_num_misses_per_model{model="c"' not in text


@virtual
async def test_other_files_never_answer_from_before() -> None:
    async with place() as at:
        model = at.models["a"]
        await at.ask(ask())
        for instance in list(model.instances):
            at.on.mesh.loader.evict(instance)
        await settle()
        assert await at.ask(ask()) == b"12"
        assert at.runs == 1, "it is not loaded, and need not be"
        folder = model.folder
        assert isinstance(folder, FakeFolder)
        await asyncio.sleep(1.0)
        folder.generation += 1
        await at.ask(ask())
        assert at.runs == 2


@virtual
async def test_requests_that_are_the_same_run_once() -> None:
    async with place(answers=False) as at:
        tasks = [at.begin(ask()) for _ in range(4)]
        gone, late = at.begin(ask()), at.begin(ask(timeout_s=1.0))
        await settle()
        gone.cancel()
        (job,) = at.on.farm.jobs
        with pytest.raises(DeadlineExceeded):
            await late
        job.answer()
        assert {bytes((await task).outputs[0].data) for task in tasks} == {b"12"}
        assert at.runs == 1
        assert gone.cancelled()


@virtual
@pytest.mark.parametrize("cancels", [False, True])
async def test_nobody_gets_the_error_of_another_one(cancels: bool) -> None:
    async with place(answers=False) as at:
        first, *others = [at.begin(ask()) for _ in range(4)]
        await settle()
        if cancels:
            first.cancel()
        at.on.farm.jobs[0].fail(Internal("no"))
        await settle()
        assert len(at.on.farm.jobs) == 3, "all others run at once"
        behind = at.begin(ask())
        await settle()
        at.on.answer_all()
        for task in (*others, behind):
            assert bytes((await task).outputs[0].data) == b"12"
        with pytest.raises(asyncio.CancelledError if cancels else Internal):
            await first
        assert at.runs == 4


@virtual
async def test_memory_is_bounded_and_copied() -> None:
    async with place() as at:
        totals = at.on.stats.cache
        for size in range(1, 200):
            await at.ask(ask(bytes(size)))
            assert totals.bytes <= totals.limit_bytes == LIMIT_BYTES
        assert 0 < totals.entries < 64
        runs = at.runs
        await at.ask(ask(bytes(1)))
        assert at.runs == runs + 1, "it was the first to go"
        for _ in range(2):
            await at.ask(ask(bytes(LIMIT_BYTES // 4)))
        assert at.runs == runs + 3, "that would be too large a part of all there is"
        assert totals.entries > 1


@virtual
async def test_large_requests_and_answers_leave_others_their_turn() -> None:
    async with place(64 << 20) as at:
        data = bytes(5 << 20)
        assert await at.ask(ask(data)) == data
        assert await at.ask(ask(data)) == data
        assert at.runs == 1


@virtual
async def test_without_memory_everything_runs() -> None:
    async with place(0) as at:
        for _ in range(2):
            assert await at.ask(ask()) == b"12"
        assert (at.runs, counts_of(at.on.stats)) == (2, (0, 0))


@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.binary(min_size=1, max_size=3),
            st.dictionaries(st.sampled_from("pq"), st.integers(0, 1), max_size=2),
        ),
        max_size=30,
    ),
    limit_bytes=st.sampled_from([0, 1 << 13, 1 << 16]),
)
@settings(max_examples=40, deadline=None)
def test_answers_are_those_of_the_model(requests: list[tuple[str, bytes, dict[str, int]]], limit_bytes: int) -> None:
    @virtual
    async def run() -> None:
        async with place(limit_bytes) as at:
            for model, data, parameters in requests:
                assert await at.ask(ask(data, model, parameters=parameters)) == data

    run()


class Editions:
    """What a model may answer with while its files change: those that are loaded, else those of the next load."""

    def __init__(self, at: Place) -> None:
        self.at = at
        self.revision = at.models["a"]
        self.folder = cast(FakeFolder, self.revision.folder)
        self.of_instance = {self.revision.instances[0].id: 1}
        self.open: list[tuple[asyncio.Task[InferResponse], set[int]]] = []
        at.on.farm.on_call = self._called
        at.on.farm.on_run = lambda job: None

    def _called(self, call: Call) -> None:
        if call.type is FrameType.LOAD:
            self.of_instance[call.instance] = self.folder.generation
        Farm.soon(call)

    def now(self) -> int:
        ready = [instance.id for instance in self.revision.instances if instance.state is InstanceState.READY]
        return self.of_instance[ready[0]] if ready else self.folder.generation

    def act(self, action: str, number: int) -> None:
        jobs = self.at.on.farm.jobs
        if action == "ask":
            self.open.append((self.at.begin(ask(bytes([number]))), {self.now()}))
        elif action == "change":  # also back to what they were
            self.folder.generation = number + 1
        elif action == "evict":
            for instance in [i for i in self.revision.instances if i.state is InstanceState.READY and not i.leases]:
                self.at.on.mesh.loader.evict(instance)
        elif jobs and action == "fail":
            jobs[0].fail(Internal("no"))
        elif jobs and action == "answer":
            edition = self.of_instance[jobs[0].run.instance]
            jobs[0].answer_with(WireTensor("y", "UINT8", (1,), bytes([edition % 256])))
        elif self.open and action == "cancel":
            self.open[number % len(self.open)][0].cancel()

    def check(self) -> None:
        """What was answered is what could have been the answer, some time since it was asked."""
        for task, editions in self.open:
            editions.add(self.now())
            if task.done() and not task.cancelled() and task.exception() is None:
                assert task.result().outputs[0].data[0] in editions
        self.open = [(task, editions) for task, editions in self.open if not task.done()]


ACTIONS = st.sampled_from(["ask", "ask", "ask", "answer", "answer", "change", "evict", "fail", "cancel"])


@given(actions=st.lists(st.tuples(ACTIONS, st.integers(0, 1)), max_size=40))
@settings(max_examples=80, deadline=None)
def test_an_answer_is_never_that_of_former_files(actions: list[tuple[str, int]]) -> None:
    @virtual
    async def run() -> None:
        async with place() as at:
            editions = Editions(at)
            for action, number in actions:
                editions.act(action, number)
                editions.check()
                await settle()
                editions.check()
            while editions.open or at.on.farm.jobs:
                editions.act("answer", 0)
                await settle()
                editions.check()

    run()

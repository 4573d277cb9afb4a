"""Requests to ensembles: the way through the steps, against a naive evaluation, and what ends it before its time."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import (
    Code,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    RoostError,
    Unavailable,
    Unimplemented,
)
from roost.core.names import DEFAULT_NAMESPACE, VersionKey
from roost.core.requests import Done, InferRequest, InferResponse, RequestContext, RequestedOutput, Ticket
from roost.core.tensors import from_array, to_array
from roost.registry_client.model_config import parse_config_text, signature_from_config
from roost.registry_client.model_folder import ModelFolder
from roost.router.asking import Asking
from roost.router.catalog import Catalog
from roost.router.ensemble_answers import MAX_DEPTH
from roost.router.ensemble_run import StepContext
from roost.router.ensembles import Ensembles
from roost.router.learned import Learned
from roost.router.models import UNLOADED, Model, Version
from roost.router.revision import Revision
from roost.router.states import Availability
from roost.router.stats import Stats
from roost.router.traffic import Traffic, parse_routes
from roost.router.validation import Contract

from tests.ensembles import Specs, ensemble, step, tensors
from tests.memory_store import MemoryStore
from tests.unit.mesh_fakes import InlineExecutor
from tests.virtual_time import run, virtual

ONE: Specs = {"a": ("INT64", [-1])}
OUT: Specs = {"b": ("INT64", [-1])}
Values: TypeAlias = Mapping[str, Any]
X: Values = {"x": [1]}
DECOUPLED = "model_transaction_policy { decoupled: true }"


@dataclass
class Handle:
    """A request that a fake model has taken. Implements ``Ticket``."""

    timer: asyncio.TimerHandle
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True
        self.timer.cancel()


@dataclass
class Place:
    """Ensembles over models that are functions of this process.

    Attributes:
        delays_s: How long each model takes, if it takes any time.
        failing: What models fail with.
        slow: Models that need more than their run.
        streams: How often a decoupled model answers.
        silent: Models that leave out their outputs.
        asked: The requests of steps, in order.
        expected: The models that are to be loaded before they are asked.
    """

    traffic: Traffic = field(default_factory=Traffic)
    delays_s: dict[str, float] = field(default_factory=dict)
    failing: dict[str, RoostError] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    streams: dict[str, int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    asked: list[InferRequest] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        self.catalog = Catalog([], Learned(MemoryStore()), InlineExecutor(), explicit=False)
        self.ensembles = Ensembles(self.catalog, self.traffic, Asking(self, self.stats), self)

    def add(self, name: str, config: str, version: str = "1") -> Revision:
        """Has another model, or another one under a name."""
        description = parse_config_text(config, name, detected_backend="dummy")
        revision = Revision(
            VersionKey(DEFAULT_NAMESPACE, name, version), ModelFolder(name, Path("/nowhere")), description
        )
        signature = signature_from_config(description)
        assert signature is not None
        revision.describe(signature)
        self.catalog.install(
            Model(name, description=description, versions={version: Version(revision, Availability.READY)})
        )
        return revision

    async def ask(
        self, name: str, values: Values, outputs: Sequence[str] = (), timeout_s: float = math.inf
    ) -> dict[str, list[int]]:
        """Asks an ensemble as ``Inference`` does."""
        response = await self._infer(request_to(name, values, outputs, timeout_s))
        return {output.name: to_array(output).tolist() for output in response.outputs}

    async def stream(self, name: str, values: Values) -> list[InferResponse]:
        """The same where there may be more or fewer responses than one."""
        async with aclosing(self.infer_stream(request_to(name, values))) as responses:
            return [response async for response in responses]

    async def _infer(self, request: InferRequest) -> InferResponse:
        revision = await self._resolve(request)
        taken = revision.intake.measure(request) if revision.intake is not None else (1, None, 0)
        return await self.ensembles.infer(revision, request, taken[0])

    async def _resolve(self, request: InferRequest) -> Revision:
        name, version = self.traffic.resolve(request.model_name, request.model_version, 0.0)
        revision = (await self.catalog.version(name, version)).revision
        request.context.served_by = revision.served_by
        if revision.counters is None:
            revision.count_with(self.stats.of(*revision.served_by))
        return revision

    def begin(self, request: InferRequest, done: Done, *, in_regions: bool = False) -> Ticket | None:
        """See ``Inference``."""
        found = self.catalog.known(*self.traffic.resolve(request.model_name, request.model_version, 0.0))
        if found is None or found.availability is not Availability.READY or found.revision.special:
            return None
        self.asked.append(request)
        request.context.served_by = found.revision.served_by
        if found.revision.contract is not None:
            found.revision.contract.check(request)
        if request.model_name in self.slow:
            return None
        delay_s = self.delays_s.get(request.model_name, 0.0)
        handle = Handle(asyncio.get_running_loop().call_later(delay_s, self._settle, request, done))
        self.handles.append(handle)
        return handle

    def _settle(self, request: InferRequest, done: Done) -> None:
        done(self.failing.get(request.model_name) or self._answer(request))

    def _answer(self, request: InferRequest) -> InferResponse:
        context = request.context
        context.queued = context.received
        context.run_started = context.infer_started = context.received
        context.infer_ended = context.run_ended = asyncio.get_running_loop().time()
        found = self.catalog.known(*self.traffic.resolve(request.model_name, request.model_version, 0.0))
        assert found is not None
        total = sum((to_array(tensor) for tensor in request.inputs), np.zeros(1, np.int64))
        places = {item.name: place for place, item in enumerate(found.revision.description.config.output)}
        names = [] if request.model_name in self.silent else [output.name for output in request.outputs]
        outputs = [from_array(name, "INT64", total * 3 + places[name]) for name in names]
        return InferResponse(request.model_name, "1", outputs)

    async def infer(self, request: InferRequest) -> InferResponse:
        """See ``Inference``."""
        revision = await self._resolve(request)
        if revision.description.ensemble is not None:
            return await self._infer(request)
        await asyncio.sleep(self.delays_s.get(request.model_name, 0.0))
        error = self.failing.get(request.model_name)
        if error is not None:
            raise error
        return self._answer(request)

    async def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """See ``Inference``."""
        revision = await self._resolve(request)
        if revision.description.ensemble is not None:
            async with aclosing(self.ensembles.infer_stream(revision, request, 1)) as responses:
                async for response in responses:
                    yield response
            return
        self.asked.append(request)
        answer = self._answer(request)
        for number in range(self.streams[request.model_name]):
            outputs = [from_array(t.name, t.datatype, to_array(t) + number) for t in answer.outputs]
            yield InferResponse(request.model_name, "1", outputs, final=False)
        if request.model_name in self.failing:
            raise self.failing[request.model_name]
        yield InferResponse(request.model_name, "1", [])

    async def contract_of(self, revision: Revision, deadline: float) -> Contract:
        """See ``Inference``."""
        assert revision.contract is not None
        return revision.contract

    def expect(self, revision: Revision) -> None:
        """See ``Inference``."""
        self.expected.append(revision.key.name)

    def codes(self, name: str) -> dict[Code | None, int]:
        """Requests to a model by code; None is success."""
        counted = self.stats.of(name, "1")
        found: list[tuple[Code | None, int]] = [(None, counted.ok), *(counted.errors or {}).items()]
        return {code: count for code, count in found if count}


def request_to(name: str, values: Values, outputs: Sequence[str] = (), timeout_s: float = math.inf) -> InferRequest:
    now = asyncio.get_running_loop().time()
    inputs = [from_array(tensor, "INT64", np.array(value, np.int64)) for tensor, value in values.items()]
    wanted = [RequestedOutput(output) for output in outputs]
    return InferRequest(name, "", RequestContext(now, now + timeout_s, priority=2), inputs, wanted, id="7")


@dataclass(frozen=True)
class Part:
    """A step of a drawn graph."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    delay_s: int


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[Part], list[str]]:
    """Inputs, steps in any order, and outputs of an ensemble that is fine."""
    known = [f"i{number}" for number in range(draw(st.integers(1, 3)))]
    first = list(known)
    parts: list[Part] = []
    for number in range(draw(st.integers(1, 7))):
        taken = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))  # the same one twice is fine
        made = tuple(f"t{number}_{place}" for place in range(draw(st.integers(1, 2))))
        parts.append(Part(tuple(taken), made, draw(st.integers(0, 5))))
        known += made
    used = {tensor for part in parts for tensor in part.inputs}
    made_by_steps = [tensor for part in parts for tensor in part.outputs]
    more = draw(st.sets(st.sampled_from(made_by_steps)))
    outputs = [tensor for tensor in made_by_steps if tensor not in used or tensor in more]
    return [tensor for tensor in first if tensor in used], draw(st.permutations(parts)), outputs


def place_of(inputs: Sequence[str], parts: Sequence[Part], outputs: Sequence[str], slow: set[int]) -> Place:
    on = Place()
    steps = []
    for number, part in enumerate(parts):
        takes = {f"a{place}": tensor for place, tensor in enumerate(part.inputs)}
        gives = {f"b{place}": tensor for place, tensor in enumerate(part.outputs)}
        on.add(f"m{number}", tensors({a: ("INT64", [-1]) for a in takes}, {b: ("INT64", [-1]) for b in gives}))
        on.delays_s[f"m{number}"] = part.delay_s
        steps.append(step(f"m{number}", takes, gives))
    on.slow = {f"m{number}" for number in slow}
    spec = ("INT64", [-1])
    on.add("whole", ensemble(dict.fromkeys(inputs, spec), dict.fromkeys(outputs, spec), *steps))
    return on


@dataclass
class Naive:
    """What an ensemble should answer, by definition."""

    given: Mapping[str, list[int]]
    parts: Sequence[Part]
    asked: set[int] = field(default_factory=set)

    def value(self, tensor: str) -> tuple[list[int], int]:
        """A tensor, and when it is there."""
        for number, part in enumerate(self.parts):
            if tensor in part.outputs:
                self.asked.add(number)
                found = [self.value(taken) for taken in part.inputs]
                total = np.sum([value for value, _ in found], axis=0) * 3 + part.outputs.index(tensor)
                return total.tolist(), max(at for _, at in found) + part.delay_s
        return self.given[tensor], 0


@given(graphs(), st.data())
def test_an_ensemble_is_what_its_steps_are(graph: tuple[list[str], list[Part], list[str]], data: st.DataObject) -> None:
    inputs, parts, outputs = graph
    wanted = data.draw(st.lists(st.sampled_from(outputs), unique=True), "wanted outputs")
    slow = data.draw(st.sets(st.integers(0, len(parts) - 1)), "steps that need more than their run")
    failing = data.draw(st.none() | st.integers(0, len(parts) - 1), "the step that fails")
    given = {tensor: [number + 1, 10 * number] for number, tensor in enumerate(inputs)}
    naive = Naive(given, parts)
    expected = {tensor: naive.value(tensor) for tensor in wanted or outputs}

    async def main() -> None:
        on, loop = place_of(inputs, parts, outputs, slow), asyncio.get_running_loop()
        if failing is not None:
            on.failing[f"m{failing}"] = ResourceExhausted("no", retry_after_s=3.0)
        began = loop.time()
        if failing in naive.asked:
            with pytest.raises(ResourceExhausted) as caught:
                await on.ask("whole", given, wanted)
            assert caught.value.message == f"in ensemble 'whole', step {failing} (model 'm{failing}'): no"
            assert caught.value.retry_after_s == 3.0
        else:
            assert await on.ask("whole", given, wanted) == {tensor: value for tensor, (value, _) in expected.items()}
            assert loop.time() - began == max(at for _, at in expected.values()), "each step goes as soon as it can"
            assert {int(request.model_name[1:]) for request in on.asked} == naive.asked
        assert len({request.model_name for request in on.asked}) == len(on.asked), "a step was asked twice"
        assert sum(sum(on.codes(f"m{number}").values()) for number in naive.asked) == len(on.asked), "each is counted"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def chain(*models: str, max_batch_size: int = 0, dims: Sequence[int] = (-1,)) -> str:
    """An ensemble of models one behind the other."""
    names = ["x", *(f"t{number}" for number in range(len(models) - 1)), "y"]
    steps = [step(model, {"a": names[i]}, {"b": names[i + 1]}) for i, model in enumerate(models)]
    spec = ("INT64", dims)
    return ensemble({"x": spec}, {"y": spec}, *steps, more=f"max_batch_size: {max_batch_size}")


def place_with(*models: str) -> Place:
    on = Place()
    for name in models:
        on.add(name, tensors(ONE, OUT))
    return on


@virtual
async def test_steps_have_what_their_request_has() -> None:
    on = place_with("first", "second")
    on.add("whole", chain("first", "second"))
    on.delays_s["first"] = 2.0
    assert await on.ask("whole", X, timeout_s=9.0) == {"y": [9]}
    first, second = on.asked
    assert on.expected == ["second"], "what is not loaded is, while the first step runs"
    assert first.context.deadline == second.context.deadline == first.context.received + 9.0
    assert second.context.received == first.context.received + 2.0
    assert (second.context.priority, second.id, isinstance(second.context, StepContext)) == (2, "7", True)
    counted = on.stats.of("whole", "1")
    assert (counted.executions, counted.rows) == (1, 1)


@virtual
async def test_who_goes_away_takes_all_steps_along() -> None:
    on = place_with("first", "left", "right")
    spec = ("INT64", [-1])
    steps = [step("left", {"a": "x"}, {"b": "l"}), step("right", {"a": "x"}, {"b": "r"})]
    on.add("whole", ensemble({"x": spec}, {"l": spec, "r": spec}, *steps))
    on.delays_s, on.slow = {"left": 5.0, "right": 5.0}, {"right"}
    asking = asyncio.create_task(on.ask("whole", X))
    await asyncio.sleep(1.0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [handle.cancelled for handle in on.handles] == [True]
    assert on.codes("left") == on.codes("right") == {Code.CANCELLED: 1}
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_a_failed_step_ends_the_others() -> None:
    on = place_with("left", "right")
    spec = ("INT64", [-1])
    steps = [step("left", {"a": "x"}, {"b": "l"}), step("right", {"a": "x"}, {"b": "r"})]
    on.add("whole", ensemble({"x": spec}, {"l": spec, "r": spec}, *steps))
    on.delays_s, on.failing = {"left": 1.0, "right": 5.0}, {"left": DeadlineExceeded("late")}
    with pytest.raises(DeadlineExceeded, match=r"in ensemble 'whole', step 0 \(model 'left'\): late"):
        await on.ask("whole", X)
    assert on.codes("left") == {Code.DEADLINE_EXCEEDED: 1}
    assert on.codes("right") == {Code.CANCELLED: 1}
    assert await on.ask("whole", X, ["r"]) == {"r": [3]}, "a step that is not needed is not asked"


MISFITS: list[tuple[Specs, Specs, str]] = [
    ({"c": ("INT64", [-1])}, OUT, "mapped to input 'a', which the model does not have; it takes 'c'"),
    ({**ONE, "c": ("INT64", [1])}, OUT, "input 'c' of the model is not mapped"),
    (ONE, {"c": ("INT64", [-1])}, "mapped from output 'b', which the model does not have; it has 'c'"),
    ({"a": ("FP32", [-1])}, OUT, "input 'a': inconsistent data type of ensemble tensor 't0': INT64 from step 0"),
    ({"a": ("INT64", [-1, 2])}, OUT, "input 'a': inconsistent shape of ensemble tensor 't0'"),
    ({"a": ("INT64", [3])}, {"b": ("INT64", [2, 2])}, "output 'y': inconsistent shape of ensemble tensor 'y'"),
    (ONE, {"b": ("FP32", [-1])}, "output 'y': inconsistent data type of ensemble tensor 'y': FP32 from step 1"),
]


@pytest.mark.parametrize(("inputs", "outputs", "reason"), MISFITS)
def test_models_that_do_not_fit_are_refused(inputs: Specs, outputs: Specs, reason: str) -> None:
    @virtual
    async def main() -> None:
        on = place_with("first")
        on.add("second", tensors(inputs, outputs))
        on.add("whole", chain("first", "second"))
        with pytest.raises(Unavailable, match=reason):
            await on.ask("whole", {"x": [1, 2, 3]})
        found = on.catalog.known("whole", "")
        assert found is not None
        assert (found.availability, "'second'" in found.reason) == (Availability.UNAVAILABLE, True)
        assert not on.asked
        on.add("second", tensors(ONE, OUT))  # it is mended
        assert await on.ask("whole", X) == {"y": [9]}
        assert found.availability is Availability.READY

    main()


BATCHED = "max_batch_size: 4\n"
SHAPES: list[tuple[int, str, str, list[Any], Any]] = [
    (4, BATCHED, BATCHED, [[1, 2], [3, 4]], [[9, 18], [27, 36]]),
    (4, BATCHED, "", [[1, 2]], [[9, 18]]),  # a model that does not batch gets the only row
    (0, BATCHED, "", [1, 2], [9, 18]),
    (0, "", BATCHED, [1, 2], [9, 18]),
    (2, BATCHED, "max_batch_size: 1\n", [], "maximum batch size of 2, but the model one of 1"),
]


@pytest.mark.parametrize(("batch", "first", "second", "given_x", "expected"), SHAPES)
def test_batches_and_single_rows_meet(batch: int, first: str, second: str, given_x: Any, expected: Any) -> None:
    @virtual
    async def main() -> None:
        on = Place()
        spec = {"a": ("INT64", [2])}, {"b": ("INT64", [2])}
        on.add("first", first + tensors(*spec))
        on.add("second", second + tensors(*spec))
        on.add("whole", chain("first", "second", max_batch_size=batch, dims=[2]))
        if isinstance(expected, str):
            with pytest.raises(Unavailable, match=expected):
                await on.ask("whole", {"x": given_x})
        else:
            assert await on.ask("whole", {"x": given_x}) == {"y": expected}

    main()


@virtual
async def test_ensembles_of_ensembles() -> None:
    on = place_with("plain")
    on.add("inner", chain("plain", "plain"))
    spec = ("INT64", [-1])
    on.add("outer", ensemble({"in": spec}, {"out": spec}, step("inner", {"x": "in"}, {"y": "out"})))
    assert await on.ask("outer", {"in": [1]}) == {"out": [9]}
    assert on.codes("inner") == {None: 1}
    assert on.codes("plain") == {None: 2}
    on.failing["plain"] = Internal("broken")
    with pytest.raises(Internal, match=r"in ensemble 'outer', step 0 .*: in ensemble 'inner', step 0 .*: broken"):
        await on.ask("outer", {"in": [1]})


@virtual
async def test_ensembles_that_come_to_very_many_requests_are_refused() -> None:
    on = place_with("layer0")
    spec = ("INT64", [-1])
    for depth in range(1, 11):
        steps = [step(f"layer{depth - 1}", {"a": "a"}, {"b": tensor}) for tensor in ("b", "c")]
        on.add(f"layer{depth}", ensemble({"a": spec}, {"b": spec, "c": spec}, *steps))
    assert await on.ask("layer3", {"a": [1]}, ["b"]) == {"b": [3]}
    with pytest.raises(Unavailable, match="'layer10' would come to 1024 requests, more than the limit of 1000"):
        await on.ask("layer10", {"a": [1]})


@virtual
async def test_circles_of_ensembles_are_refused_and_end_where_they_came_about_unseen() -> None:
    on = place_with("plain")
    spec = ("INT64", [-1])

    def around(name: str) -> str:
        return ensemble({"x": spec}, {"y": spec}, step(name, {"x": "x"}, {"y": "y"}))

    on.add("one", around("two"))
    on.add("two", around("one"))
    with pytest.raises(Unavailable, match="circular dependency between ensembles: one -> two -> one"):
        await on.ask("one", X)
    plain = on.add("one", chain("plain"))
    assert await on.ask("two", X) == {"y": [3]}
    two = on.catalog.known("two", "")
    assert two is not None
    on.add("one", around("two")).plan = plain.plan = two.revision.plan  # as if it had been checked before
    request = request_to("two", X)
    request.context = StepContext(0.0, depth=MAX_DEPTH + 1)
    with pytest.raises(Unavailable, match="nested in one another more than"):
        await on._infer(request)


@virtual
async def test_what_is_not_there_is_named() -> None:
    on = place_with("first")
    whole = on.add("whole", chain("first", "second"))
    with pytest.raises(Unavailable, match=r"in ensemble 'whole', step 1 \(model 'second'\): Request for unknown model"):
        await on.ask("whole", X)
    assert not await on.ensembles.ready(whole)
    assert on.ensembles.missing(whole) == "ensemble 'whole' depends on 'second' which has no loaded version"
    on.add("second", tensors(ONE, OUT))
    assert await on.ensembles.ready(whole)
    assert not on.ensembles.missing(whole)
    assert await on.ask("whole", X) == {"y": [9]}
    found = on.catalog.known("second", "")
    assert found is not None
    found.availability, found.reason = Availability.UNAVAILABLE, UNLOADED
    with pytest.raises(Unavailable, match=r"step 1 \(model 'second'\): .* has no available versions"):
        await on.ask("whole", X)
    assert not await on.ensembles.ready(whole)


@virtual
async def test_a_step_that_streams_has_its_ensemble_stream() -> None:
    on = place_with("before", "behind", "side")
    on.add("stream", tensors(ONE, OUT) + DECOUPLED)
    on.streams["stream"] = 3
    spec = ("INT64", [-1])
    steps = [
        step("behind", {"a": "s"}, {"b": "y"}),
        step("stream", {"a": "t"}, {"b": "s"}),
        step("before", {"a": "x"}, {"b": "t"}),
        step("side", {"a": "x"}, {"b": "z"}),
    ]
    on.add("whole", ensemble({"x": spec}, {"y": spec, "z": spec}, *steps))
    with pytest.raises(Unimplemented, match="decoupled transaction policy"):
        await on.ask("whole", X)
    responses = await on.stream("whole", X)
    assert [response.final for response in responses] == [False, False, False, True]
    assert [[to_array(t).tolist() for t in r.outputs] for r in responses] == [[[27 + 3 * n], [3]] for n in range(3)] + [
        []
    ]
    assert [on.codes(name) for name in ("before", "side", "stream", "behind")] == [{None: 1}] * 3 + [{None: 3}]
    assert await on.ask("whole", X, ["z"]) == {"z": [3]}, "what does not need the stream is answered once"
    on.failing["stream"] = Internal("torn")
    with pytest.raises(Internal, match=r"in ensemble 'whole', step 1 \(model 'stream'\): torn"):
        await on.stream("whole", X)
    on.add("outer", ensemble({"x": spec}, {"y": spec}, step("whole", {"x": "x"}, {"y": "y"})))
    del on.failing["stream"]
    assert len(await on.stream("outer", X)) == 4
    on.add("side", tensors(ONE, OUT) + DECOUPLED)
    with pytest.raises(Unavailable, match=r"only one step may be decoupled: step 1 .* and step 3"):
        await on.ask("whole", X)


@virtual
async def test_inputs_that_may_be_left_out() -> None:
    on = Place()
    config = tensors({**ONE, "c": ("INT64", [-1])}, OUT)
    on.add("model", config.replace('name: "c"', 'name: "c" optional: true'))
    spec = ("INT64", [-1])
    whole = ensemble({"x": spec, "more": spec}, {"y": spec}, step("model", {"a": "x", "c": "more"}, {"b": "y"}))
    on.add("whole", whole.replace('name: "more"', 'name: "more" optional: true'))
    assert await on.ask("whole", {**X, "more": [2]}) == {"y": [9]}
    assert await on.ask("whole", X) == {"y": [3]}


@virtual
async def test_a_step_that_leaves_out_an_output() -> None:
    on = place_with("first")
    on.add("whole", chain("first"))
    on.silent.add("first")
    with pytest.raises(Internal, match=r"step 0 \(model 'first'\): it did not answer with 'y'"):
        await on.ask("whole", X)


@virtual
async def test_steps_follow_routes() -> None:
    text = {"name": "first", "targets": [{"model": "canary"}]}
    on = Place(traffic=parse_routes({"routes": [text]}, "here"))
    on.add("canary", tensors(ONE, OUT))
    on.add("whole", chain("first"))
    assert await on.ask("whole", X) == {"y": [3]}
    assert on.codes("canary") == {None: 1}


@virtual
async def test_a_sequence_is_echoed() -> None:
    on = place_with("first")
    on.add("whole", chain("first"))
    request = request_to("whole", X)
    request.parameters = {"sequence_id": 4, "sequence_start": True, "other": "x"}
    response = await on._infer(request)
    assert response.parameters == {"sequence_id": 4, "sequence_start": True}
    assert on.asked[0].parameters == request.parameters


@virtual
async def test_nothing_is_left_of_a_request_that_has_ended() -> None:
    on = place_with("first", "second", "slow")
    on.slow, on.failing = {"slow"}, {"other": Internal("no")}
    on.add("other", tensors(ONE, OUT))
    on.add("whole", chain("first", "slow", "second"))
    on.add("failing", chain("first", "slow", "other"))
    gc.collect()
    gc.disable()
    try:
        large = {"x": range(1000)}  # which is no copy
        await on.ask("whole", large)
        with pytest.raises(Internal):
            await on.ask("failing", large)
        on.handles.clear()
        left = [weakref.ref(cast(memoryview, tensor.data).obj) for request in on.asked for tensor in request.inputs]
        on.asked.clear()
        await asyncio.sleep(0)  # the loop has just handed over the outcome
        assert [memory() is None for memory in left] == [True] * 6
    finally:
        gc.enable()

"""Who may run a batch when runs share resources: the pure rules, and a mesh that keeps them."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from roost.core.errors import FailedPrecondition, Internal, Unavailable
from roost.proto import model_config_pb2 as mc
from roost.registry_client.instance_groups import Demand, Resource, demand_of
from roost.router.rate_limits import Grant, RateLimit, RateLimiter
from roost.router.revision import Revision
from roost.server.rate_limit_specs import rate_limits, read_rate_limit

from tests.unit.mesh_fakes import Bed, Farm, bed
from tests.virtual_time import settle, virtual

CPU = "cpu"


def demand(priority: int = 1, **counts: int) -> Demand:
    return Demand(tuple(Resource(name, count) for name, count in sorted(counts.items())), priority)


def turns(limiter: RateLimiter, demands: dict[str, Demand], count: int) -> list[str]:
    """Who gets a turn, one after the other, if all always want one and each run ends before the next begins."""
    served: list[str] = []
    grants: list[Grant] = []
    for owner, wanted in demands.items():
        granted = limiter.begin(owner, wanted, CPU)
        grants += [granted] if granted is not None else []
    while len(served) < count:
        grant = grants.pop()
        served.append(str(grant.owner))
        limiter.end(grant)
        granted = limiter.begin(grant.owner, demands[str(grant.owner)], CPU)
        if granted is None:
            head = limiter.next()[0]
            granted = limiter.begin(head, demands[str(head)], CPU)
        assert granted is not None
        grants.append(granted)
    return served


def test_turns_are_weighed_by_priority() -> None:
    assert turns(RateLimiter(), {"a": demand(R=1), "b": demand(R=1)}, 6) == ["a", "b"] * 3
    served = turns(RateLimiter(), {"a": demand(1, R=1), "b": demand(2, R=1)}, 30)
    assert served.count("a") == 2 * served.count("b")


def test_who_comes_late_has_no_claim_to_turns_before() -> None:
    limiter = RateLimiter()
    for _ in range(100):
        grant = limiter.begin("a", demand(R=1), CPU)
        assert grant is not None
        limiter.end(grant)
    assert turns(limiter, {"a": demand(R=1), "b": demand(R=1)}, 6).count("b") == 3


def test_a_large_demand_is_not_overtaken_and_other_resources_go_on() -> None:
    limiter = RateLimiter([RateLimit("R", 3), RateLimit("S", 1)])
    first, second = limiter.begin("a", demand(R=2), CPU), limiter.begin("b", demand(R=3), CPU)
    assert first is not None
    assert second is None
    assert limiter.begin("c", demand(R=1), CPU) is None, "there is one unit, but that is what b waits for"
    assert limiter.begin("d", demand(S=1), CPU) is not None
    limiter.end(first)
    assert limiter.next() == ["b"]
    assert limiter.withdraw("b")
    assert limiter.next() == ["c"]


def test_devices_have_units_of_their_own_but_of_what_is_global() -> None:
    limiter = RateLimiter([RateLimit("R", 1), RateLimit("R", 2, "cuda:1"), RateLimit("G", 1)])
    for device in (CPU, "cuda:0", "cuda:1", "cuda:1"):
        assert limiter.begin(object(), demand(R=1), device) is not None
    for device in (CPU, "cuda:0", "cuda:1"):
        assert limiter.begin(object(), demand(R=1), device) is None
    everywhere = Demand((Resource("G", 1, is_global=True),))
    assert limiter.begin("x", everywhere, CPU) is not None
    assert limiter.begin("y", everywhere, "cuda:1") is None


def test_too_little_is_said_and_never_waited_for() -> None:
    limiter = RateLimiter([RateLimit("R", 2), RateLimit("R", 3, "cuda:0")])
    limiter.check(demand(R=3, S=100))
    with pytest.raises(FailedPrecondition, match=r'"R" is limited to 3 which will prevent .* required count is 4'):
        limiter.check(demand(R=4))
    assert limiter.begin("a", demand(R=3), CPU) is not None, "nobody else has any"


@pytest.mark.parametrize(
    ("spec", "limit"),
    [
        ("R1:4", RateLimit("R1", 4)),
        ("a b:1:0", RateLimit("a b", 1, "cuda:0")),
        ("R:7:cuda:12", RateLimit("R", 7, "cuda:12")),
        ("R:7:cpu", RateLimit("R", 7, CPU)),
    ],
)
def test_flags(spec: str, limit: RateLimit) -> None:
    assert read_rate_limit(spec) == limit


@pytest.mark.parametrize("spec", ["R", ":1", "R:", "R:0", "R:-1", "R:1:tpu", "R:99999999999", "R:1:", "R:1.5"])
def test_flags_that_make_no_sense(spec: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        read_rate_limit(spec)


def test_what_is_said_last_of_a_resource_counts() -> None:
    assert rate_limits(["R:1", "R:2:cpu", "R:3"]) == (RateLimit("R", 3), RateLimit("R", 2, CPU))


def test_the_most_of_several_groups_counts() -> None:
    config = mc.ModelConfig()
    assert demand_of(config) is None
    for priority, counts in ((2, {"R": 1, "S": 4}), (3, {"R": 5, "Z": 0})):
        resources = [{"name": name, "count": count} for name, count in counts.items()]
        config.instance_group.add(rate_limiter={"priority": priority, "resources": resources})
    assert demand_of(config) == demand(2, R=5, S=4)


class Limits(RuleBasedStateMachine):
    """Against what has to hold whatever comes: limits, and nobody waits who could go."""

    @initialize(limits=st.fixed_dictionaries({"R": st.integers(1, 4), "S": st.integers(1, 4)}))
    def begin(self, limits: dict[str, int]) -> None:
        self.limits = limits
        self.limiter = RateLimiter([RateLimit(name, count) for name, count in limits.items()])
        self.grants: list[Grant] = []
        self.waiting: dict[int, Demand] = {}

    @rule(owner=st.integers(0, 5), counts=st.tuples(st.integers(0, 4), st.integers(0, 4)), priority=st.integers(1, 3))
    def ask(self, owner: int, counts: tuple[int, int], priority: int) -> None:
        wanted = self.waiting.get(owner) or demand(
            priority, **{name: min(n, self.limits[name]) for name, n in zip("RS", counts, strict=True) if n}
        )
        self._ask(owner, wanted)

    def _ask(self, owner: int, wanted: Demand) -> None:
        granted = self.limiter.begin(owner, wanted, CPU)
        if granted is None:
            self.waiting[owner] = wanted
            return
        self.grants.append(granted)
        self.waiting.pop(owner, None)

    @rule(place=st.integers(0, 20))
    def end(self, place: int) -> None:
        if self.grants:
            self.limiter.end(self.grants.pop(place % len(self.grants)))
            self._go_on()

    @rule(owner=st.integers(0, 5))
    def withdraw(self, owner: int) -> None:
        assert self.limiter.withdraw(owner) == (self.waiting.pop(owner, None) is not None)
        self._go_on()

    def _go_on(self) -> None:
        for owner in self.limiter.next():
            assert isinstance(owner, int)
            self._ask(owner, self.waiting[owner])

    @invariant()
    def limits_hold_and_nothing_lies_idle(self) -> None:
        if not hasattr(self, "limiter"):
            return
        held = dict.fromkeys(self.limits, 0)
        for grant in self.grants:
            for pool, count in grant.units.items():
                held[pool.name] += count
        assert all(held[name] <= self.limits[name] for name in held)
        assert not self.limiter.next(), "somebody could go and does not"
        if not self.grants:
            assert not self.waiting

    def teardown(self) -> None:
        while getattr(self, "grants", None):
            self.end(0)
        assert not getattr(self, "waiting", None)


TestLimits = Limits.TestCase
TestLimits.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def limited(on: Bed, name: str, count: int = 1, priority: int = 1, **more: Any) -> Revision:
    limiter = {"priority": priority, "resources": [{"name": "R", "count": count}]}
    return on.model(name, 10, instance_group=[{"rate_limiter": limiter}], **more)


@virtual
async def test_runs_of_different_models_take_turns() -> None:
    async with bed(slots=4, rate_limits=(RateLimit("R", 1),)) as on:
        a, b, free = limited(on, "a"), limited(on, "b"), on.model("free", 10)
        await on.make_resident(a, b, free)
        for _ in range(3):
            for model in (a, b, free):
                on.submit(model)
        await settle()
        assert [job.model for job in on.farm.jobs].count("free") == 3, "who needs nothing waits for nobody"
        order = []
        while jobs := [job for job in on.farm.jobs if job.model != "free"]:
            (job,) = jobs
            order.append(job.model)
            job.answer()
            await settle()
        assert order == ["a", "b"] * 3
        on.answer_all()


@virtual
async def test_without_the_flag_nothing_is_waited_for() -> None:
    async with bed(slots=4) as on:
        a = limited(on, "a", 100)
        await on.make_resident(a)
        on.submit(a)
        on.submit(a)
        await settle()
        assert len(on.farm.jobs) == 2
        on.answer_all()


@virtual
async def test_who_gives_up_lets_others_go() -> None:
    async with bed(slots=4, rate_limits=(RateLimit("R", 2),)) as on:
        small, large = limited(on, "small", 1), limited(on, "large", 2)
        await on.make_resident(small, large)
        first = on.submit(small)
        await settle()
        waiting, behind, late = on.submit(large), on.submit(small), on.submit(large, timeout_s=5.0)
        await settle()
        waiting.cancel()
        await settle()
        assert len(on.farm.jobs) == 1, "one unit is free, but it is what the large one waits for"
        await asyncio.sleep(6.0)
        assert late.future.exception() is not None
        assert len(on.farm.jobs) == 2, "nobody waits for the other unit any more"
        on.answer_all()
        await asyncio.gather(first.future, behind.future)


@virtual
async def test_whose_client_has_gone_keeps_nobody_waiting() -> None:
    async with bed(slots=4, rate_limits=(RateLimit("R", 2),)) as on:
        small, large = limited(on, "small", 1), limited(on, "large", 2)
        await on.make_resident(small, large)
        on.submit(small)
        await settle()
        waiting = on.submit(large)
        on.submit(small)
        await settle()
        waiting.cancel()
        assert len(on.farm.jobs) == 2
        on.answer_all()


@virtual
async def test_who_needs_nothing_any_more_keeps_nobody_waiting() -> None:
    async with bed(slots=4, rate_limits=(RateLimit("R", 2),)) as on:
        small, large = limited(on, "small", 1), limited(on, "large", 2)
        await on.make_resident(small, large)
        on.submit(small)
        await settle()
        released, behind = on.submit(large), on.submit(small)
        await settle()
        large.redescribe(on.model("without", 10).description)
        on.job(small).answer()
        await settle()
        on.job(large).answer()
        on.job(small).answer()
        await settle()
        assert released.future.done()
        assert behind.future.done()


@virtual
async def test_a_lost_worker_holds_nothing() -> None:
    async with bed(workers=2, budget=100, rate_limits=(RateLimit("R", 1),)) as on:
        a, b = limited(on, "a", backend="dummy"), limited(on, "b")
        await on.make_resident(a, b)
        lost, waits = on.submit(a), on.submit(b)
        await settle()
        (job,) = on.farm.jobs
        job.start()
        job.process.kill()
        await settle()
        with pytest.raises(Unavailable):
            await lost.future
        while not waits.future.done():
            await asyncio.sleep(1.0)
            on.answer_all()


@virtual
async def test_who_has_no_place_to_run_gives_its_turn_to_others() -> None:
    async with bed(workers=2, slots=2, rate_limits=(RateLimit("R", 1),)) as on:
        models = [limited(on, name) for name in "abc"]
        await on.make_resident(*models)
        first = next(m for m in models if sum(on.process_of(m) is on.process_of(other) for other in models) == 1)
        runs, last = (model for model in models if model is not first)
        on.submit(runs)
        await settle()
        on.submit(first)
        await settle()
        on.submit(last)
        on.farm.on_call = Farm.loads_held
        on.process_of(first).kill()
        await settle()
        on.job(runs).answer()
        await settle()
        on.job(last).answer()
        on.farm.on_call = Farm.soon
        on.call(first).succeed()
        await settle()
        on.job(first).answer()


@virtual
async def test_a_model_that_can_never_run_is_not_loaded() -> None:
    async with bed(rate_limits=(RateLimit("R", 1),)) as on:
        a = limited(on, "a", 4)
        with pytest.raises(Unavailable, match='Resource count for "R" is limited to 1'):
            await on.infer(a)
        assert not on.farm.loads_done


ACTIONS = st.lists(st.tuples(st.sampled_from(["ask", "answer", "fail", "cancel", "kill", "wait"]), st.integers(0, 5)))


@given(actions=ACTIONS)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_limits_hold_and_everybody_is_answered(actions: list[tuple[str, int]]) -> None:
    needs = {"one": 1, "two": 2, "all": 3}

    @virtual
    async def play() -> None:
        async with bed(workers=2, slots=3, rate_limits=(RateLimit("R", 3),)) as on:
            models = [limited(on, name, count) for name, count in needs.items()]
            await on.make_resident(*models)
            for action, number in [*actions, *[("answer", 0)] * 40]:
                _act(on, models, action, number)
                await asyncio.sleep(1.0)
                assert sum(needs[job.model] for job in on.farm.jobs) <= 3
                if not on.farm.jobs:
                    assert not any(model.queue for model in models if model.resident()), "somebody could run"
            for sent in on.sent:
                assert sent.future.done()

    play()


def _act(on: Bed, models: list[Revision], action: str, number: int) -> None:
    jobs, sent = on.farm.jobs, [sent for sent in on.sent if not sent.future.done()]
    if action == "ask":
        on.submit(models[number % len(models)], timeout_s=30.0 if number > 3 else math.inf)
    elif action == "answer" and jobs:
        jobs[number % len(jobs)].answer()
    elif action == "fail" and jobs:
        jobs[number % len(jobs)].fail(Internal("no"))
    elif action == "cancel" and sent:
        sent[number % len(sent)].cancel()
    elif action == "kill" and jobs:
        jobs[number % len(jobs)].process.kill()

"""Inference graphs: which steps are asked, with what, and whose answer it is in the end."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import NotFound, RoostError, Unavailable
from roost.router.graph_conditions import Condition
from roost.router.graphs import ROOT, Graph, GraphFailed, GraphRun, Node, NotRouted, Routing, Step

from tests.virtual_time import settle, virtual

BELOW_ONE = 1 - 2**-53  # the largest draw


@dataclass
class Said:
    """A request or an answer: its JSON."""

    document: Any
    failure: RoostError | None = None

    async def meets(self, condition: Condition) -> bool:
        return condition.holds(self.document)


@dataclass
class Models:
    """Each answers what it was asked with its name behind it; those in ``down`` fail."""

    down: frozenset[str] = frozenset()
    waits: frozenset[str] = frozenset()
    asked: list[tuple[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, step: Step, given_: Said) -> Said:
        self.asked.append((step.model, given_.document))
        if step.model in self.waits:
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled.append(step.model)
                raise
        return self.answer(step, given_)

    def answer(self, step: Step, given_: Said) -> Said:
        if step.model in self.down:
            return Said({"error": step.model}, Unavailable(step.model))
        return Said({step.model: given_.document})


def merge(answers: Mapping[str, Said]) -> Said:
    return Said({key: answer.document for key, answer in answers.items()})


def graph(root: Node, **nodes: Node) -> Graph:
    return Graph("g", {ROOT: root, **nodes})


def node(routing: Routing, *steps: Step) -> Node:
    return Node(routing, steps)


sequence = partial(node, Routing.SEQUENCE)
ensemble = partial(node, Routing.ENSEMBLE)
switch = partial(node, Routing.SWITCH)
splitter = partial(node, Routing.SPLITTER)


def step(model: str, **fields: Any) -> Step:
    condition = fields.pop("condition", None)
    return Step(model, model=model, condition=Condition(condition) if condition else None, **fields)


def to(name: str, **fields: Any) -> Step:
    condition = fields.pop("condition", None)
    return Step(name, node=name, condition=Condition(condition) if condition else None, **fields)


async def ask(asked: Graph, models: Models, document: Any = "q", draw: float = 0.0) -> Said:
    run: GraphRun[Said, Said] = GraphRun(asked, models.ask, merge, lambda: draw)
    return await run.answer(Said(document))


SOFT, HARD = {"hard": False}, {"hard": True}
BEHIND = {"takes_response": True}


@pytest.mark.parametrize(
    ("root", "down", "expected", "fails"),
    [
        (sequence(step("a"), step("b")), "", {"b": "q"}, False),
        (sequence(step("a"), step("b", **BEHIND)), "", {"b": {"a": "q"}}, False),
        (sequence(step("a", **BEHIND), step("b")), "", {"b": "q"}, False),  # there is nothing before the first
        (sequence(step("a"), step("b", **BEHIND), step("c")), "", {"c": "q"}, False),
        (sequence(step("a"), step("b", condition="a", **BEHIND)), "", {"b": {"a": "q"}}, False),
        (sequence(step("a"), step("b", condition="x"), step("c")), "", {"a": "q"}, False),
        (sequence(step("a", **SOFT), step("b", **BEHIND)), "a", {"b": {"error": "a"}}, False),
        (sequence(step("a", **HARD), step("b", **BEHIND)), "a", {"error": "a"}, True),
        (sequence(step("a"), step("b")), "b", {"error": "b"}, True),  # the last one's failure, soft as it is
        (sequence(step("a"), step("b", condition="x")), "a", {"error": "a"}, True),
        (ensemble(step("a"), step("b")), "", {"a": {"a": "q"}, "b": {"b": "q"}}, False),
        (ensemble(step("a"), step("b")), "ab", {"a": {"error": "a"}, "b": {"error": "b"}}, False),
        (ensemble(step("a"), step("b", **HARD), step("c", **HARD)), "abc", {"error": "b"}, True),
        (splitter(step("a", weight=0), step("b", weight=100)), "", {"b": "q"}, False),
        (splitter(step("a", weight=100, **SOFT)), "a", {"error": "a"}, True),
        (switch(step("a", condition="x"), step("b", condition="@this")), "", {"b": "q"}, False),
        (switch(step("a", condition="@this"), step("b", condition="@this")), "", {"a": "q"}, False),
    ],
)
async def test_nodes(root: Node, down: str, expected: Any, fails: bool) -> None:
    answer = await ask(graph(root), Models(frozenset(down)))
    assert (answer.document, answer.failure is not None) == (expected, fails)


async def test_nodes_lead_to_nodes() -> None:
    root = sequence(to("both"), to("one", **BEHIND, condition="b.b"))
    both = ensemble(step("a"), step("b"))
    models = Models()
    answer = await ask(graph(root, both=both, one=switch(step("c", condition="a"))), models)
    assert answer.document == {"c": {"a": {"a": "q"}, "b": {"b": "q"}}}
    assert [model for model, _ in models.asked] == ["a", "b", "c"]


async def test_a_switch_that_nothing_fits() -> None:
    nothing = switch(step("a", condition="x"), step("b", condition="y"))
    with pytest.raises(NotRouted) as at_root:
        await ask(graph(nothing), Models())
    assert isinstance(at_root.value, NotFound)
    assert at_root.value.cause == "None of the routes matched with the switch condition"
    assert at_root.value.message == f"Failed to process request: {at_root.value.cause}"
    for root in (
        sequence(step("a"), to("n")),
        splitter(to("n", weight=100)),
        switch(to("n", condition="@this")),
        ensemble(step("a"), to("n", **SOFT)),
    ):
        with pytest.raises(GraphFailed, match=r"switch condition of node 'n'$"):
            await ask(graph(root, n=nothing), Models())


@virtual
async def test_steps_of_an_ensemble_run_side_by_side() -> None:
    models = Models(waits=frozenset("abc"))
    asking = asyncio.ensure_future(ask(graph(ensemble(*map(step, "abc"))), models))
    await settle()
    assert [model for model, _ in models.asked] == ["a", "b", "c"]
    models.go.set()
    assert list((await asking).document) == ["a", "b", "c"]


@virtual
async def test_nobody_waits_for_the_others_once_a_hard_step_has_failed() -> None:
    models = Models(frozenset("b"), waits=frozenset("c"))
    answer = await ask(graph(ensemble(step("a"), step("b", **HARD), step("c"))), models)
    assert (answer.document, models.cancelled) == ({"error": "b"}, ["c"])


@virtual
async def test_cancelling_cancels_all_steps() -> None:
    models = Models(waits=frozenset("bc"))
    root = sequence(step("a"), to("both"), step("d"))
    asking = asyncio.ensure_future(ask(graph(root, both=ensemble(step("b"), step("c"))), models))
    await settle()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (sorted(models.cancelled), [model for model, _ in models.asked]) == (["b", "c"], ["a", "b", "c"])


async def test_shares_follow_the_weights() -> None:
    weights = {"a": 5, "b": 0, "c": 25, "d": 70}
    root = splitter(*(step(name, weight=weight) for name, weight in weights.items()))
    draws = random.Random(20261122)
    total = 20_000
    seen = Counter(root.pick(draws.random()).model for _ in range(total))
    assert seen["b"] == 0
    chi_square = sum((seen[name] - total * w / 100) ** 2 / (total * w / 100) for name, w in weights.items() if w)
    assert chi_square < 13.8  # 2 degrees of freedom, p = 0.001


@given(
    st.lists(st.integers(0, 100), max_size=4).filter(lambda head: sum(head) <= 100),
    st.floats(0, BELOW_ONE) | st.sampled_from([0.0, BELOW_ONE]),
)
def test_a_draw_takes_the_step_whose_part_it_is_in(head: list[int], draw: float) -> None:
    weights = [*head, 100 - sum(head)]
    root = splitter(*(step(f"s{i}", weight=weight) for i, weight in enumerate(weights)))
    index = int(root.pick(draw).model[1:])
    edges = [0, *itertools.accumulate(weights)]
    assert edges[index] <= draw * 100 < edges[index + 1]


def naive(nodes: Mapping[str, Node], name: str, given_: Said, models: Models, draw: Callable[[], float]) -> Said:
    """What a graph answers, one step after the other."""

    def at(one: Step, asked: Said) -> Said:
        return naive(nodes, one.node, asked, models, draw) if one.node else models.answer(one, asked)

    steps = nodes[name].steps
    if nodes[name].routing is Routing.SPLITTER:
        point, total = draw() * 100, 0
        for one in steps:
            total += one.weight
            if point < total:
                return at(one, given_)
    if nodes[name].routing is Routing.SWITCH:
        for one in steps:
            if one.condition is not None and one.condition.holds(given_.document):
                return at(one, given_)
        raise NotRouted
    if nodes[name].routing is Routing.ENSEMBLE:
        answers = {}
        for one in steps:
            answers[one.key] = at(one, given_)
            if one.hard and answers[one.key].failure:
                return answers[one.key]
        return merge(answers)
    last: Said | None = None
    for one in steps:
        if last is not None and one.condition is not None and not one.condition.holds(last.document):
            break
        last = at(one, last if one.takes_response and last is not None else given_)
        if one.hard and last.failure:
            break
    assert last is not None
    return last


MODELS = "abcd"


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Node]:
    """Nodes that lead only to those after them."""
    names = [ROOT, "n1", "n2", "n3"]
    nodes = {}
    for index, name in enumerate(names):
        routing = draw(st.sampled_from(list(Routing)))
        count = draw(st.integers(1, 3))
        cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=count - 1, max_size=count - 1)))
        weights = [b - a for a, b in itertools.pairwise([0, *cuts, 100])]
        steps = []
        for place in range(count):
            target = draw(st.sampled_from([*MODELS, *names[index + 1 :]]))
            condition = draw(st.sampled_from(["@this", "a", "error", "*.b"]))
            steps.append(
                Step(
                    str(place),
                    node=target if target not in MODELS else "",
                    model=target if target in MODELS else "",
                    takes_response=draw(st.booleans()),
                    condition=Condition(condition) if routing is Routing.SWITCH or draw(st.booleans()) else None,
                    weight=weights[place],
                    hard=draw(st.booleans()),
                )
            )
        nodes[name] = Node(routing, tuple(steps))
    return nodes


@settings(max_examples=150, deadline=None)
@given(graphs(), st.frozensets(st.sampled_from(MODELS), max_size=2), st.floats(0, BELOW_ONE))
def test_graphs_answer_as_a_naive_evaluation(nodes: dict[str, Node], down: frozenset[str], draw: float) -> None:
    def outcome(run: Callable[[], Said]) -> Any:
        try:
            answer = run()
        except (NotRouted, GraphFailed):
            return None
        return answer.document, answer.failure is not None

    models = Models(down)
    expected = outcome(lambda: naive(nodes, ROOT, Said({"a": 1}), models, lambda: draw))
    with asyncio.Runner() as runner:
        assert outcome(lambda: runner.run(ask(Graph("g", nodes), models, {"a": 1}, draw))) == expected

"""Whose turn it is: the table of sequences against a naive one, and each of its rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from roost.core.errors import Aborted, InvalidArgument, ResourceExhausted, RoostError
from roost.router.sequence import CorrelationId, Sequence, SequenceBudget, Turn
from roost.router.sequence_table import SequenceTable

IDLE_S = 10.0


@dataclass(eq=False)
class Asked:
    """A request: its turn, and what its client was told of it."""

    turn: Turn
    told: list[RoostError | None] = field(default_factory=list)

    def may_run(self) -> bool:
        return self.told == [None]

    @property
    def error(self) -> RoostError | None:
        return self.told[-1] if self.told else None


class Place:
    """A table, and what it has told."""

    def __init__(self, places: int = 2, max_sequences: int = 100, max_waiting: int = 100) -> None:
        self.budget = SequenceBudget(max_sequences, 1000, max_waiting)
        self.ended: list[CorrelationId] = []
        self.table = SequenceTable(
            "m", places=places, idle_s=IDLE_S, budget=self.budget, when_ended=lambda s: self.ended.append(s.id)
        )

    def ask(self, id_: CorrelationId, flags: str = "", now: float = 0.0) -> Asked:
        """``s`` in the flags begins a sequence, ``e`` ends it."""
        turn = self.table.enter(id_, start="s" in flags, end="e" in flags, now=now)
        asked = Asked(turn, [None] if turn.phase.name == "HERE" else [])
        turn.told = asked.told.append
        return asked

    def done(self, asked: Asked, now: float = 0.0, *, ok: bool = True) -> None:
        self.table.over(asked.turn, now, ok=ok)

    def sequence(self, id_: CorrelationId) -> Sequence:
        return next(sequence for sequence in self.table if sequence.id == id_)


def test_one_request_of_a_sequence_at_a_time_in_order() -> None:
    at = Place()
    first, second, third = at.ask(1, "s"), at.ask(1), at.ask(1, "e")
    assert [a.may_run() for a in (first, second, third)] == [True, False, False]
    at.done(first)
    assert second.may_run()
    assert not third.may_run()
    at.done(second)
    at.done(third)
    assert at.ended == [1]
    assert (at.budget.sequences, at.table.waiting) == (0, 0)


@pytest.mark.parametrize("id_", [7, "seven"])
def test_a_sequence_has_to_be_begun_and_can_be_begun_again(id_: CorrelationId) -> None:
    at = Place()
    with pytest.raises(
        InvalidArgument, match=f"^inference request for sequence {id_} to model 'm' must specify the START"
    ):
        at.ask(id_)
    first = at.ask(id_, "se")
    with pytest.raises(InvalidArgument, match="START"):
        at.ask(id_)  # nothing follows the last one
    again = at.ask(id_, "s")  # though another one may begin, behind it
    at.done(first)
    assert again.may_run()
    assert at.ended == []
    assert len(at.table) == 1


def test_numbers_and_texts_are_different_ids() -> None:
    at = Place()
    at.ask(5, "s")
    with pytest.raises(InvalidArgument, match="START"):
        at.ask("5")


def test_a_sequence_waits_for_a_place() -> None:
    at = Place(places=1)
    first, second, third = at.ask(1, "s"), at.ask(2, "s"), at.ask(3, "s")
    behind = at.ask(2, "e")
    assert [a.may_run() for a in (first, second, third)] == [True, False, False]
    at.done(first)
    assert not second.may_run()  # the first sequence has not ended
    at.done(at.ask(1, "e"))
    assert second.may_run()
    assert at.sequence(2).place == 0
    at.done(third, ok=False)  # it does not wait any longer
    at.done(second)
    at.done(behind)
    assert at.ended == [1, 3, 2]


def test_what_came_behind_a_request_that_failed_is_not_run() -> None:
    at = Place()
    first, second, third, other = at.ask(1, "s"), at.ask(1), at.ask(1), at.ask(1, "s")
    at.done(first)
    at.done(second, ok=False)
    assert isinstance(third.error, Aborted)
    assert "lost a request" in third.error.message
    assert other.may_run()  # it does not depend on them
    at.done(other)
    at.done(at.ask(1))


@pytest.mark.parametrize(("flags", "goes_on"), [("", True), ("s", False), ("e", False)])
def test_what_a_failure_leaves_of_a_sequence(flags: str, goes_on: bool) -> None:
    at = Place()
    at.done(at.ask(1, "s"))
    at.done(at.ask(1, flags), ok=False)
    assert (1 in at.table) is goes_on


def test_sequences_that_nobody_uses_end() -> None:
    at = Place(places=1)
    at.done(at.ask(1, "s"), 5.0)
    waits = at.ask(2, "s", 6.0)
    assert at.table.expires_at == 15.0
    at.table.expire(14.9)
    assert not waits.may_run()
    busy = at.ask(1, "", 14.9)
    at.table.expire(100.0)  # the answer is still to come
    assert 1 in at.table
    at.done(busy, 100.0)
    at.table.expire(110.0)
    assert waits.may_run()
    with pytest.raises(InvalidArgument, match="START"):
        at.ask(1, "", 110.0)


def test_a_sequence_that_was_given_up_says_why() -> None:
    at = Place()
    runs, waits = at.ask(1, "s"), at.ask(1)
    at.table.give_up(at.sequence(1), "is no more")
    assert [str(a.error) for a in (runs, waits)] == ["sequence 1 of model 'm' is no more"] * 2
    at.done(runs)  # which changes nothing
    for _ in range(2):
        with pytest.raises(Aborted, match="is no more"):
            at.ask(1)
    at.done(at.ask(1, "s"))
    at.done(at.ask(1))


def test_what_there_may_be() -> None:
    at = Place(places=1, max_sequences=2, max_waiting=1)
    at.ask(1, "s")
    waits = at.ask(1)
    with pytest.raises(ResourceExhausted, match="Exceeds maximum queue size"):
        at.ask(1)
    at.done(waits, ok=False)
    at.ask(2, "s")
    with pytest.raises(ResourceExhausted, match="Exceeds maximum queue size"):
        at.ask(3, "s")
    at.table.give_up(at.sequence(2), "")
    at.budget.sequences = 2
    with pytest.raises(ResourceExhausted, match="as many as there may be"):
        at.ask(3, "s")
    at.budget.sequences = 1
    at.budget.resize(0, 1000)
    with pytest.raises(ResourceExhausted, match="memory"):
        at.budget.resize(10, 11)
    at.budget.resize(1000, 0)


@dataclass(eq=False)
class Naive:
    """A sequence as one would write it down: the flags of its requests that were not answered, and if it is open."""

    asked: list[tuple[Asked, str]]
    is_open: bool = True
    has_place: bool = False
    used_at: float = 0.0


class Machine(RuleBasedStateMachine):
    """Any order of requests, answers, failures, pauses and lost models."""

    def __init__(self) -> None:
        super().__init__()
        self.at = Place(places=2)
        self.now = 0.0
        self.naive: dict[CorrelationId, Naive] = {}
        self.order: list[CorrelationId] = []  # of the sequences, as they began

    def live(self) -> Iterator[tuple[CorrelationId, Naive]]:
        yield from ((id_, self.naive[id_]) for id_ in self.order)

    @rule(id_=st.integers(1, 4), flags=st.sampled_from(["", "s", "e", "se"]))
    def request(self, id_: CorrelationId, flags: str) -> None:
        self.expire()
        known = self.naive.get(id_)
        if "s" not in flags and (known is None or not known.is_open):
            with pytest.raises((InvalidArgument, Aborted)):
                self.at.ask(id_, flags, self.now)
            return
        if known is None:
            known = self.naive[id_] = Naive([])
            self.order.append(id_)
        known.asked.append((self.at.ask(id_, flags, self.now), flags))
        known.is_open = "e" not in flags
        self.give_places()

    @precondition(lambda self: any(n.has_place and n.asked for n in self.naive.values()))
    @rule(data=st.data(), ok=st.booleans())
    def end(self, data: st.DataObject, ok: bool) -> None:
        id_ = data.draw(st.sampled_from([i for i, n in self.naive.items() if n.has_place and n.asked]))
        self.leave(id_, 0, ok=ok)

    @precondition(lambda self: any(n.asked for n in self.naive.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from([i for i, n in self.naive.items() if n.asked]))
        self.leave(id_, data.draw(st.integers(0, len(self.naive[id_].asked) - 1)), ok=False)

    def leave(self, id_: CorrelationId, position: int, *, ok: bool) -> None:
        known = self.naive[id_]
        asked, flags = known.asked.pop(position)
        if not ok:
            closes = bool(flags)
            while position < len(known.asked) and "s" not in known.asked[position][1]:
                closes |= "e" in known.asked.pop(position)[1]
            if position == len(known.asked):
                known.is_open = not closes
        known.used_at = self.now
        if not known.asked and not known.is_open:
            self.forget(id_)
        self.at.done(asked, self.now, ok=ok)

    @rule(id_=st.integers(1, 4))
    def lose(self, id_: CorrelationId) -> None:
        if id_ in self.naive:
            self.forget(id_)
            self.at.table.give_up(self.at.sequence(id_), "was lost")

    @rule(pause_s=st.sampled_from([1.0, 6.0, 20.0]))
    def wait(self, pause_s: float) -> None:
        self.now += pause_s
        self.expire()
        self.at.table.expire(self.now)

    def expire(self) -> None:
        for id_, known in sorted(self.live(), key=lambda item: item[1].used_at):
            if not known.asked and known.used_at + IDLE_S <= self.now:
                self.forget(id_)

    def forget(self, id_: CorrelationId) -> None:
        del self.naive[id_]
        self.order.remove(id_)
        self.give_places()

    def give_places(self) -> None:
        free = 2 - sum(known.has_place for known in self.naive.values())
        for _, known in self.live():
            if free and not known.has_place:
                known.has_place = True
                free -= 1

    @invariant()
    def agrees(self) -> None:
        table = self.at.table
        assert {sequence.id for sequence in table} == self.naive.keys()
        assert self.at.budget.sequences == len(self.naive)
        waiting = 0
        for id_, known in self.naive.items():
            assert (id_ in table) is known.is_open
            for position, (asked, _) in enumerate(known.asked):
                may_run = known.has_place and position == 0
                assert asked.told == ([None] if may_run else [])
                waiting += not may_run
        assert table.waiting == waiting
        places = [sequence.place for sequence in table if sequence.place is not None]
        assert len(set(places)) == len(places)


Machine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAgainstANaiveTable = Machine.TestCase

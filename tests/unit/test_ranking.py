"""The heap of instances against a plain list."""

from __future__ import annotations

from itertools import islice

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from roost.router.ranking import Rank, Ranking

VALUES = st.integers(-9, 9).map(float)


class RankingMachine(RuleBasedStateMachine):
    """Values rise without a word, fall with one, come and go; the model sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.ranking = Ranking()
        self.ranks: dict[int, Rank] = {}
        self.count = 0

    def pick(self, data: st.DataObject) -> Rank:
        return data.draw(st.sampled_from(list(self.ranks.values())))

    @rule(value=VALUES)
    def comes(self, value: float) -> None:
        self.count += 1
        rank = self.ranks[self.count] = Rank(self.count, value)
        self.ranking.add(rank)

    @precondition(lambda self: bool(self.ranks))
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        rank = self.pick(data)
        del self.ranks[rank.instance]
        self.ranking.remove(rank)

    @precondition(lambda self: bool(self.ranks))
    @rule(data=st.data(), by=st.integers(0, 9))
    def rises(self, data: st.DataObject, by: int) -> None:
        self.pick(data).value += by

    @precondition(lambda self: bool(self.ranks))
    @rule(data=st.data(), value=VALUES)
    def is_filed(self, data: st.DataObject, value: float) -> None:
        rank = self.pick(data)
        rank.value = value
        self.ranking.file(rank)

    @precondition(lambda self: bool(self.ranks))
    @rule(count=st.integers(0, 9))
    def is_looked_at(self, count: int) -> None:
        first = [self.ranks[number].value for number in islice(self.ranking.lowest_first(), count)]
        assert first == sorted(rank.value for rank in self.ranks.values())[:count]

    @invariant()
    def none_is_lost(self) -> None:
        assert len(self.ranking) == len(self.ranks)


RankingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestRanking = RankingMachine.TestCase


def test_all_are_said_once_in_their_order() -> None:
    ranking = Ranking()
    ranks = [Rank(number, float(number * 7 % 100)) for number in range(100)]
    for rank in ranks:
        ranking.add(rank)
    for rank in ranks[::3]:
        rank.value += 50.0
    values = [ranks[number].value for number in ranking.lowest_first()]
    assert values == sorted(values)
    assert sorted(ranking.lowest_first()) == list(range(100))

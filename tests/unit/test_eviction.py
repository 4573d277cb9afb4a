"""The ``cost`` policy against its definition, computed from all uses anew, and what it is for, one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from roost.router import cost
from roost.router.cost import Cost
from roost.router.eviction import POLICIES, EvictionPolicy

OWNERS = "abcdef"
MB = 1_000_000


@dataclass
class Row:
    """What the naive model knows of an instance."""

    owner: str
    per_byte: float
    rate: float | None = None  # logarithm of the owner's when it was last used or looked at
    fresh: bool = False
    used_round: float = -math.inf


@dataclass
class Uses:
    """All uses of an owner, and its load times."""

    rounds: list[float] = field(default_factory=list)
    load_s: float = 0.0

    def rate(self, half_life: float) -> float:
        last = self.rounds[-1]
        return sum(math.exp2((at - last) / half_life) for at in self.rounds) / half_life


class CostMachine(RuleBasedStateMachine):
    """Loads, uses, evictions and looks in any order; owners have any number of instances."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Cost()
        self.rows: dict[int, Row] = {}
        self.uses: dict[str, Uses] = {}
        self.fresh: list[int] = []  # longest unused first
        self.round = 0.0
        self.count = 0

    def worth(self, number: int) -> float:
        row = self.rows[number]
        if row.rate is None:
            return cost.NEVER_USED - number
        copies = sum(other.owner == row.owner for other in self.rows.values())
        return row.rate + math.log2(row.per_byte / copies)

    def rate_of(self, row: Row) -> float:
        uses = self.uses[row.owner]
        rate = uses.rate(cost.LONG_HALF_LIFE_ROUNDS)
        if row.fresh:
            rate += cost.FRESH_WEIGHT * (uses.rate(cost.SHORT_HALF_LIFE_ROUNDS) - 1.0 / cost.SHORT_HALF_LIFE_ROUNDS)
        return math.log2(rate) + uses.rounds[-1] / cost.LONG_HALF_LIFE_ROUNDS

    @rule(owner=st.sampled_from(OWNERS), megabytes=st.integers(0, 50), load_s=st.sampled_from([0.0, 0.1, 1.0, 9.0]))
    def loads(self, owner: str, megabytes: int, load_s: float) -> None:
        self.count += 1
        uses = self.uses.setdefault(owner, Uses())
        uses.load_s = (uses.load_s + load_s) / 2 if uses.load_s else load_s
        row = Row(owner, max(uses.load_s, cost.MIN_LOAD_S) / max(1, megabytes * MB))
        row.rate = self.rate_of(row) if uses.rounds else None
        self.rows[self.count] = row
        self.policy.loaded(self.count, owner, megabytes * MB, load_s, 0.0)

    @precondition(lambda self: bool(self.rows))
    @rule(data=st.data(), times=st.integers(1, 8))
    def is_used(self, data: st.DataObject, times: int) -> None:
        number = data.draw(st.sampled_from(list(self.rows)))
        row = self.rows[number]
        for _ in range(times):
            self.policy.used(number, 0.0)
            self.policy.warm(number, 0.0)
            self.round += 1 / len(self.rows)
            self.uses[row.owner].rounds.append(self.round)
        row.fresh, row.used_round = True, self.round
        row.rate = self.rate_of(row)
        self.fresh = [n for n in self.fresh if n != number] + [number]

    @precondition(lambda self: bool(self.rows))
    @rule(data=st.data(), megabytes=st.integers(0, 50))
    def takes_something_else(self, data: st.DataObject, megabytes: int) -> None:
        number = data.draw(st.sampled_from(list(self.rows)))
        row = self.rows[number]
        self.policy.resized(number, megabytes * MB)
        row.per_byte = max(self.uses[row.owner].load_s, cost.MIN_LOAD_S) / max(1, megabytes * MB)

    @precondition(lambda self: bool(self.rows))
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(list(self.rows)))
        del self.rows[number]
        self.fresh = [n for n in self.fresh if n != number]
        self.policy.forget(number)

    @rule(owner=st.sampled_from(OWNERS))
    def is_never_asked_again(self, owner: str) -> None:
        if not any(row.owner == owner for row in self.rows.values()):
            self.uses.pop(owner, None)
            self.policy.forget_owner(owner)

    @invariant()
    def those_worth_least_go_first(self) -> None:
        for number in self.fresh[: cost.STALED_AT_ONCE]:
            row = self.rows[number]
            if row.used_round <= self.round - cost.FRESH_ROUNDS:
                self.fresh.remove(number)
                row.fresh = False
                row.rate = self.rate_of(row)
        order = list(self.policy.coldest_first())
        assert sorted(order) == sorted(self.rows)
        worths = [self.worth(number) for number in order]
        assert worths == pytest.approx(sorted(worths), abs=1e-6)


CostMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestCost = CostMachine.TestCase


def fill(policy: EvictionPolicy, *models: tuple[str, int, float, int]) -> None:
    """Loads instances 1, 2, ... of owner, megabytes and load time, then uses them in turns, each so many times."""
    for number, (owner, megabytes, load_s, _) in enumerate(models, start=1):
        policy.loaded(number, owner, megabytes * MB, load_s, 0.0)
    for turn in range(max(uses for *_, uses in models)):
        for number, (*_, uses) in enumerate(models, start=1):
            if turn < uses:
                policy.used(number, float(turn))


@pytest.mark.parametrize(
    ("models", "order"),
    [
        pytest.param([("often", 10, 1.0, 9), ("seldom", 10, 1.0, 2)], [2, 1], id="seldom used first"),
        pytest.param([("slow", 10, 9.0, 3), ("quick", 10, 1.0, 3)], [2, 1], id="quickly loaded first"),
        pytest.param([("small", 10, 1.0, 3), ("large", 90, 1.0, 3)], [2, 1], id="large first"),
        pytest.param([("a", 10, 1.0, 3), ("b", 10, 1.0, 0), ("c", 10, 1.0, 0)], [3, 2, 1], id="never used first"),
    ],
)
def test_what_goes_first(models: list[tuple[str, int, float, int]], order: list[int]) -> None:
    policy = Cost()
    fill(policy, *models)
    assert list(policy.coldest_first()) == order


def test_a_copy_too_many_goes_before_the_only_one_of_another_model() -> None:
    policy = Cost()
    fill(policy, ("twice", 10, 1.5, 9), ("once", 10, 1.0, 9))
    assert list(policy.coldest_first()) == [2, 1]
    policy.loaded(3, "twice", 10 * MB, 1.5, 99.0)
    assert list(policy.coldest_first()) == [3, 1, 2], "each of the two has half of the uses"
    policy.forget(3)
    assert list(policy.coldest_first()) == [2, 1], "all of them are its own again"


def test_one_in_a_burst_stays_until_a_round_after_it() -> None:
    policy = Cost()
    fill(policy, ("steady", 10, 1.0, 40), ("other", 10, 1.0, 40))
    policy.loaded(3, "burst", 10 * MB, 1.0, 99.0)
    for _ in range(9):
        policy.used(3, 99.0)
    assert next(iter(policy.coldest_first())) != 3
    for _ in range(9):
        policy.used(1, 99.0)
        policy.used(2, 99.0)
    assert next(iter(policy.coldest_first())) == 3


def test_what_was_learned_outlives_the_instance_but_not_the_owner() -> None:
    policy = Cost()
    fill(policy, ("a", 10, 1.0, 30), ("b", 10, 1.0, 3))
    policy.forget(1)
    policy.loaded(3, "a", 10 * MB, 1.0, 99.0)
    assert list(policy.coldest_first()) == [2, 3]
    policy.forget(3)
    policy.forget_owner("a")
    policy.loaded(4, "a", 10 * MB, 1.0, 99.0)
    assert list(policy.coldest_first()) == [4, 2]


def test_one_on_a_timer_is_due_when_it_is_gone_and_stays_until_its_use_is_overdue() -> None:
    policy = Cost()
    policy.loaded(1, "busy", 10 * MB, 1.0, 0.0)
    policy.loaded(2, "timer", 10 * MB, 1.0, 0.0)
    for second in range(1780):
        assert list(policy.due(float(second))) == []
        policy.used(1, float(second))
        if second % 60 == 0:
            policy.used(2, float(second))
    policy.forget(2)
    assert 1790.0 < policy.next_due() < 1800.0
    ((owner, expected),) = policy.due(1799.0)
    assert owner == "timer"
    assert expected == pytest.approx(1800.0)
    policy.loaded(3, "timer", 10 * MB, 1.0, 1799.0)
    policy.used(1, 1799.5)
    assert list(policy.coldest_first()) == [1, 3]
    policy.used(1, 1830.0)
    assert list(policy.coldest_first()) == [3, 1]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_offers_each_instance_once(name: str) -> None:
    policy = POLICIES[name]()
    fill(policy, ("a", 10, 1.0, 3), ("b", 10, 1.0, 0), ("b", 10, 1.0, 1))
    assert sorted(policy.coldest_first()) == [1, 2, 3]
    policy.forget(2)
    policy.forget(2)
    assert sorted(policy.coldest_first()) == [1, 3]

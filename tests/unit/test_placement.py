"""The ledger of a device against a naive model of it, and the rules of eviction one by one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from roost.router.eviction import COST, LRU, POLICIES
from roost.router.placement import (
    MIN_PROTECTION_S,
    PROTECTION_LOADS,
    Evict,
    Fits,
    Ledger,
    Phase,
    Plan,
    Refuse,
    Wait,
)

BUDGET = 100
OWNERS = ("a", "b", "c", "d")


def resident(
    ledger: Ledger, instance: int, owner: str, size: int, now: float, *, pinned: bool = False, used: bool = True
) -> None:
    """Brings an instance in and, if ``used``, uses it once."""
    ledger.reserve(instance, owner, size, pinned=pinned)
    ledger.loaded(instance, now, load_s=0.0)
    if used:
        ledger.lease(instance, now)
        ledger.release(instance, now)


def test_room_is_room() -> None:
    ledger = Ledger(BUDGET)
    assert ledger.plan(BUDGET, 0.0) == Fits()
    assert ledger.plan(0, 0.0) == Fits()


def test_a_model_larger_than_the_budget_is_refused_and_nothing_goes() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 60, 0.0)
    assert ledger.plan(BUDGET + 1, 1.0) == Refuse(BUDGET)
    assert ledger.used_bytes == 60


def test_nothing_fits_a_budget_of_nothing() -> None:
    assert Ledger(0).plan(1, 0.0) == Refuse(0)


def test_pinned_bytes_are_not_available() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 60, 0.0, pinned=True)
    assert ledger.plan(50, 1.0) == Refuse(40)
    assert ledger.plan(40, 1.0) == Fits()


def test_a_pinned_instance_that_leaves_is_waited_for() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 60, 0.0, pinned=True)
    ledger.leaving(1)
    assert ledger.plan(60, 1.0) == Wait()
    ledger.gone(1)
    assert ledger.plan(60, 1.0) == Fits()


def test_the_least_recently_used_goes_and_no_more() -> None:
    ledger = Ledger(BUDGET)
    for number, owner in enumerate("abcd", start=1):
        resident(ledger, number, owner, 25, float(number))
    ledger.lease(1, 5.0)
    ledger.release(1, 5.0)
    assert ledger.plan(25, 6.0) == Evict((2,))
    assert ledger.plan(26, 6.0) == Evict((2, 3))


def test_what_need_not_go_stays() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 10, 1.0)
    resident(ledger, 2, "b", 90, 2.0)
    assert ledger.plan(90, 3.0) == Evict((2,))
    assert ledger.plan(91, 3.0) == Evict((1, 2))


def test_an_idle_one_stays_if_a_busy_one_has_to_go_and_suffices() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 10, 0.0)
    resident(ledger, 2, "b", 90, 0.0)
    ledger.lease(2, 0.0)
    assert ledger.plan(20, 100.0) == Evict((), (2,))


def test_a_leased_one_is_drained_only_after_its_protection() -> None:
    ledger = Ledger(BUDGET)
    ledger.reserve(1, "a", BUDGET)
    ledger.loaded(1, 0.0, load_s=2.0)
    ledger.lease(1, 10.0)
    until = 10.0 + PROTECTION_LOADS * 2.0
    assert ledger.plan(1, 10.0) == Wait(until)
    assert ledger.plan(1, until - 0.001) == Wait(until)
    assert ledger.plan(1, until) == Evict((), (1,))


def test_protection_starts_afresh_after_a_pause() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", BUDGET, 0.0)
    ledger.claim("a", 10.0)
    assert ledger.unclaim("a")
    ledger.claim("a", 20.0)
    assert ledger.plan(1, 20.5) == Wait(20.0 + MIN_PROTECTION_S)


def test_a_claim_counts_for_an_instance_that_comes_later() -> None:
    ledger = Ledger(BUDGET)
    ledger.claim("a", 0.0)
    ledger.reserve(1, "a", BUDGET)
    ledger.loaded(1, 50.0, load_s=0.0)
    assert ledger.plan(1, 50.0) == Wait(50.0 + MIN_PROTECTION_S)
    assert ledger.unclaim("a")
    assert ledger.plan(1, 50.0) == Evict((1,))


def test_one_that_was_loaded_and_never_used_goes_first() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 50, 0.0)
    resident(ledger, 2, "b", 50, 9.0, used=False)
    assert ledger.plan(50, 10.0) == Evict((2,))


def test_older_than_spares_what_was_used_since() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 50, 1.0)
    resident(ledger, 2, "b", 50, 2.0)
    assert ledger.plan(50, 3.0, older_than=2.0) == Evict((1,))
    assert ledger.plan(51, 3.0, older_than=2.0) == Wait()
    assert ledger.plan(50, 3.0, older_than=-math.inf) == Wait()


def test_what_was_never_used_may_go_for_anything() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 50, 1.0)
    resident(ledger, 2, "b", 50, 2.0, used=False)
    assert ledger.plan(50, 3.0, older_than=-math.inf) == Evict((2,))


def test_leaving_memory_is_waited_for_before_more_goes() -> None:
    ledger = Ledger(BUDGET)
    resident(ledger, 1, "a", 50, 1.0)
    resident(ledger, 2, "b", 50, 2.0)
    ledger.leaving(1)
    assert ledger.coming_or_going()
    assert ledger.plan(50, 3.0) == Wait()
    assert ledger.plan(51, 3.0) == Evict((2,))


def test_a_reservation_beyond_the_budget_is_a_defect() -> None:
    ledger = Ledger(BUDGET)
    ledger.reserve(1, "a", BUDGET)
    with pytest.raises(ValueError, match="exceed"):
        ledger.reserve(2, "b", 1)
    assert ledger.used_bytes == BUDGET
    assert set(ledger.holdings) == {1}


def test_a_lowered_budget_evicts_down_to_it() -> None:
    ledger = Ledger(BUDGET)
    for number, owner in enumerate("abcd", start=1):
        resident(ledger, number, owner, 25, float(number))
    ledger.budget_bytes = 50
    assert ledger.plan(25, 9.0) == Evict((1, 2, 3))


def test_two_hot_models_both_make_progress_on_a_budget_for_one() -> None:
    """Both always have requests; a load takes half a second, a run a tenth."""
    ledger = Ledger(BUDGET)
    runs = dict.fromkeys("ab", 0)
    for owner in runs:
        ledger.claim(owner, 0.0)
    holder, number, ready_at = "a", 1, 0.5
    ledger.reserve(number, holder, BUDGET)
    switches = 0
    for tick in range(1, 1200):
        now = tick / 10
        if ledger.holdings[number].phase is Phase.RESERVED:
            if now >= ready_at:
                ledger.loaded(number, now, load_s=0.5)
            continue
        ledger.lease(number, now)
        plan = ledger.plan(BUDGET, now)
        runs[holder] += 1
        ledger.release(number, now)
        if isinstance(plan, Evict):
            assert plan == Evict((), (number,))
            ledger.leaving(number)
            ledger.gone(number)
            holder, number, ready_at, switches = "ab"[holder == "a"], number + 1, now + 0.5, switches + 1
            ledger.reserve(number, holder, BUDGET)
        else:
            assert isinstance(plan, Wait)
            assert plan.until < math.inf
    assert switches > 20
    assert min(runs.values()) > 0.4 * sum(runs.values())


@dataclass
class Row:
    """What the naive model knows of an instance."""

    owner: str
    size: int
    pinned: bool
    phase: str = "reserved"
    leases: int = 0
    busy_since: float | None = None
    last_used: float = -math.inf
    order: int = 0  # smaller goes first
    protection: float = 1.0


class LedgerMachine(RuleBasedStateMachine):
    """Claims, leases, loads, drains and losses in any order; the model keeps plain rows and recounts everything."""

    eviction = LRU

    def __init__(self) -> None:
        super().__init__()
        self.policy = POLICIES[self.eviction]()
        self.ledger = Ledger(BUDGET, self.policy)
        self.rows: dict[int, Row] = {}
        self.claims: dict[str, int] = dict.fromkeys(OWNERS, 0)
        self.now = 1000.0
        self.count = 0

    def pick(self, data: st.DataObject, wanted: Callable[[Row], bool]) -> int:
        return data.draw(st.sampled_from([n for n, row in self.rows.items() if wanted(row)]))

    def tick(self) -> int:
        self.count += 1
        return self.count

    def is_busy(self, row: Row) -> bool:
        return row.leases > 0 or self.claims[row.owner] > 0

    def rest(self, row: Row) -> None:
        if not self.is_busy(row):
            row.busy_since = None

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(owner=st.sampled_from(OWNERS), size=st.integers(0, 130), pinned=st.sampled_from([False, False, False, True]))
    def wants_memory(self, owner: str, size: int, pinned: bool) -> None:
        plan = self.checked_plan(size, math.inf)
        if isinstance(plan, Fits):
            number = self.tick()
            self.ledger.reserve(number, owner, size, pinned=pinned)
            self.rows[number] = Row(owner, size, pinned)
        elif isinstance(plan, Evict):
            for number in (*plan.idle, *plan.busy):
                self.ledger.leaving(number)
                self.rows[number].phase = "leaving"

    @rule(size=st.integers(0, 130), age=st.sampled_from([-math.inf, 0.0, 0.5, 2.0, 30.0]))
    def asks_for_older_ones(self, size: int, age: float) -> None:
        self.checked_plan(size, self.now - age if age >= 0 else -math.inf)

    @precondition(lambda self: any(row.phase == "reserved" for row in self.rows.values()))
    @rule(data=st.data(), load_s=st.sampled_from([0.0, 0.1, 1.0]))
    def load_ends(self, data: st.DataObject, load_s: float) -> None:
        number = self.pick(data, lambda row: row.phase == "reserved")
        row = self.rows[number]
        self.ledger.loaded(number, self.now, load_s=load_s)
        row.phase, row.protection = "resident", max(1.0, 4 * load_s)
        if self.claims[row.owner]:
            row.busy_since = row.last_used = self.now
            row.order = self.tick()
        else:
            row.busy_since, row.order = None, -self.tick()

    @precondition(lambda self: bool(self.rows))
    @rule(data=st.data())
    def worker_is_lost(self, data: st.DataObject) -> None:
        number = self.pick(data, lambda row: True)
        self.ledger.leaving(number)
        self.rows[number].phase = "leaving"

    @precondition(lambda self: any(row.phase != "resident" for row in self.rows.values()))
    @rule(data=st.data())
    def is_gone(self, data: st.DataObject) -> None:
        number = self.pick(data, lambda row: row.phase != "resident")
        self.ledger.gone(number)
        del self.rows[number]

    @rule(owner=st.sampled_from(OWNERS))
    def request_comes(self, owner: str) -> None:
        self.ledger.claim(owner, self.now)
        self.claims[owner] += 1
        for row in self.rows.values():
            if row.owner == owner and row.busy_since is None:
                row.busy_since = self.now

    @precondition(lambda self: any(self.claims.values()))
    @rule(data=st.data())
    def request_goes(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from([owner for owner, count in self.claims.items() if count]))
        self.claims[owner] -= 1
        mine = [row for row in self.rows.values() if row.owner == owner]
        became_idle = self.claims[owner] == 0 and any(not row.leases for row in mine)
        assert self.ledger.unclaim(owner) == became_idle
        for row in mine:
            self.rest(row)

    @precondition(lambda self: any(row.phase == "resident" for row in self.rows.values()))
    @rule(data=st.data())
    def batch_starts(self, data: st.DataObject) -> None:
        number = self.pick(data, lambda row: row.phase == "resident")
        row = self.rows[number]
        self.ledger.lease(number, self.now)
        row.leases, row.last_used, row.order = row.leases + 1, self.now, self.tick()
        row.busy_since = self.now if row.busy_since is None else row.busy_since

    @precondition(lambda self: any(row.leases > 0 for row in self.rows.values()))
    @rule(data=st.data())
    def batch_ends(self, data: st.DataObject) -> None:
        number = self.pick(data, lambda row: row.leases > 0)
        row = self.rows[number]
        row.leases, row.last_used, row.order = row.leases - 1, self.now, self.tick()
        assert self.ledger.release(number, self.now) == (not self.is_busy(row))
        self.rest(row)

    @invariant()
    def memory_adds_up(self) -> None:
        ledger = self.ledger
        assert ledger.used_bytes == sum(row.size for row in self.rows.values()) <= BUDGET
        assert ledger.reserved_bytes == sum(row.size for row in self.rows.values() if row.phase == "reserved")
        assert {n: h.phase.name.lower() for n, h in ledger.holdings.items()} == {
            n: row.phase for n, row in self.rows.items()
        }
        in_motion = any(row.size and row.phase != "resident" for row in self.rows.values())
        assert ledger.coming_or_going() == in_motion
        assert {owner: ledger.claimed(owner) for owner in OWNERS} == {o: n > 0 for o, n in self.claims.items()}

    def coldest_first(self) -> list[int]:
        """The order that the policy must have, or has: what ``cost`` makes of uses is tested where it belongs."""
        if self.eviction == LRU:
            return sorted(self.rows, key=lambda number: self.rows[number].order)
        for _ in self.rows:  # it looks at a few at a time whether they are still fresh
            self.policy.coldest_first()
        return list(self.policy.coldest_first())

    def checked_plan(self, need: int, older_than: float) -> Plan:
        """The ledger's plan, after it was compared with what the rows allow."""
        before = copy.deepcopy(self.ledger.holdings)
        self.coldest_first()
        plan = self.ledger.plan(need, self.now, older_than=older_than)
        assert self.ledger.plan(need, self.now, older_than=older_than) == plan
        assert self.ledger.holdings == before
        self.compare(plan, need, older_than)
        return plan

    def compare(self, plan: Plan, need: int, older_than: float) -> None:
        rows = self.rows
        pinned = sum(row.size for row in rows.values() if row.pinned and row.phase != "leaving")
        free = BUDGET - sum(row.size for row in rows.values())
        leaving = sum(row.size for row in rows.values() if row.phase == "leaving")
        if need > BUDGET - pinned:
            assert plan == Refuse(BUDGET - pinned)
        elif need <= free:
            assert plan == Fits()
        elif need <= free + leaving:
            assert plan == Wait()
        else:
            self.compare_eviction(plan, need - free - leaving, older_than)

    def compare_eviction(self, plan: Plan, missing: int, older_than: float) -> None:
        rows = self.rows
        may_go = [
            number
            for number, row in rows.items()
            if row.phase == "resident" and not row.pinned and (row.last_used < older_than or row.last_used == -math.inf)
        ]
        ends = {
            n: rows[n].busy_since + rows[n].protection  # type: ignore[operator]
            for n in may_go
            if self.is_busy(rows[n])
        }
        now = [n for n in may_go if ends.get(n, self.now) <= self.now]
        if sum(rows[n].size for n in now) < missing:
            assert plan == Wait(min((end for n, end in ends.items() if end > self.now), default=math.inf))
            return
        assert isinstance(plan, Evict)
        order = self.coldest_first()
        idle = [n for n in order if n in now and not rows[n].leases]
        busy = [n for n in order if n in now and rows[n].leases]
        victims = [*plan.idle, *plan.busy]
        sizes = {n: rows[n].size for n in now}
        line = idle + busy  # the order in which they should go
        assert victims == [n for n in line if n in set(victims)]
        assert set(plan.idle) <= set(idle)
        assert set(plan.busy) <= set(busy)
        total = sum(sizes[n] for n in victims)
        assert total >= missing
        assert all(total - sizes[n] < missing for n in victims), "one of them need not go"
        warmer = line[line.index(victims[-1]) :]
        assert sum(sizes[n] for n in line if n not in warmer) < missing, "colder ones would have sufficed"


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


class CostLedgerMachine(LedgerMachine):
    """The same with the other policy."""

    eviction = COST


CostLedgerMachine.TestCase.settings = LedgerMachine.TestCase.settings
TestCostLedger = CostLedgerMachine.TestCase

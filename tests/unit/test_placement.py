"""The rules of a device's ledger one by one; ``test_ledger`` has them all at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
from roost.core.figures import Figures
from roost.router.accounts import MIN_PROTECTION_S, Phase
from roost.router.cost import Cost
from roost.router.eviction import POLICIES
from roost.router.placement import PROTECTION_LOADS, Ledger
from roost.router.plans import Evict, Figure, Fits, Limits, Refuse, Wait
from roost.router.victims import MOST_RECENT

BUDGET = 100
LIMITS = Limits(BUDGET, 150, 50)


def resident(
    ledger: Ledger, instance: int, owner: str, size: int | Figures, now: float, *, used: bool = True, **options: Any
) -> None:
    """Brings an instance in and, if ``used``, uses it once."""
    ledger.reserve(instance, owner, Figures(size) if isinstance(size, int) else size, **options)
    ledger.loaded(instance, now, load_s=0.0)
    if used:
        ledger.lease(instance, now)
        ledger.release(instance, now)


def test_room_is_room() -> None:
    ledger = Ledger(Limits(BUDGET))
    assert ledger.plan(Figures(BUDGET), 0.0) == Fits()
    assert ledger.plan(Figures(0), 0.0) == Fits()


def test_a_model_larger_than_the_budget_is_refused_and_nothing_goes() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 60, 0.0)
    assert ledger.plan(Figures(BUDGET + 1), 1.0) == Refuse(BUDGET)
    assert ledger.used_bytes == 60


def test_nothing_fits_a_budget_of_nothing() -> None:
    assert Ledger(Limits(0)).plan(Figures(1), 0.0) == Refuse(0)


def test_pinned_bytes_are_not_available() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 60, 0.0, pinned=True)
    assert ledger.plan(Figures(50), 1.0) == Refuse(40)
    assert ledger.plan(Figures(40), 1.0) == Fits()


def test_a_pinned_instance_that_leaves_is_waited_for() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 60, 0.0, pinned=True)
    ledger.leaving(1)
    assert ledger.plan(Figures(60), 1.0) == Wait()
    ledger.gone(1)
    assert ledger.plan(Figures(60), 1.0) == Fits()


def test_the_least_recently_used_goes_and_no_more() -> None:
    ledger = Ledger(Limits(BUDGET))
    for number, owner in enumerate("abcd", start=1):
        resident(ledger, number, owner, 25, float(number))
    ledger.lease(1, 5.0)
    ledger.release(1, 5.0)
    assert ledger.plan(Figures(25), 6.0) == Evict((2,))
    assert ledger.plan(Figures(26), 6.0) == Evict((2, 3))


def test_what_need_not_go_stays() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 10, 1.0)
    resident(ledger, 2, "b", 90, 2.0)
    assert ledger.plan(Figures(90), 3.0) == Evict((2,))
    assert ledger.plan(Figures(91), 3.0) == Evict((1, 2))


def test_an_idle_one_stays_if_a_busy_one_has_to_go_and_suffices() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 10, 0.0)
    resident(ledger, 2, "b", 90, 0.0)
    ledger.lease(2, 0.0)
    assert ledger.plan(Figures(20), 100.0) == Evict((), (2,))


def test_a_leased_one_is_drained_only_after_its_protection() -> None:
    ledger = Ledger(Limits(BUDGET))
    ledger.reserve(1, "a", Figures(BUDGET))
    ledger.loaded(1, 0.0, load_s=2.0)
    ledger.lease(1, 10.0)
    until = 10.0 + PROTECTION_LOADS * 2.0
    assert ledger.plan(Figures(1), 10.0) == Wait(until)
    assert ledger.plan(Figures(1), until - 0.001) == Wait(until)
    assert ledger.plan(Figures(1), until) == Evict((), (1,))


def test_protection_starts_afresh_after_a_pause() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", BUDGET, 0.0)
    ledger.claim("a", 10.0)
    assert ledger.unclaim("a")
    ledger.claim("a", 20.0)
    assert ledger.plan(Figures(1), 20.5) == Wait(20.0 + MIN_PROTECTION_S)


def test_a_claim_counts_for_an_instance_that_comes_later() -> None:
    ledger = Ledger(Limits(BUDGET))
    ledger.claim("a", 0.0)
    ledger.reserve(1, "a", Figures(BUDGET))
    ledger.loaded(1, 50.0, load_s=0.0)
    assert ledger.plan(Figures(1), 50.0) == Wait(50.0 + MIN_PROTECTION_S)
    assert ledger.unclaim("a")
    assert ledger.plan(Figures(1), 50.0) == Evict((1,))


def test_one_that_was_loaded_and_never_used_goes_first() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 50, 0.0)
    resident(ledger, 2, "b", 50, 9.0, used=False)
    assert ledger.plan(Figures(50), 10.0) == Evict((2,))


def test_older_than_spares_what_was_used_since() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 50, 1.0)
    resident(ledger, 2, "b", 50, 2.0)
    assert ledger.plan(Figures(50), 3.0, older_than=2.0) == Evict((1,))
    assert ledger.plan(Figures(51), 3.0, older_than=2.0) == Wait()
    assert ledger.plan(Figures(50), 3.0, older_than=-math.inf) == Wait()


def test_what_was_never_used_may_go_for_anything() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 50, 1.0)
    resident(ledger, 2, "b", 50, 2.0, used=False)
    assert ledger.plan(Figures(50), 3.0, older_than=-math.inf) == Evict((2,))


def test_leaving_memory_is_waited_for_before_more_goes() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 50, 1.0)
    resident(ledger, 2, "b", 50, 2.0)
    ledger.leaving(1)
    assert ledger.coming_or_going()
    assert ledger.plan(Figures(50), 3.0) == Wait()
    assert ledger.plan(Figures(51), 3.0) == Evict((2,))


def test_a_reservation_beyond_the_budget_is_a_defect() -> None:
    ledger = Ledger(Limits(BUDGET))
    ledger.reserve(1, "a", Figures(BUDGET))
    with pytest.raises(ValueError, match="exceed"):
        ledger.reserve(2, "b", Figures(1))
    assert ledger.used_bytes == BUDGET
    assert set(ledger.holdings) == {1}


def test_a_lowered_budget_evicts_down_to_it() -> None:
    ledger = Ledger(Limits(BUDGET))
    for number, owner in enumerate("abcd", start=1):
        resident(ledger, number, owner, 25, float(number))
    ledger.limits = Limits(50)
    assert ledger.plan(Figures(25), 9.0) == Evict((1, 2, 3))


def test_two_hot_models_both_make_progress_on_a_budget_for_one() -> None:
    """Both always have requests; a load takes half a second, a run a tenth."""
    ledger = Ledger(Limits(BUDGET))
    runs = dict.fromkeys("ab", 0)
    for owner in runs:
        ledger.claim(owner, 0.0)
    holder, number, ready_at = "a", 1, 0.5
    ledger.reserve(number, holder, Figures(BUDGET))
    switches = 0
    for tick in range(1, 1200):
        now = tick / 10
        if ledger.holdings[number].phase is Phase.RESERVED:
            if now >= ready_at:
                ledger.loaded(number, now, load_s=0.5)
            continue
        ledger.lease(number, now)
        plan = ledger.plan(Figures(BUDGET), now)
        runs[holder] += 1
        ledger.release(number, now)
        if isinstance(plan, Evict):
            assert plan == Evict((), (number,))
            ledger.leaving(number)
            ledger.gone(number)
            holder, number, ready_at, switches = "ab"[holder == "a"], number + 1, now + 0.5, switches + 1
            ledger.reserve(number, holder, Figures(BUDGET))
        else:
            assert isinstance(plan, Wait)
            assert plan.until < math.inf
    assert switches > 20
    assert min(runs.values()) > 0.4 * sum(runs.values())


def test_a_file_is_counted_once_however_many_map_it() -> None:
    ledger = Ledger(LIMITS)
    need = Figures(10, 90)
    resident(ledger, 1, "a", need, 1.0, file="f")
    assert ledger.plan(need, 2.0) == Evict((1,)), "another file has no room beside it"
    assert ledger.plan(need, 2.0, file="f") == Fits()
    resident(ledger, 2, "b", need, 2.0, file="f")
    assert (ledger.used_bytes, ledger.mapped_bytes) == (20, 90)
    ledger.leaving(1)
    ledger.gone(1)
    assert ledger.mapped_bytes == 90, "the other one maps it still"


def test_pages_come_back_only_when_the_last_one_goes_who_maps_them() -> None:
    ledger = Ledger(LIMITS)
    resident(ledger, 1, "a", Figures(1, 60), 1.0, file="f")
    resident(ledger, 2, "b", Figures(10), 2.0)
    resident(ledger, 3, "c", Figures(1, 60), 3.0, file="f")
    assert ledger.plan(Figures(1, 90), 4.0) == Evict((1, 3)), "with both gone the private ten need not go"
    assert ledger.plan(Figures(1, 78), 4.0) == Evict((1,)), "its own byte suffices"
    ledger.pin(3, pinned=True)
    assert ledger.plan(Figures(1, 86), 4.0) == Evict((2,))
    assert ledger.plan(Figures(1, 90), 4.0) == Refuse(89, Figure.MEMORY)


def test_who_maps_the_file_of_what_goes_keeps_it() -> None:
    ledger = Ledger(LIMITS)
    resident(ledger, 1, "a", Figures(50, 60), 1.0, file="f")
    resident(ledger, 2, "b", Figures(30), 2.0)
    assert ledger.plan(Figures(60, 60), 3.0, file="f") == Evict((1,))
    ledger.leaving(1)
    assert ledger.plan(Figures(60, 60), 3.0, file="f") == Wait()
    assert ledger.plan(Figures(61, 60), 3.0, file="f") == Evict((2,))


def test_mappings_are_counted_for_each_process() -> None:
    ledger = Ledger(LIMITS)
    need = Figures(1, 0, 30)
    resident(ledger, 1, "a", need, 1.0, place=0)
    assert ledger.plan(need, 2.0, places=(0,)) == Evict((1,))
    assert ledger.plan(need, 2.0, places=(0, 1)) == Fits(1)
    assert ledger.plan(Figures(1, 0, 20), 2.0, places=(0, 1)) == Fits(0)
    resident(ledger, 2, "b", need, 2.0, place=1)
    assert ledger.plan(need, 3.0, places=(1, 0)) == Evict((1,)), "where the coldest one is"
    ledger.lease(1, 4.0)
    assert ledger.plan(need, 4.0, places=(0, 1)) == Evict((2,))
    ledger.leaving(2)
    assert ledger.plan(need, 4.0, places=(0, 1)) == Wait()
    assert ledger.plan(Figures(1, 0, 51), 4.0, places=(0, 1)) == Refuse(50, Figure.MAPPINGS)
    assert ledger.plan(Figures(1, 0, 51), 4.0) == Fits(), "in a process of its own"


def test_a_busy_worker_is_waited_for_where_another_never_has_the_mappings() -> None:
    ledger = Ledger(LIMITS)
    resident(ledger, 1, "a", Figures(1, 0, 30), 1.0, place=0, pinned=True)
    resident(ledger, 2, "b", Figures(1, 0, 30), 1.0, place=1)
    ledger.lease(2, 2.0)
    assert ledger.plan(Figures(1, 0, 30), 2.0, places=(0, 1)) == Wait(2.0 + MIN_PROTECTION_S)
    assert ledger.plan(Figures(1, 0, 30), 9.0, places=(0, 1)) == Evict((), (2,))


@pytest.mark.parametrize(
    ("mappings", "places", "assigned"),
    [(20, (1, 0), 1), (30, (1, 0), 0), (30, (1,), 1), (49, (0, 1), 0)],
)
def test_a_load_goes_to_the_best_worker_that_has_its_mappings(
    mappings: int, places: tuple[int, ...], assigned: int
) -> None:
    ledger = Ledger(LIMITS)
    ledger.reserve(1, "a", Figures(1, 0, mappings), place=0)
    ledger.reserve(2, "b", Figures(1, 0, 30), place=1)
    assert ledger.assign(1, places) == assigned
    assert ledger.figures_of(assigned).mappings == mappings + 30 * (assigned == 1)


def test_what_a_load_did_not_take_is_there_for_others() -> None:
    ledger = Ledger(Limits(BUDGET))
    ledger.reserve(1, "a", Figures(80))
    ledger.resized(1, Figures(30))
    ledger.loaded(1, 0.0, load_s=0.0)
    assert ledger.plan(Figures(70), 1.0) == Fits()
    assert not ledger.grown


def test_others_go_for_what_has_grown_until_it_fits() -> None:
    ledger = Ledger(LIMITS)
    resident(ledger, 1, "a", Figures(40, 0, 30), 1.0, place=0)
    resident(ledger, 2, "b", Figures(40, 0, 20), 2.0, place=0)
    ledger.resized(2, Figures(50, 0, 20))
    assert (ledger.grown, ledger.relief(3.0), ledger.grown) == (True, Fits(), False)
    ledger.resized(2, Figures(61, 0, 20))
    assert ledger.relief(3.0) == Evict((1,))
    with pytest.raises(ValueError, match="exceed"):
        ledger.reserve(3, "c", Figures(0))
    ledger.resized(2, Figures(50, 0, 21))
    assert ledger.relief(3.0) == Evict((1,)), "too many mappings"
    ledger.leaving(1)
    assert (ledger.relief(3.0), ledger.grown) == (Wait(), True)
    ledger.gone(1)
    assert (ledger.relief(3.0), ledger.grown) == (Fits(), False)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lower_priority_goes_first(policy: str) -> None:
    ledger = Ledger(Limits(BUDGET), POLICIES[policy]())
    for number, (owner, priority) in enumerate([("a", 1), ("b", 0), ("c", -5), ("d", 0)], start=1):
        resident(ledger, number, owner, 25, float(number), priority=priority)
    assert ledger.plan(Figures(25), 9.0) == Evict((3,))
    assert ledger.plan(Figures(75), 9.0) == Evict((3, 2, 4))
    assert ledger.plan(Figures(100), 9.0) == Evict((3, 2, 4, 1))


def test_one_that_is_pinned_later_stays_and_may_go_again() -> None:
    ledger = Ledger(Limits(BUDGET))
    resident(ledger, 1, "a", 60, 0.0)
    ledger.pin(1, pinned=True)
    assert ledger.plan(Figures(50), 1.0) == Refuse(40)
    ledger.pin(1, pinned=False)
    assert ledger.plan(Figures(50), 1.0) == Evict((1,))


@pytest.mark.parametrize(
    ("limits", "order"),
    [
        pytest.param(Limits(100, 150), (2, 1), id="31 of 150 bytes are more than 19 of 100"),
        pytest.param(Limits(40, 1000), (1, 2), id="there is memory for files, and 19 of 40 are more than 1"),
    ],
)
def test_policies_weigh_what_an_instance_takes_of_the_limit_that_is_nearest(
    limits: Limits, order: tuple[int, int]
) -> None:
    ledger = Ledger(limits, Cost())
    for number, need in enumerate([Figures(19), Figures(1, 30)], start=1):
        resident(ledger, number, str(number), need, float(number))
    assert ledger.plan(Figures(limits.private_bytes), 9.0) == Evict(order)


def test_what_may_wait_does_not_look_through_all_that_was_used_too_recently() -> None:
    ledger = Ledger(Limits(MOST_RECENT + 1))
    for number in range(1, MOST_RECENT + 2):
        resident(ledger, number, str(number), 1, 10.0, used=number <= MOST_RECENT)
    assert ledger.plan(Figures(1), 11.0, older_than=5.0) == Evict((MOST_RECENT + 1,)), "the one that was never used"
    ledger.lease(MOST_RECENT + 1, 11.0)
    ledger.release(MOST_RECENT + 1, 11.0)
    assert ledger.plan(Figures(1), 11.0, older_than=5.0) == Wait()

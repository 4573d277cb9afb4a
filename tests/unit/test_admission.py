"""The budget of request bodies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import ResourceExhausted
from roost.router.admission import AnswerMemory, ByteBudget

MIB = 1 << 20


def test_a_thousand_clients_that_announce_64_mib_get_what_the_budget_has() -> None:
    budget = ByteBudget(256 * MIB)
    taken = 0
    for _ in range(1000):
        try:
            budget.acquire(64 * MIB)
            taken += 1
        except ResourceExhausted:
            pass
    assert taken == 4
    assert budget.used_bytes == budget.limit_bytes


def test_a_refusal_says_the_figures_and_when_to_come_back() -> None:
    budget = ByteBudget(10 * MIB)
    budget.acquire(8 * MIB)
    with pytest.raises(ResourceExhausted) as caught:
        budget.acquire(4 * MIB)
    for figure in ("8 MiB", "4 MiB", "10 MiB"):
        assert figure in caught.value.message
    assert caught.value.retry_after_s is not None
    assert budget.used_bytes == 8 * MIB


def test_all_of_it_can_be_had_at_once_and_nothing_costs_nothing() -> None:
    budget = ByteBudget(100)
    budget.acquire(100)
    budget.acquire(0)
    budget.release(100)
    assert budget.used_bytes == 0


@given(st.integers(0, 1000), st.lists(st.integers(0, 300), max_size=50))
def test_never_over_the_limit_and_empty_at_the_end(limit: int, sizes: list[int]) -> None:
    budget = ByteBudget(limit)
    held: list[int] = []
    for size in sizes:
        if sum(held) + size <= limit:
            budget.acquire(size)
            held.append(size)
        else:
            with pytest.raises(ResourceExhausted):
                budget.acquire(size)
            if held:
                budget.release(held.pop(0))
        assert budget.used_bytes == sum(held) <= limit
    for size in held:
        budget.release(size)
    assert budget.used_bytes == 0


def test_what_is_more_than_the_whole_budget_is_refused_for_good() -> None:
    budget = ByteBudget(MIB, "answers")
    with pytest.raises(ResourceExhausted, match="2 MiB is more than the 1 MiB for all answers") as caught:
        budget.acquire(2 * MIB)
    assert caught.value.retry_after_s is None


def test_answer_memory_is_charged_until_the_last_view_is_gone() -> None:
    budget = ByteBudget(MIB)
    memory = AnswerMemory(1000, budget)
    view = memoryview(memory)[10:20]
    del memory
    assert budget.used_bytes == 1000
    del view
    assert budget.used_bytes == 0


def test_refused_answer_memory_gives_nothing_back() -> None:
    budget = ByteBudget(100)
    with pytest.raises(ResourceExhausted):
        AnswerMemory(1000, budget)
    assert budget.used_bytes == 0

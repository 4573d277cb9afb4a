"""When to look at those who have deadlines."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from roost.router.deadlines import BUCKET_S, Deadlines


@dataclass(eq=False)
class Item:
    look_at: float = math.inf


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 4)), st.floats(0, 3)), max_size=60))
def test_everybody_is_looked_at_once_and_in_time(steps: list[tuple[int | None, float]]) -> None:
    """Against a model that keeps the earliest time for each; a step is one who says a time, or that time passes."""
    deadlines, items, now = Deadlines(), [Item() for _ in range(5)], 100.0
    wanted: dict[int, float] = {}
    for place, seconds in steps:
        if place is not None:
            before = deadlines.next_s()
            is_first = deadlines.watch(items[place], now + seconds)
            assert is_first == (deadlines.next_s() < before)
            wanted[place] = min(wanted.get(place, math.inf), now + seconds)
        else:
            now += seconds
            due_now = deadlines.due(now)
            found = [number for number, item in enumerate(items) for other in due_now if other is item]
            assert len(set(found)) == len(found)
            for number in found:
                assert wanted.pop(number) <= now + 1e-9
                assert items[number].look_at == math.inf
            assert all(due > now - BUCKET_S - 1e-9 for due in wanted.values())
        if wanted:
            assert deadlines.next_s() <= min(wanted.values()) + BUCKET_S + 1e-9


def test_who_says_a_later_time_is_looked_at_at_the_earlier_one_all_the_same() -> None:
    deadlines, item = Deadlines(), Item()
    assert deadlines.watch(item, 2.0)
    assert not deadlines.watch(item, 3.0)
    assert deadlines.watch(item, 1.0)
    assert deadlines.due(1.0) == [item]
    assert deadlines.due(5.0) == []
    assert deadlines.next_s() == math.inf


def test_who_is_forgotten_is_not_looked_at_and_not_kept() -> None:
    deadlines, item, other = Deadlines(), Item(), Item()
    deadlines.watch(item, 1.0)
    deadlines.watch(other, 1.0)
    deadlines.forget(item)
    deadlines.forget(Item())
    assert not [held for held in gc.get_referrers(item) if isinstance(held, list)]
    assert deadlines.due(2.0) == [other]
    deadlines.watch(item, 3.0)
    assert deadlines.due(3.0) == [item]

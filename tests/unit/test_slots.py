"""Slots of an arena against a model that keeps a list of who has what."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from roost.router.slots import SLOT_ALIGNMENT_BYTES, SlotAllocator

PAGE = SLOT_ALIGNMENT_BYTES
SIZE = 100 * PAGE


class Slots(RuleBasedStateMachine):
    """Takes and frees at random; the naive allocator looks at every page."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotAllocator(SIZE + 77)
        self.live: dict[int, int] = {}

    @initialize(every=st.integers(1, 4))
    def leave_holes(self, every: int) -> None:
        """Many holes of one page, as slow readers leave them."""
        pages = range(SIZE // PAGE)
        assert [self.slots.take(PAGE) for _ in pages] == [page * PAGE for page in pages]
        for page in pages:
            if page % every:
                self.live[page * PAGE] = (page + 1) * PAGE
            else:
                self.slots.free(page * PAGE)

    def lowest(self, size_bytes: int) -> int | None:
        """The lowest address with enough free pages behind it, found page by page."""
        taken = {page for start, end in self.live.items() for page in range(start, end, PAGE)}
        pages = -(-size_bytes // PAGE)
        for start in range(0, SIZE - pages * PAGE + 1, PAGE):
            if not taken.intersection(range(start, start + pages * PAGE, PAGE)):
                return start
        return None

    @rule(size_bytes=st.one_of(st.integers(1, SIZE + PAGE), st.integers(1, 6 * PAGE)))
    def take(self, size_bytes: int) -> None:
        start = self.slots.take(size_bytes)
        assert start == self.lowest(size_bytes)
        if start is not None:
            self.live[start] = start + -(-size_bytes // PAGE) * PAGE

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[start]
        self.slots.free(start)

    @invariant()
    def books_agree(self) -> None:
        assert self.slots.used_bytes == sum(end - start for start, end in self.live.items())
        assert self.slots.used_end == max(self.live.values(), default=0)
        blocks = self.slots.free_blocks()
        assert sum(end - start for start, end in blocks) == self.slots.free_bytes
        assert all(before[1] < after[0] for before, after in itertools.pairwise(blocks)), "not joined"

    def teardown(self) -> None:
        for start in self.live:
            self.slots.free(start)
        assert self.slots.free_blocks() == [(0, SIZE)]


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_a_slot_is_given_back_once() -> None:
    slots = SlotAllocator(SIZE)
    start = slots.take(1)
    assert start == 0
    slots.free(start)
    with pytest.raises(KeyError):
        slots.free(start)


def test_there_may_be_no_room_at_all() -> None:
    slots = SlotAllocator(0)
    assert slots.take(1) is None
    assert (slots.used_bytes, slots.used_end, slots.free_blocks()) == (0, 0, [])


def test_a_search_does_not_look_at_every_hole_that_is_too_small() -> None:
    slots = SlotAllocator(2000 * PAGE)
    holes = [slots.take(2 * PAGE) for _ in range(800)]
    for start in holes[::2]:
        assert start is not None
        slots.free(start)
    assert slots.take(3 * PAGE) == 1600 * PAGE
    assert slots.take(2 * PAGE) == 0
    while slots.take(3 * PAGE) is not None:
        pass
    assert slots.take(2 * PAGE) == 4 * PAGE, "what is free at the end was not found, or holes were forgotten"

"""What of a queue is sent now."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.router.batching import Dispatch, Idle, plan


@dataclass
class Request:
    deadline: float = math.inf


@pytest.mark.parametrize("free_slots", [0, -1])
def test_without_a_slot_nothing_is_formed(free_slots: int) -> None:
    assert plan([Request()], free_slots) == Idle()


def test_an_empty_queue_is_idle() -> None:
    assert plan([], 4) == Idle()


@given(st.integers(0, 20), st.integers(-2, 20))
def test_work_conserving_and_never_more_than_there_is(queued: int, free_slots: int) -> None:
    decision = plan([Request() for _ in range(queued)], free_slots)
    if queued and free_slots > 0:
        assert isinstance(decision, Dispatch)
        assert 1 <= decision.count <= queued
    else:
        assert decision == Idle()

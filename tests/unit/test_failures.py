"""How load failures are remembered."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from roost.router.failures import ARTIFACT_TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Fault, LoadFailure, next_failure


def after(tries: int, fault: Fault, now: float = 100.0) -> LoadFailure:
    failure = None
    for _ in range(tries):
        failure = next_failure(failure, "cause", fault, now)
    assert failure is not None
    return failure


def test_the_first_failure_blocks_for_a_second() -> None:
    failure = next_failure(None, "no such file", Fault.ARTIFACT, 100.0)
    assert failure == LoadFailure("no such file", Fault.ARTIFACT, 1, 100.0 + FIRST_PAUSE_S)
    assert failure.blocks(100.0)
    assert failure.blocks(100.0 + FIRST_PAUSE_S - 0.001)
    assert not failure.blocks(100.0 + FIRST_PAUSE_S)
    assert not failure.final


def test_a_broken_artifact_is_tried_three_times() -> None:
    assert not after(ARTIFACT_TRIES - 1, Fault.ARTIFACT).final
    last = after(ARTIFACT_TRIES, Fault.ARTIFACT)
    assert last.final
    assert last.blocks(1e12)


def test_a_workers_fault_is_never_final() -> None:
    assert not after(100, Fault.WORKER).final
    assert after(100, Fault.WORKER).until == 100.0 + LONGEST_PAUSE_S


def test_the_last_cause_is_shown() -> None:
    first = next_failure(None, "a crash", Fault.WORKER, 0.0)
    assert next_failure(first, "garbage", Fault.ARTIFACT, 0.0).reason == "garbage"


@given(st.lists(st.sampled_from(Fault), min_size=1, max_size=40), st.floats(0, 1e9))
def test_pauses_grow_and_stay_bounded(faults: list[Fault], now: float) -> None:
    failure: LoadFailure | None = None
    pause_s = 0.0
    for tries, fault in enumerate(faults, start=1):
        failure = next_failure(failure, "cause", fault, now)
        assert failure.tries == tries
        assert failure.blocks(now)
        if failure.final:
            assert fault is Fault.ARTIFACT
            continue
        assert failure.until - now >= pause_s - 1e-6
        pause_s = failure.until - now
        assert pause_s <= LONGEST_PAUSE_S + 1e-6
    assert failure is not None
    assert failure.until > now or failure.until == math.inf

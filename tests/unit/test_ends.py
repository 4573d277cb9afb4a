"""Why worker processes ended, and how long the next start waits."""

from __future__ import annotations

import signal

import pytest
from roost.router.ends import (
    FIRST_BACKOFF_S,
    HEALTHY_AFTER_OOM_S,
    HEALTHY_AFTER_S,
    LONGEST_BACKOFF_FOR_MODELS_S,
    LONGEST_BACKOFF_S,
    Backoff,
    End,
    end_of,
)

KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "ended_for", "ran_out_of_memory", "end"),
    [
        (0, None, False, End.EXITED),
        (1, None, True, End.EXITED),
        (-signal.SIGSEGV, None, True, End.CRASHED),
        (-signal.SIGABRT, End.HUNG, False, End.CRASHED),  # it was quicker
        (KILLED, None, False, End.KILLED),
        (KILLED, None, True, End.OUT_OF_MEMORY),
        (KILLED, End.HUNG, False, End.HUNG),
        (KILLED, End.STOPPED, True, End.STOPPED),
        (KILLED, End.GIVEN_UP, False, End.GIVEN_UP),
        (KILLED, End.OVERRAN, False, End.OVERRAN),
    ],
)
def test_the_end_of_a_process(code: int, ended_for: End | None, ran_out_of_memory: bool, end: End) -> None:
    assert end_of(code, ended_for, ran_out_of_memory=ran_out_of_memory) is end


def test_what_may_be_to_blame_does_not_run_again() -> None:
    assert not [end for end in End if end.suspects and end.runs_again]


def test_short_lives_in_a_row_are_backed_off() -> None:
    backoff = Backoff()
    waits = [backoff.after(0.1, End.CRASHED) for _ in range(12)]
    assert waits[:4] == [0.0, FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]
    assert waits[-1] == LONGEST_BACKOFF_S
    assert backoff.after(HEALTHY_AFTER_S, End.CRASHED) == 0.0
    assert backoff.after(0.1, End.KILLED) == 0.0, "the first of a row is most often a one-off"


def test_others_do_not_wait_for_what_a_model_may_have_done() -> None:
    backoff = Backoff()
    waits = [backoff.after(0.1, End.CRASHED, had_work=True) for _ in range(12)]
    assert max(waits) == LONGEST_BACKOFF_FOR_MODELS_S
    assert backoff.after(0.1, End.OUT_OF_MEMORY, had_work=True) == LONGEST_BACKOFF_S


def test_a_worker_that_is_killed_every_few_seconds_comes_back_at_once() -> None:
    backoff = Backoff()
    assert not any(backoff.after(5.0, End.KILLED) for _ in range(100))


def test_a_worker_that_takes_all_of_the_memory_again_is_backed_off() -> None:
    backoff = Backoff()
    assert [backoff.after(5.0, End.OUT_OF_MEMORY) for _ in range(3)] == [0.0, FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S]
    assert backoff.after(HEALTHY_AFTER_OOM_S, End.OUT_OF_MEMORY) == 0.0

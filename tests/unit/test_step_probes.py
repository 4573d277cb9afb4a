"""Probes that divide the front end's time into steps."""

from __future__ import annotations

import threading
import time

import pytest

from loadtests.step_probes import PROBES, THE_PROBES, Clock, probed
from loadtests.steps import LOOP, Costs, budget


def spin(milliseconds: int) -> None:
    end_ns = time.thread_time_ns() + milliseconds * 1_000_000
    while time.thread_time_ns() < end_ns:
        pass


def test_every_function_of_the_table_is_there() -> None:
    assert {step for step, _, _ in probed()} == set(PROBES)


def test_time_belongs_to_the_innermost_step() -> None:
    clock = Clock()
    inner = clock.probe("inner", lambda: spin(20))

    def work() -> None:
        spin(5)
        inner()

    clock.probe("outer", work)()
    used = clock.steps_ns()
    assert used["inner"] >= 20_000_000
    assert 5_000_000 <= used["outer"] < 20_000_000
    assert [clock.cells[step][1:] for step in ("outer", "inner")] == [[1, 1], [1, 0]]


def test_errors_pass_through_a_probe() -> None:
    clock = Clock()

    def fail() -> None:
        raise ValueError

    probe = clock.probe("fail", fail)
    for _ in range(2):
        with pytest.raises(ValueError):
            probe()
    assert clock.cells["fail"][1] == 2


def test_other_threads_are_not_counted() -> None:
    clock = Clock()
    probe = clock.probe("step", lambda: None)
    thread = threading.Thread(target=probe)
    thread.start()
    thread.join()
    assert clock.cells["step"] == [0, 0, 0]


def test_the_plain_servers_time_is_divided_as_the_probed_ones() -> None:
    plain = [Costs(loop_us=50.0, other_us=1.0, worker_us=20.0, rows=1.0, steps_us={})]
    steps_us = {"1 decode": 30.0, "8 encode": 20.0, THE_PROBES: 20.0}
    rows = budget(plain, [Costs(loop_us=120.0, other_us=1.0, worker_us=20.0, rows=1.0, steps_us=steps_us)])
    assert rows["1 decode"] == pytest.approx(15.0)
    assert rows["8 encode"] == pytest.approx(10.0)
    assert rows[LOOP] == pytest.approx(25.0)
    assert rows["worker"] == 20.0

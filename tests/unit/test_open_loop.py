"""Schedules, and what a run of the open-loop generator is worth, without a generator."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from loadtests.open_loop import NO_ANSWER, RECORD, Outcome, Schedule, post_json, read_answers

MS = 1_000_000


def test_uniform_arrivals_are_equally_far_apart() -> None:
    due = Schedule(1000.0, 0.5, "uniform").due_ns()
    assert len(due) == 500
    assert set(np.diff(due.astype(np.int64))) <= {MS - 1, MS, MS + 1}


def test_poisson_arrivals_are_the_same_pattern_at_every_rate() -> None:
    slow, fast = Schedule(100.0, 40.0).due_ns(), Schedule(400.0, 10.0).due_ns()
    assert np.allclose(slow.astype(float), fast.astype(float) * 4)
    assert not np.array_equal(slow, Schedule(100.0, 40.0, seed=1).due_ns())
    gaps = np.diff(slow.astype(float)) / 1e9
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(0.01, rel=0.1)


def outcome(*rows: tuple[float, float, float, int, int, int]) -> Outcome:
    """Records of (due, sent, done in ms, status, answer, waited), after half a second of settling."""
    records = np.zeros(len(rows), RECORD)
    for index, (due, sent, done, status, answer, waited) in enumerate(rows):
        at = (round((500 + due) * MS) if due >= 0 else 0, round((500 + sent) * MS), round((500 + done) * MS))
        records[index] = (*at, status, answer, waited)
    return Outcome(Schedule(100.0, 1.0), records, [(0, b"good"), (1, b"good"), (0, b"bad")])


def test_a_run_is_judged_by_what_was_right_and_when() -> None:
    tally = outcome(
        (-1, 0, 1, 200, 0, 0),  # while it settles: not counted
        (0, 0, 10, 200, 0, 0),  # right
        (1, 1, 20, 200, 1, 0),  # right for the other request
        (2, 2, 52.5, 200, 0, 0),  # right, and too late
        (3, 3, 10, 200, 2, 0),  # wrong
        (4, 4, 10, 200, NO_ANSWER, 0),  # one more than the generator could keep: wrong
        (5, 5, 8, 503, NO_ANSWER, 0),
        (6, 6, 8, 429, NO_ANSWER, 0),
        (7, 7, 8, 504, NO_ANSWER, 0),
        (8, 8, 9, 500, NO_ANSWER, 0),
        (9, 9, 0, 0, NO_ANSWER, 0),  # never came
    ).tally(lambda request, body: body == b"good", limit_s=0.05, most_late_s=0.001)
    assert (tally.requests, tally.in_time, tally.right, tally.wrong, tally.refused, tally.failed) == (10, 2, 3, 2, 3, 2)
    assert tally.seconds == pytest.approx(0.1)
    assert tally.goodput_per_s == pytest.approx(20)
    assert tally.share_in_time == pytest.approx(0.2)
    assert tally.p50_s == pytest.approx(0.019)
    assert tally.refusal_p99_s == pytest.approx(0.003, rel=0.1)


def test_latency_counts_from_when_a_request_was_meant_to_be_sent() -> None:
    tally = outcome((0, 30, 31, 200, 0, 1)).tally(lambda *_: True, limit_s=0.02, most_late_s=0.001)
    assert tally.p50_s == pytest.approx(0.031)
    assert tally.in_time == 0
    assert tally.is_valid, "it waited for a connection, which is not the generator's fault"
    assert math.isnan(tally.lag_p99_s)


@pytest.mark.parametrize(("late", "is_valid"), [(1, True), (2, False)])
def test_a_run_whose_generator_was_late_is_invalid(late: int, is_valid: bool) -> None:
    rows = [(float(i), i + (5.0 if i < late else 0.0), i + 6.0, 200, 0, 0) for i in range(100)]
    assert outcome(*rows).tally(lambda *_: True, limit_s=1.0, most_late_s=0.001).is_valid is is_valid


def test_a_run_that_only_settles_is_an_error() -> None:
    with pytest.raises(ValueError, match="settling"):
        outcome((-1, 0, 1, 200, 0, 0)).tally(lambda *_: True, 1.0, 1.0)


def test_answers_are_read_as_the_generator_writes_them() -> None:
    data = struct.pack("=II", 1, 4) + b"abcd" + struct.pack("=II", 0, 0)
    assert read_answers(data) == [(1, b"abcd"), (0, b"")]


def test_requests_are_whole_http_requests() -> None:
    head, _, body = post_json("/v2/models/m/infer", {"inputs": []}).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert body == b'{"inputs":[]}'

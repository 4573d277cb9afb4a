"""The arithmetic of the mesh bench: what came of a run, what overlaps what, when goodput is back, and the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.bench_mesh import PARTS
from loadtests.bench_mesh_asked import NEVER_NS, Asked, Seen, asked, draw, recovery_s, seen, zipf_shares
from loadtests.bench_mesh_models import simples
from loadtests.bench_mesh_others import judge_copies, judge_policies
from loadtests.bench_mesh_report import Findings, report_text, worst, write_report
from loadtests.open_loop import NO_ANSWER, RECORD, Outcome, Schedule, Tally
from loadtests.prepared import MODELS, Row
from loadtests.simulate import CAPACITY
from loadtests.simulate_report import CLAIRVOYANT, COST, LRU, Result, Results
from loadtests.simulate_runs import Outcome as Simulated

MS = 1_000_000
NO_TALLY = Tally(0, 0.0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)


def run_of(*rows: tuple[float, float, bool]) -> Seen:
    """Requests of (due, done in ms, whether the answer was right); what was never answered is done at infinity."""
    due, done, good = zip(*rows, strict=True)
    done_ns = np.array([NEVER_NS if math.isinf(ms) else round(ms * MS) for ms in done], np.int64)
    due_ns = np.array([round(ms * MS) for ms in due], np.int64)
    return Seen(np.zeros(len(due), np.uint32), due_ns, done_ns, np.array(good), NO_TALLY)


def answer(name: str, total: int) -> bytes:
    output = {"name": "y", "datatype": "INT32", "shape": [1, 1], "data": [total]}
    return json.dumps({"model_name": name, "outputs": [output]}).encode()


def test_a_run_is_judged_by_model_and_in_the_clock_of_the_machine() -> None:
    questions = Asked(["a", "b"], [b"", b""], [{"y": np.array([[1]], np.int32)}, {"y": np.array([[2]], np.int32)}])
    answers = [(0, answer("a", 1)), (1, answer("b", 2)), (1, answer("a", 1)), (0, b"{}")]
    rows = [
        (100, 100, 105, 200, 0, 0),  # while it settles
        (600, 600, 610, 200, 0, 0),  # right
        (601, 601, 631, 200, 1, 0),  # right
        (602, 602, 632, 200, 2, 0),  # the other model's answer
        (603, 603, 633, 200, 3, 0),  # none at all
        (604, 604, 634, 503, NO_ANSWER, 0),
        (605, 605, 0, 0, NO_ANSWER, 0),  # never came
    ]
    records = np.zeros(len(rows), RECORD)
    for index, (due, sent, done, *rest) in enumerate(rows):
        records[index] = (due * MS, sent * MS, done * MS, *rest)
    outcome = Outcome(Schedule(100.0, 1.0), records, answers, begun_ns=7_000 * MS)
    run = seen(outcome, questions, np.array([0, 0, 1, 1, 0, 1, 0], np.uint32))
    assert run.good.tolist() == [True, True, False, False, False, False]
    assert run.failures == 4
    assert run.due_ns[0] == 7_600 * MS
    assert run.done_ns[0] == 7_610 * MS
    assert run.done_ns[-1] == NEVER_NS
    assert run.quantile_s(1.0) == pytest.approx(0.030)
    assert run.quantile_s(1.0, run.picks == 0) == pytest.approx(0.010)
    assert math.isnan(run.quantile_s(0.5, run.picks == 9))
    assert "2 wrong, 1 refused, 1 failed of 6" in run.text()


times = st.integers(0, 60)


@given(
    st.lists(st.tuples(times, times), max_size=8), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=5)
)
def test_what_overlaps_a_window(spans: list[tuple[int, int]], gaps: list[tuple[int, int]]) -> None:
    windows, at = [], 0
    for gap, length in gaps:
        windows.append(((at + gap) * MS, (at + gap + length) * MS))
        at += gap + length
    rows = [(min(span), max(span), True) for span in spans]
    if not rows:
        return
    slow = [any(b <= done * MS and e >= due * MS for b, e in windows) for due, done, _ in rows]
    assert run_of(*rows).overlaps(windows).tolist() == slow


def steady(*, down: range, until_ms: int = 2000) -> Seen:
    """A request every millisecond, answered after one; those due in some of them never."""
    return run_of(*((at, math.inf if at in down else at + 1, at not in down) for at in range(until_ms)))


@pytest.mark.parametrize(
    ("down", "seconds"),
    [
        (range(0), 0.0),
        (range(500, 700), 0.2),
        (range(500, 701), 0.2),  # one of fifty in the next bin: 95 % are there
        (range(500, 710), 0.25),
        (range(800, 900), 0.4),  # it was good again in between
        (range(400, 500), 0.0),  # before
        (range(600, 2000), 1.5),  # not before the end
        (range(1900, 2000), 0.0),  # long after it was back
    ],
)
def test_goodput_is_back_when_it_stays(down: range, seconds: float) -> None:
    found = recovery_s(steady(down=down), [500 * MS], limit_s=0.1, share=0.95, bin_s=0.05, hold_s=0.5)
    assert found == [pytest.approx(seconds)]


def test_each_moment_is_judged_until_the_next_one_and_late_answers_are_none() -> None:
    slow = run_of(*((at, at + (300 if 1000 <= at < 1100 else 1), True) for at in range(2000)))
    found = recovery_s(slow, [100 * MS, 1000 * MS], limit_s=0.1, share=0.95, bin_s=0.05, hold_s=0.5)
    assert found == [0.0, pytest.approx(0.1)]


def test_models_are_drawn_by_their_rates() -> None:
    shares = zipf_shares(100, 0.9)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] / shares[9] == pytest.approx(10**0.9)
    picks = draw(20_000, np.array([3.0, 0.0, 1.0]), seed=1)
    assert picks.dtype == np.uint32
    assert np.bincount(picks)[0] == pytest.approx(15_000, rel=0.05)
    assert np.bincount(picks)[1] == 0
    assert np.array_equal(picks, draw(20_000, np.array([3.0, 0.0, 1.0]), seed=1))


def test_models_differ_in_their_files_and_answer_alike(tmp_path: Path) -> None:
    model, names = simples(tmp_path, 25)
    files = [tmp_path / name / "1" / "model.onnx" for name in names]
    assert len({file.read_bytes() for file in files}) == 25
    assert onnx.load(str(files[7])).doc_string == names[7]
    config = (tmp_path / names[7] / "config.pbtxt").read_text()
    assert f'name: "{names[7]}"' in config
    assert '"roost.memory_bytes" value: { string_value: "128KiB" }' in config
    questions = asked(model, names)
    assert len(questions) == 25
    assert f"POST /v2/models/{names[24]}/infer ".encode() in questions.requests[24]
    first, second = (expected["OUTPUT0"] for expected in questions.expected[:2])
    assert not np.array_equal(first, second)
    assert np.array_equal(questions.expected[20]["OUTPUT0"], first)


def row(name: str, load_s: tuple[float, float], private: tuple[float, float], is_equal: bool = True) -> Row:
    """A model whose load takes so long plain and prepared, and its anonymous memory."""
    plain, copy = (
        {"load_wall_s": s, "first_run_s": 0.1, "private_bytes": b} for s, b in zip(load_s, private, strict=True)
    )
    return Row(name, plain, copy, 0, is_equal)


def test_copies_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Row, "text", lambda self: self.name)
    large, *others = MODELS
    found = Findings("copies")
    judge_copies(found, [row(large, (0.4, 0.1), (100.0, 5.0)), *(row(name, (0.1, 0.1), (9.0, 8.0)) for name in others)])
    assert [verdict.measured and verdict.measured.median for verdict in found.verdicts] == pytest.approx(
        [4.0, 0.05, 1.0]
    )
    assert found.is_met
    judge_copies(found, [row(large, (0.2, 0.1), (100.0, 20.0), is_equal=False), row("slow", (0.1, 0.2), (9.0, 8.0))])
    assert [verdict.is_met for verdict in found.verdicts[3:]] == [False, False, False]
    assert len(found.troubles) == 1


def test_policies_are_judged() -> None:
    loads = {"zipf-1": (5.0, 10.0, 4.0), "bursts": (10.5, 10.0, 4.0)}
    results = [
        Result(trace, 1, CAPACITY, policy, Simulated(waited_s=load_s))
        for trace, of in loads.items()
        for policy, load_s in zip((COST, LRU, CLAIRVOYANT), of, strict=True)
    ]
    found = Findings("policies")
    judge_policies(found, Results(results))
    figures = [verdict.measured.median for verdict in found.verdicts if verdict.measured]
    assert figures == pytest.approx([math.sqrt(0.5 * 1.05), 1.05, 1.25])
    assert [verdict.is_met for verdict in found.verdicts] == [True, False, True]


def test_the_report_says_what_is_met_and_what_is_not_known(tmp_path: Path) -> None:
    well, ill = Findings("well"), Findings("ill")
    well.at_most("seconds", 1.0, worst([0.2, 0.9, 0.4]))
    well.at_least("times", 3.0, [2.9, 3.1, 3.2])
    well.shown("beside", 5.0)
    ill.at_most("failures", 0, 3)
    ill.notes.append("as it was")
    ill.failed(RuntimeError("it\nbroke"))
    about: dict[str, Any] = {"cores": 2, "processor": "p", "python": "3", "date": "today"}
    text = report_text([well, ill], about)
    assert (well.is_met, ill.is_met) == (True, False)
    assert "2 of 3 gates met" in text
    assert "0.90 (0.20-0.90)" in text
    assert "not measured" in text
    assert "TROUBLE: RuntimeError: it broke" in text
    write_report(tmp_path, text, [well, ill], about)
    document = json.loads((tmp_path / "results.json").read_text())
    assert [verdict["met"] for verdict in document["parts"][0]["verdicts"]] == [True, True, None]
    assert (tmp_path / "report.txt").read_text() == text


def test_every_part_is_described() -> None:
    assert all(part.about for part in PARTS.values())

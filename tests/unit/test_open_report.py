"""Gates and tables of the open-loop bench, from measurements that are made up."""

from __future__ import annotations

import dataclasses
import math

import pytest

from loadtests.contender import Measured, Objective, Overload
from loadtests.knee import Curve
from loadtests.open_loop import Tally
from loadtests.open_report import ModelResult, Series, as_document, results_table

TALLY = Tally(
    requests=1000,
    seconds=10.0,
    in_time=1000,
    right=1000,
    wrong=0,
    refused=0,
    failed=0,
    p50_s=0.01,
    p99_s=0.02,
    refusal_p99_s=math.nan,
    lag_p99_s=0.0001,
    late_share=0.0,
)
AT_KNEE = Measured(100.0, TALLY, cpu_s=1.0, requests=1000)


def overload(refused: int, cpu_s: float = 1.0, refusal_p99_s: float = 0.01) -> Overload:
    """At twice the knee: half as much time for as many requests."""
    right = 1000 - refused
    refusal_p99_s = refusal_p99_s if refused else math.nan
    tally = dataclasses.replace(
        TALLY, seconds=5.0, in_time=right, right=right, refused=refused, refusal_p99_s=refusal_p99_s
    )
    return Overload(AT_KNEE, Measured(200.0, tally, cpu_s, 1000))


def test_what_overload_leaves_is_goodput_by_goodput() -> None:
    assert overload(refused=500).kept == pytest.approx(1.0)
    assert overload(refused=900).kept == pytest.approx(0.2)


def test_a_refusal_costs_what_answers_do_not_explain() -> None:
    # 500 answers of 1 ms each, as at the knee; the other 0.1 s are 500 refusals.
    assert overload(refused=500, cpu_s=0.6).refusal_cpu_s == pytest.approx(0.0002)
    assert math.isnan(overload(refused=0).refusal_cpu_s)


def result(is_work: bool, ours: list[float], *others: list[float]) -> ModelResult:
    names = ["roost", "triton", "mosec"]
    servers = {
        name: Series([Curve([(knee, 1.0)]) for knee in knees], [overload(500)] * len(knees))
        for name, knees in zip(names, [ours, *others], strict=False)
    }
    return ModelResult("m", is_work, 0.05, servers)


def test_the_lead_is_over_the_best_peer_of_each_round() -> None:
    lead = result(True, [110.0, 120.0, 90.0], [100.0, 50.0, 100.0], [50.0, 100.0, 10.0]).lead()
    assert lead is not None
    assert (lead.median, lead.low, lead.high) == pytest.approx((1.1, 0.9, 1.2))
    assert result(True, [100.0]).lead() is None


@pytest.mark.parametrize(
    ("is_work", "met"), [(True, [True, True, True]), (False, [True, True])], ids=["work", "simple"]
)
def test_gates_are_judged(is_work: bool, met: list[bool]) -> None:
    assert [verdict.is_met for verdict in result(is_work, [110.0], [100.0]).verdicts()] == met


def test_missed_gates_are_said() -> None:
    missed = result(True, [100.0], [100.0])
    missed.servers["roost"].overloads = [overload(600, refusal_p99_s=0.021)]
    assert [verdict.is_met for verdict in missed.verdicts()] == [False, False, False]
    missed.servers["roost"].overloads = [overload(0)]
    assert missed.verdicts()[1].measured is None, "nothing was refused"


def test_the_table_has_a_row_for_each_server() -> None:
    results = [result(True, [110.0, 120.0], [100.0, 50.0])]
    rows = results_table(results).splitlines()
    assert len(rows) == 3
    assert rows[1].startswith("m (50 ms), roost")
    assert "115 (110" in rows[1]
    assert set(as_document(results)) == {"m"}


def test_runs_are_long_enough_to_count() -> None:
    objective = Objective(0.05, seconds=4.0)
    assert objective.run_s(10_000.0) == 4.0
    assert objective.run_s(50.0) == pytest.approx(8.0)
    assert objective.run_s(1.0) == 16.0
    assert objective.timeout_s < objective.limit_s

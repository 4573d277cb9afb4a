"""The arithmetic of the closed-loop bench, and its reading of what load generators print."""

from __future__ import annotations

import pytest

from loadtests.bench_load import Load, LoadFailed, parse_h2load, parse_wrk
from loadtests.bench_plan import CELLS, GATES
from loadtests.bench_report import gates_table, table
from loadtests.bench_stats import Gate, Sample, Spread, judge, ratio

WRK = """Running 3s test @ http://127.0.0.1:8000/v2/models/simple/infer
  1 threads and 16 connections
Requests/sec:   2000.00

{"requests": 6000, "duration_us": 3000000, "p50_us": 450, "p99_us": 2100, "errors": {"read": 0, "status": %d}}
"""

H2LOAD = """finished in 2.00s, 2000.00 req/s, 512.00KB/s
requests: 4016 total, 4016 started, 4000 done, %d succeeded, %d failed, 0 errored, 0 timeout
status codes: 4016 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.02MB (1069547) total, 125.00KB (128000) headers (space savings 80.00%%), 625.00KB (%d) data
"""
LOG = "".join(f"{1_700_000_000_000_000 + 500 * i}\t200\t{i}\n" for i in range(1, 102))


def test_wrk_is_read_from_its_last_line() -> None:
    assert parse_wrk(WRK % 0) == Load(6000, 3.0, 0.00045, 0.0021)
    assert parse_wrk(WRK % 0).rate_per_s == 2000


def test_h2load_is_read_from_summary_and_log() -> None:
    load = parse_h2load(H2LOAD % (4000, 0, 4000 * 160), LOG, 160)
    assert (load.requests, load.seconds) == (4000, 2.0)
    assert (load.p50_s, load.p99_s) == pytest.approx((51e-6, 100e-6))


@pytest.mark.parametrize(
    ("text", "what"),
    [(WRK % 3, "'status': 3"), ("unable to connect", "no summary"), (WRK.replace("6000", "0") % 0, "in 0 requests")],
)
def test_wrk_that_saw_errors_counts_for_nothing(text: str, what: str) -> None:
    with pytest.raises(LoadFailed, match=what):
        parse_wrk(text)


@pytest.mark.parametrize(
    ("text", "log", "what"),
    [
        (H2LOAD % (3993, 7, 4000 * 160), LOG, "7 of 4000 requests failed"),
        (H2LOAD % (0, 0, 0), LOG, "failed"),
        (H2LOAD % (4000, 0, 4000 * 160), "", "failed"),
        # An error of gRPC: HTTP status 200, and no message.
        (H2LOAD % (4000, 0, 3000 * 160), LOG, "right ones have 160 each"),
        ("could not resolve", LOG, "no summary"),
    ],
)
def test_h2load_that_saw_errors_counts_for_nothing(text: str, log: str, what: str) -> None:
    with pytest.raises(LoadFailed, match=what):
        parse_h2load(text, log, 160)


def samples(*rates: float) -> list[Sample]:
    return [Sample(rate, 1 / rate, 2 / rate, 1.0) for rate in rates]


def test_ratios_compare_neighbours() -> None:
    # A machine that becomes half as fast in the middle changes no ratio.
    assert ratio(samples(400, 200, 210), samples(100, 50, 50), "rate") == Spread(4.0, 4.0, 4.2)
    assert ratio(samples(400), samples(100, 50), "p50") == Spread(0.25, 0.25, 0.25)
    assert ratio([], samples(100), "rate") is None


@pytest.mark.parametrize(
    ("gate", "is_met"),
    [
        (Gate("", "cell", "roost", "peer", 4.0), True),
        (Gate("", "cell", "roost", "peer", 4.1), False),
        (Gate("", "cell", "roost", "peer", 0.25, "p50", at_least=False), True),
        (Gate("", "cell", "roost", "peer", 0.2, "p50", at_least=False), False),
        (Gate("", "cell", "roost", "peer", None), None),
        (Gate("", "cell", "roost", "absent", 1.0), None),
        (Gate("", "absent", "roost", "peer", 1.0), None),
    ],
)
def test_gates(gate: Gate, is_met: bool | None) -> None:
    verdict = judge(gate, {"cell": {"roost": samples(400, 400, 900), "peer": samples(100, 100, 100)}})
    assert verdict.is_met is is_met


def test_tables() -> None:
    assert table([("a", "b"), ("long", "1"), ("x", "")]) == "a     b\nlong  1\nx"
    verdict = judge(Gate("it", "c", "r", "p", 2.0), {"c": {"r": samples(3), "p": samples(2)}})
    assert "NOT MET" in gates_table([verdict])
    assert gates_table([verdict]).endswith("1.50  NOT MET")
    assert Spread(1.5, 1.0, 2.0).text() == "1.50 (1.00-2.00)"


def test_every_gate_has_a_cell_with_both_servers() -> None:
    servers = {cell.key: cell.servers for cell in CELLS}
    assert len(servers) == len(CELLS)
    for gate in GATES:
        assert {gate.server, gate.peer} <= set(servers[gate.cell]), gate

"""The metrics that others' dashboards ask for: Triton's to the letter, KServe's for a bounded number of models."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from roost.core.errors import Code, Limit
from roost.core.frames import StepTimes
from roost.core.names import DEFAULT_NAMESPACE, VersionKey
from roost.router.records import RequestRecord
from roost.router.revision import Revision
from roost.router.stats import Stats
from roost.router.view import MeshView
from roost.server.exposition import SLICE
from roost.server.metrics import Metrics
from roost.server.metrics_kserve import MAX_MODELS, KServeHistograms
from roost.server.metrics_machine import MachineUsage
from roost.server.metrics_triton import triton_slices

EMPTY = MeshView(True, 0, 0, 0, 0, (), ())
STEPS = StepTimes(0, 1_000, 1_000, 4_000_000, 4_000_000, 4_002_000)


def revision(name: str, version: str = "1", *, used: bool = True, waiting: int = 0) -> Revision:
    """As much of one as metrics look at."""
    key = VersionKey(DEFAULT_NAMESPACE, name, version)
    return cast(
        Revision, SimpleNamespace(key=key, used=used, queue=deque([None] * waiting), caches=False, sequences=None)
    )


def record(name: str, code: Code | None = None, limit: Limit | None = None) -> RequestRecord:
    steps = (1e-6, 3.999e-3, 2e-6) if code is None else (0.0, 0.0, 0.0)
    return RequestRecord(name, "1", code, 0.007, 0.001, 0.0, *steps, 0.0015, 0.0005, limit)


def busy() -> Stats:
    """Three successes of ``m`` in batches of 1, 1 and 4, and failures."""
    stats = Stats()
    for rows in (1, 1, 4):
        stats.of("m", "1").ran(rows, STEPS)
        stats.record(record("m"))
    for code, limit in ((Code.RESOURCE_EXHAUSTED, Limit.QUEUE_FULL), (Code.INTERNAL, None), (Code.INTERNAL, None)):
        stats.record(record("m", code, limit))
    stats.loaded("m", "1", 0.25)
    return stats


def lines(stats: Stats, *shown: Revision) -> list[str]:
    return "".join(triton_slices([shown], stats)).splitlines()


EXPECTED = """
nv_inference_request_success{model="m",version="1"} 3
nv_inference_count{model="m",version="1"} 6
nv_inference_exec_count{model="m",version="1"} 3
nv_inference_request_duration_us{model="m",version="1"} 21000
nv_inference_queue_duration_us{model="m",version="1"} 3000
nv_inference_compute_input_duration_us{model="m",version="1"} 3
nv_inference_compute_infer_duration_us{model="m",version="1"} 11997
nv_inference_compute_output_duration_us{model="m",version="1"} 6
nv_inference_request_failure{model="m",reason="REJECTED",version="1"} 1
nv_inference_request_failure{model="m",reason="CANCELED",version="1"} 0
nv_inference_request_failure{model="m",reason="BACKEND",version="1"} 2
nv_inference_request_failure{model="m",reason="OTHER",version="1"} 0
nv_inference_pending_request_count{model="m",version="1"} 2
nv_model_load_duration_secs{model="m",version="1"} 0.25
""".split("\n")[1:-1]  # noqa: SIM905


def test_tritons_samples_to_the_letter() -> None:
    written = lines(busy(), revision("m", waiting=2))
    assert [line for line in written if not line.startswith("#")] == EXPECTED
    types = {line.split()[2]: line.split()[3] for line in written if line.startswith("# TYPE")}
    for line in EXPECTED:
        name = line.partition("{")[0]
        assert types[name] == ("gauge" if name.startswith(("nv_model", "nv_inference_pending")) else "counter")
        assert sum(line.startswith(f"# HELP {name} ") for line in written) == 1


def test_a_version_that_was_not_used_yet_shows_zeros() -> None:
    stats = busy()
    stats.loaded("new", "1", 0.5)
    samples = [line for line in lines(stats, revision("new", used=False)) if not line.startswith("#")]
    assert len(samples) == len(EXPECTED)
    assert {line.rpartition(" ")[2] for line in samples} == {"0", "0.5"}
    reused = [line for line in lines(stats, revision("m", used=False)) if "success" in line]
    assert 'nv_inference_request_success{model="m",version="1"} 0' in reused, "a new revision of a used version"


def test_first_responses_of_decoupled_models() -> None:
    stats = Stats()
    own = stats.of("m", "1")
    own.stream_failed(cast(Any, SimpleNamespace(run_ended=0.0, responses=0)), cancelled=False)
    assert own.responses is not None
    own.responses.first(0.3)
    name = "nv_inference_first_response_histogram_ms"
    assert [line for line in lines(stats, revision("m")) if line.startswith(name)] == [
        f'{name}_bucket{{model="m",version="1",le="100"}} 0',
        f'{name}_bucket{{model="m",version="1",le="500"}} 1',
        f'{name}_bucket{{model="m",version="1",le="2000"}} 1',
        f'{name}_bucket{{model="m",version="1",le="5000"}} 1',
        f'{name}_bucket{{model="m",version="1",le="+Inf"}} 1',
        f'{name}_sum{{model="m",version="1"}} 300.0',
        f'{name}_count{{model="m",version="1"}} 1',
    ]


async def scrape(metrics: Metrics) -> str:
    return b"".join([part async for part in metrics.render()]).decode()


async def test_one_valid_exposition_holds_all_of_it() -> None:
    stats = busy()
    metrics = Metrics(stats, lambda: EMPTY, shown=lambda: iter([[revision("m")], [], [revision('odd"name')]]))
    stats.record(record("m"))
    stats.refusals[Limit.BODY_BUDGET] += 1
    text = await scrape(metrics)
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {"nv_cpu_utilization", "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes"} <= set(names)
    assert {"request_preprocess_seconds", "request_predict_seconds", "request_explain_seconds"} <= set(names)
    assert 'roost_refusals_total{reason="body_budget"} 1' in text
    assert 'roost_refusals_total{reason="queue_full"} 1' in text
    assert 'roost_refusals_total{reason="draining"} 0' in text


async def test_tritons_metrics_can_be_left_out() -> None:
    assert "nv_" not in await scrape(Metrics(busy(), lambda: EMPTY, shown=None))


async def test_20_000_models_are_written_in_small_parts() -> None:
    stats = Stats()
    shown = [revision(f"customer-{index:05d}") for index in range(20_000)]
    for one in shown:
        stats.record(record(one.key.name))
    parts = list(triton_slices([shown], stats))
    assert max(map(len, parts)) < 4 * 100 * SLICE
    assert sum(map(len, parts)) < 20_000 * 1100


def kserve_samples(histograms: KServeHistograms) -> dict[tuple[str, str], float]:
    """Counts and sums by name and model."""
    families = text_string_to_metric_families("".join(histograms.slices()))
    samples = [sample for family in families for sample in family.samples if not sample.name.endswith("_bucket")]
    return {(sample.name, sample.labels["model_name"]): sample.value for sample in samples}


def test_kserves_steps_add_up_to_the_request() -> None:
    histograms = KServeHistograms()
    histograms.observe(record("m"))
    samples = kserve_samples(histograms)
    assert samples["request_preprocess_seconds_sum", "m"] == pytest.approx(0.0015)
    assert samples["request_predict_seconds_sum", "m"] == pytest.approx(0.005)
    assert samples["request_postprocess_seconds_sum", "m"] == pytest.approx(0.0005)
    assert not [name for name, _ in samples if "explain" in name]


def test_kserves_models_are_bounded() -> None:
    histograms = KServeHistograms(["chosen"])
    for index in range(MAX_MODELS + 50):
        histograms.observe(record(f"m{index}"))
    histograms.observe(record("chosen"))
    samples = kserve_samples(histograms)
    names = {model for _, model in samples}
    assert len(names) == MAX_MODELS + 2
    assert samples["request_predict_seconds_count", ""] == 50
    assert samples["request_predict_seconds_count", "chosen"] == 1


def clock(*times: float) -> Callable[[], float]:
    values: Iterator[float] = iter(times)
    return lambda: next(values)


def test_the_machine(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n")
    (proc / "stat").write_text("cpu 100 0 0 300 0 0 0 0 50 0\ncpu0 1 1\n")
    usage = MachineUsage(tmp_path, clock(0.0, 5.0, 5.5, 10.0))
    (proc / "stat").write_text("cpu 170 0 5 320 5 0 0 0 50 0\ncpu0 1 1\n")
    assert usage.cpu_share() == pytest.approx(0.75)
    (proc / "stat").write_text("cpu 170 0 5 920 5 0 0 0 50 0\ncpu0 1 1\n")
    assert usage.cpu_share() == pytest.approx(0.75), "too soon to look again"
    assert usage.cpu_share() == 0
    assert (usage.memory_total_bytes, usage.memory_used_bytes()) == (1000 * 1024, 600 * 1024)

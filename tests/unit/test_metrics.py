"""The exposition: valid, complete, and small however many models there are."""

from __future__ import annotations

import asyncio
import re
import tracemalloc
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from roost.core.errors import Code
from roost.core.frames import StepTimes
from roost.router.records import RequestRecord
from roost.router.stats import Stats
from roost.router.view import DeviceView, InstanceView, MeshView, WorkerView
from roost.server.exposition import BUCKETS_S, SLICE, Histogram, labels_of
from roost.server.metrics import Metrics

MIB = 2**20
_OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
EMPTY = MeshView(True, 0, 0, 0, 0, (), ())

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def record(name: str, code: Code | None = None) -> RequestRecord:
    infer_s = 0.003 if code is None else 0.0
    steps = (0.0, infer_s, 0.0)
    return RequestRecord(name, "1" if name else "", code, 0.004, 0.0, 0.0, *steps, preprocess_s=0.0, postprocess_s=0.0)


async def scrape(metrics: Metrics) -> str:
    return b"".join([part async for part in metrics.render()]).decode()


def samples_of(text: str) -> Samples:
    """The samples of an exposition, which must hold each name and each series only once."""
    names: list[str] = []
    samples: Samples = {}
    for metric in text_string_to_metric_families(text):
        names.append(metric.name)
        assert metric.documentation, metric.name
        assert metric.type != "unknown", metric.name
        for sample in metric.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = sample.value
    assert len(names) == len(set(names))
    return samples


def busy_view() -> MeshView:
    instances = (
        InstanceView("a", "1", "ready", 10 * MIB, 1, 0.0),
        InstanceView("a", "1", "ready", 10 * MIB, 0, 5.0),
        InstanceView("b", "2", "draining", 5 * MIB, 1, 0.0),
        InstanceView("c", "1", "loading", 7 * MIB, 0, 0.0),
    )
    workers = (
        WorkerView(0, "onnx", "cpu", "up", 77, 1, 0, 1, 60 * MIB, instances, 5 * MIB),
        WorkerView(1, "onnx", "cpu", "down", 78, 2, 3, 0, 0, ()),
    )
    return MeshView(True, 12, 4, 3 * MIB, 64 * MIB, (DeviceView("cpu", 100 * MIB, 32 * MIB, 7 * MIB),), workers, MIB)


async def test_counters_by_model_version_and_code() -> None:
    stats = Stats()
    metrics = Metrics(stats, lambda: EMPTY)
    stats.record(record("a"))
    stats.record(record("a"))
    stats.record(record("a", Code.DEADLINE_EXCEEDED))
    stats.record(record("", Code.NOT_FOUND))
    stats.of("a", "1").loads = 3
    stats.of("a", "1").load_s = 0.25
    stats.of("b", "7").evictions = 2
    samples = samples_of(await scrape(metrics))

    def value(name: str, **labels: str) -> float | None:
        return samples.get((name, tuple(sorted(labels.items()))))

    assert value("roost_requests_total", model="a", version="1", code="OK") == 2
    assert value("roost_requests_total", model="a", version="1", code="DEADLINE_EXCEEDED") == 1
    assert value("roost_requests_total", model="", version="", code="NOT_FOUND") == 1
    assert value("roost_requests_total", model="", version="", code="OK") is None
    assert value("roost_compute_seconds_total", model="a", version="1") == pytest.approx(0.006)
    assert value("roost_loads_total", model="a", version="1") == 3
    assert value("roost_loading_seconds_total", model="a", version="1") == 0.25
    assert value("roost_loads_total", model="b", version="7") == 0
    assert value("roost_evictions_total", model="b", version="7") == 2
    assert value("roost_evictions_total", model="a", version="1") is None


async def test_requests_for_unknown_models_make_one_series_per_code() -> None:
    stats = Stats()
    metrics = Metrics(stats, lambda: EMPTY)
    for _ in range(50):
        stats.record(record("", Code.NOT_FOUND))
    lines = [line for line in (await scrape(metrics)).splitlines() if 'model=""' in line]
    assert lines == ['roost_requests_total{model="",version="",code="NOT_FOUND"} 50']


async def test_gauges_of_devices_and_workers() -> None:
    samples = samples_of(await scrape(Metrics(Stats(), busy_view)))
    expected: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("roost_ready", ()): 1,
        ("roost_models", ()): 12,
        ("roost_queued_requests", ()): 4,
        ("roost_body_bytes", ()): 3 * MIB,
        ("roost_answer_bytes", ()): MIB,
        ("roost_device_budget_bytes", (("device", "cpu"),)): 100 * MIB,
        ("roost_device_used_bytes", (("device", "cpu"),)): 32 * MIB,
        ("roost_device_reserved_bytes", (("device", "cpu"),)): 7 * MIB,
        ("roost_worker_up", (("worker", "0"),)): 1,
        ("roost_worker_up", (("worker", "1"),)): 0,
        ("roost_worker_restarts_total", (("worker", "1"),)): 3,
        ("roost_worker_private_bytes", (("worker", "0"),)): 60 * MIB,
        ("roost_worker_arena_bytes", (("worker", "0"),)): 5 * MIB,
        ("roost_resident_models", (("worker", "0"),)): 2,
        ("roost_resident_bytes", (("device", "cpu"), ("worker", "0"))): 25 * MIB,
        ("roost_model_resident_bytes", (("model", "a"), ("version", "1"), ("worker", "0"))): 20 * MIB,
        ("roost_model_resident_bytes", (("model", "b"), ("version", "2"), ("worker", "0"))): 5 * MIB,
    }
    assert {key: samples.get(key) for key in expected} == expected
    assert ("roost_model_resident_bytes", (("model", "c"), ("version", "1"), ("worker", "0"))) not in samples
    assert ("process_resident_memory_bytes", ()) in samples


async def test_histograms_over_all_models() -> None:
    stats = Stats()
    metrics = Metrics(stats, lambda: EMPTY)
    stats.record(record("a"))
    stats.record(record("b", Code.RESOURCE_EXHAUSTED))
    assert stats.on_load is not None
    stats.on_load("a", 100.0)
    samples = samples_of(await scrape(metrics))
    assert samples["roost_request_seconds_count", ()] == 2
    assert samples["roost_request_seconds_sum", ()] == pytest.approx(0.008)
    assert samples["roost_request_seconds_bucket", (("le", "0.0025"),)] == 0
    assert samples["roost_request_seconds_bucket", (("le", "0.005"),)] == 2
    # What was refused did not get to the runtime, so it says nothing of how long that takes.
    assert samples["roost_request_compute_seconds_count", ()] == 1
    assert samples["roost_request_queue_seconds_count", ()] == 1
    assert samples["roost_load_seconds_bucket", (("le", "60"),)] == 0
    assert samples["roost_load_seconds_bucket", (("le", "+Inf"),)] == 1
    assert not any(name.startswith("roost_model_request") for name, _ in samples)


async def test_histograms_of_chosen_models() -> None:
    stats = Stats()
    metrics = Metrics(stats, lambda: EMPTY, ["a", "idle"])
    for name in ("a", "a", "b"):
        stats.record(record(name))
    samples = samples_of(await scrape(metrics))
    assert samples["roost_request_seconds_count", ()] == 3
    assert samples["roost_model_request_seconds_count", (("model", "a"),)] == 2
    assert samples["roost_model_request_seconds_count", (("model", "idle"),)] == 0
    assert ("roost_model_request_seconds_count", (("model", "b"),)) not in samples


async def test_all_families_are_documented() -> None:
    metrics = Metrics(Stats(), busy_view, ["a"])
    names = set(re.findall(r"^# TYPE (roost_\w+)", await scrape(metrics), re.MULTILINE))
    assert len(names) > 30
    documented = set(re.findall(r"\broost_\w+", _OPERATIONS.read_text()))
    assert sorted(names - documented) == []


def test_buckets_include_their_upper_bound() -> None:
    histogram = Histogram()
    for bound in BUCKETS_S:
        histogram.observe(bound)
    histogram.observe(61.0)
    assert histogram.counts == [1] * (len(BUCKETS_S) + 1)


async def test_label_values_are_escaped() -> None:
    name = 'a"b\\c\nd'
    assert labels_of(model=name) == 'model="a\\"b\\\\c\\nd"'
    stats = Stats()
    metrics = Metrics(stats, lambda: EMPTY)
    stats.of(name, "1").ok = 1
    samples = samples_of(await scrape(metrics))
    assert samples["roost_requests_total", (("code", "OK"), ("model", name), ("version", "1"))] == 1


async def test_models_that_come_during_a_scrape_do_not_break_it() -> None:
    stats = Stats()
    metrics = Metrics(stats, lambda: EMPTY)
    for index in range(3 * SLICE):
        stats.of(f"m{index}", "1")
    parts = []
    async for part in metrics.render():
        parts.append(part)
        stats.of(f"new{len(parts)}", "1").ok = 1
    samples_of(b"".join(parts).decode())


async def test_20_000_models_cost_little() -> None:
    """Less than a kilobyte each in memory; written in small slices with turns of the event loop in between."""
    tracemalloc.start()
    try:
        stats = Stats()
        for index in range(20_000):
            name = f"customer-{index:05d}"
            stats.of(name, "1").ran(1, StepTimes(1, 2000, 2000, 5_000_000, 5_000_000, 5_100_000))
            stats.record(RequestRecord(name, "1", None, 0.01, 0.001, 0.002, 0.0001, 0.003, 0.0002, 0.001, 0.001))
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes / 20_000 < 1024

    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    metrics = Metrics(stats, lambda: EMPTY)
    async with asyncio.TaskGroup() as group:
        other = group.create_task(other_work())
        parts = [part async for part in metrics.render()]
        other.cancel()
    assert len(parts[0]) < 15_000
    assert max(len(part) for part in parts[1:]) < 150 * SLICE
    assert turns >= len(parts)
    assert sum(len(part) for part in parts) < 20_000 * 512

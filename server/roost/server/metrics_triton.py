"""Triton's metrics, under its names and labels, so that dashboards made for it go on working.

The text is made here, not by prometheus_client, which would end the names of counters in ``_total``. A version's series
are there from its load call or its first request until it is not available any more, and then start at 0 again;
evictions do not touch them. They are counters of the present revision, as the statistics extension has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from roost.router.cache_counts import CacheStats
from roost.router.outcomes import Outcome
from roost.router.responses import FIRST_RESPONSE_MS, ResponseStats
from roost.router.revision import Revision
from roost.router.statistics import counted_of
from roost.router.stats import Counted, Stats
from roost.router.view import DeviceView
from roost.server.exposition import SLICE, escape, family, head, join, labels_of, number
from roost.server.metrics_machine import MachineUsage

_REASONS = tuple(outcome.name for outcome in Outcome)
_FAILURE = "nv_inference_request_failure"
_PENDING = "nv_inference_pending_request_count"
_LOAD = "nv_model_load_duration_secs"
_FIRST = "nv_inference_first_response_histogram_ms"
_FIRST_BOUNDS = (*map(str, FIRST_RESPONSE_MS), "+Inf")


class _Row(NamedTuple):
    """What is said of a version; its labels in two parts, since one comes between them where it is sorted in."""

    model: str
    version: str
    labels: str
    counted: Counted
    pending: int
    load_s: float | None
    first_responses: ResponseStats | None
    cache: CacheStats | None


_COUNTERS: tuple[tuple[str, str, Callable[[Counted], int]], ...] = (
    ("nv_inference_request_success", "Requests that succeeded.", lambda counted: counted.success),
    ("nv_inference_count", "Rows of batches that were run.", lambda counted: counted.rows),
    ("nv_inference_exec_count", "Batches that were run.", lambda counted: counted.executions),
    (
        "nv_inference_request_duration_us",
        "Microseconds that successful requests took in all.",
        lambda counted: counted.success_ns // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Microseconds that successful requests waited for a free slot or for their model to be loaded.",
        lambda counted: counted.queue_ns // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Microseconds that workers took to make input ready.",
        lambda counted: counted.input_ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Microseconds that models took to compute.",
        lambda counted: counted.infer_ns // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Microseconds that workers took to make output ready.",
        lambda counted: counted.output_ns // 1000,
    ),
)

_CACHE_COUNTERS: tuple[tuple[str, str, Callable[[CacheStats], int]], ...] = (
    ("nv_cache_num_hits_per_model", "Requests that were answered from the cache.", lambda cache: cache.hits),
    ("nv_cache_num_misses_per_model", "Requests whose answer was not in the cache.", lambda cache: cache.misses),
    (
        "nv_cache_hit_duration_per_model",
        "Microseconds that answers from the cache took in all.",
        lambda cache: cache.hit_ns // 1000,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "Microseconds that looking into the cache and keeping answers took otherwise.",
        lambda cache: cache.miss_ns // 1000,
    ),
)


_OF_GPUS: tuple[tuple[str, str, str, Callable[[DeviceView], float | None]], ...] = (
    ("nv_gpu_utilization", "gauge", "Share of the last moment for which the GPU was busy.", attrgetter("utilization")),
    ("nv_gpu_memory_total_bytes", "gauge", "Memory of the GPU.", attrgetter("total_bytes")),
    ("nv_gpu_memory_used_bytes", "gauge", "Memory of the GPU in use, by anybody.", attrgetter("really_used_bytes")),
    ("nv_gpu_power_usage", "gauge", "Watts that the GPU draws.", attrgetter("power_w")),
    ("nv_gpu_power_limit", "gauge", "Watts that the GPU may draw.", attrgetter("power_limit_w")),
    ("nv_energy_consumption", "counter", "Joules that the GPU has drawn.", attrgetter("energy_j")),
)


def triton_slices(shown: Iterable[Sequence[Revision]], stats: Stats) -> Iterator[str]:
    """The text of all series by model; some parts are empty, the event loop may take its turn after each.

    Args:
        shown: The revisions to show, in parts.
        stats: Their counters.
    """
    slices: list[list[_Row]] = []
    cached: list[_Row] = []
    for part in shown:
        for start in range(0, len(part), SLICE):
            rows = [_row(revision, stats) for revision in part[start : start + SLICE]]
            slices.append(rows)
            cached += [row for row in rows if row.cache is not None]
            yield ""
        yield ""
    for name, text, value_of in _COUNTERS:
        yield head(name, "counter", text)
        for rows in slices:
            yield join([f"{name}{{{row.labels}}} {value_of(row.counted)}" for row in rows])
    yield head(_FAILURE, "counter", "Requests that failed, by the sort of failure.")
    for rows in slices:
        yield join(
            [
                f'{_FAILURE}{{{row.model},reason="{reason}",{row.version}}} {count}'
                for row in rows
                for reason, count in zip(_REASONS, row.counted.failures, strict=True)
            ]
        )
    yield head(_PENDING, "gauge", "Requests that wait and are not run yet.")
    for rows in slices:
        yield join([f"{_PENDING}{{{row.labels}}} {row.pending}" for row in rows])
    yield head(_LOAD, "gauge", "Seconds that the last load of the model version took.")
    for rows in slices:
        yield join([f"{_LOAD}{{{row.labels}}} {number(row.load_s)}" for row in rows if row.load_s is not None])
    yield head(_FIRST, "histogram", "Milliseconds from requests to their first response, decoupled models only.")
    for rows in slices:
        yield join([line for row in rows if row.first_responses for line in _first_lines(row)])
    yield from _cache_slices(cached)


def _cache_slices(rows: list[_Row]) -> Iterator[str]:
    """The series of models that have a cache; none of them if none has."""
    for name, text, value_of in _CACHE_COUNTERS if rows else ():
        yield head(name, "counter", text)
        for start in range(0, len(rows), SLICE):
            part = rows[start : start + SLICE]
            yield join([f"{name}{{{row.labels}}} {value_of(row.cache)}" for row in part if row.cache is not None])


def machine_text(usage: MachineUsage) -> str:
    """The series of the whole machine."""
    return (
        family("nv_cpu_utilization", "gauge", "Share of the CPUs that was busy lately.", [("", usage.cpu_share())])
        + family("nv_cpu_memory_total_bytes", "gauge", "Memory of the machine.", [("", usage.memory_total_bytes)])
        + family("nv_cpu_memory_used_bytes", "gauge", "Memory in use.", [("", usage.memory_used_bytes())])
    )


def gpu_text(devices: Iterable[DeviceView]) -> str:
    """The series of the GPUs, without what they do not say."""
    gpus = [(labels_of(gpu_uuid=device.uuid), device) for device in devices if device.uuid]
    if not gpus:
        return ""
    return "".join(
        family(name, type_, text, [(labels, value) for labels, gpu in gpus if (value := value_of(gpu)) is not None])
        for name, type_, text, value_of in _OF_GPUS
    )


def _row(revision: Revision, stats: Stats) -> _Row:
    key = revision.key
    own, counted = counted_of(revision, stats)
    model, version = f'model="{escape(key.name)}"', f'version="{escape(key.version)}"'
    return _Row(
        model,
        version,
        f"{model},{version}",
        counted,
        len(revision.queue) + (revision.sequences.table.waiting if revision.sequences is not None else 0),
        own.last_load_s if own is not None and own.loads else None,
        own.responses if own is not None and revision.used else None,
        (own.cache if own is not None and revision.used else None) or (CacheStats() if revision.caches else None),
    )


def _first_lines(row: _Row) -> Iterator[str]:
    responses = row.first_responses
    assert responses is not None
    total = 0
    for bound, total in zip(_FIRST_BOUNDS, accumulate(responses.first_counts), strict=True):
        yield f'{_FIRST}_bucket{{{row.labels},le="{bound}"}} {total}'
    yield f"{_FIRST}_sum{{{row.labels}}} {number(responses.first_ms)}"
    yield f"{_FIRST}_count{{{row.labels}}} {total}"

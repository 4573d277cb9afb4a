"""Triton's metrics, under its names and labels, so that dashboards made for it go on working.

The text is made here, not by prometheus_client, which would end the names of counters in ``_total``. A version's series
are there from its load call or its first request until it is not available any more, and then start at 0 again;
evictions do not touch them. They are counters of the present revision, as the statistics extension has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from typing import NamedTuple

from roost.router.outcomes import Outcome
from roost.router.responses import FIRST_RESPONSE_MS, ResponseStats
from roost.router.revision import Revision
from roost.router.statistics import counted_of
from roost.router.stats import Counted, Stats
from roost.server.exposition import escape, family, head, join, number
from roost.server.metrics_machine import MachineUsage

SLICE = 25
"""How many models are worked on at once."""

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


def triton_slices(shown: Iterable[Revision], stats: Stats) -> Iterator[str]:
    """The text of all series by model; some parts are empty, the event loop may take its turn after each.

    Args:
        shown: The revisions to show.
        stats: Their counters.
    """
    slices: list[list[_Row]] = []
    revisions = iter(shown)
    while part := list(islice(revisions, SLICE)):
        slices.append([_row(revision, stats) for revision in part])
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


def machine_text(usage: MachineUsage) -> str:
    """The series of the whole machine."""
    return (
        family("nv_cpu_utilization", "gauge", "Share of the CPUs that was busy lately.", [("", usage.cpu_share())])
        + family("nv_cpu_memory_total_bytes", "gauge", "Memory of the machine.", [("", usage.memory_total_bytes)])
        + family("nv_cpu_memory_used_bytes", "gauge", "Memory in use.", [("", usage.memory_used_bytes())])
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
        len(revision.queue),
        own.last_load_s if own is not None and own.loads else None,
        own.responses if own is not None and revision.used else None,
    )


def _first_lines(row: _Row) -> Iterator[str]:
    responses = row.first_responses
    assert responses is not None
    total = 0
    for bound, total in zip(_FIRST_BOUNDS, accumulate(responses.first_counts), strict=True):
        yield f'{_FIRST}_bucket{{{row.labels},le="{bound}"}} {total}'
    yield f"{_FIRST}_sum{{{row.labels}}} {number(responses.first_ms)}"
    yield f"{_FIRST}_count{{{row.labels}}} {total}"

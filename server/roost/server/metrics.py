"""What ``/metrics`` says, and how 20,000 models keep it cheap.

Histograms carry no model label; per model there are only the counters of ``Stats``, which are read when somebody
scrapes, written family by family in slices between which the event loop does other work. Counters that are zero are
left out, except requests and loads. Models named in ``--histogram-model`` have histograms of their own, under names
of their own so that sums over a name never count a request twice. What others' dashboards ask for is beside this, in
``metrics_triton`` and ``metrics_kserve``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import TypeAlias

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from roost.core.version import __version__
from roost.router.graphs import Graph
from roost.router.records import BatchRecord, RequestRecord
from roost.router.revision import Revision
from roost.router.states import InstanceState
from roost.router.stats import ModelStats, Stats
from roost.router.view import InstanceView, MeshView, WorkerView
from roost.server.exposition import SLICE, Histogram, family, head, join, labels_of, number
from roost.server.garbage import survivors_are_frozen
from roost.server.metrics_cache import cache_families
from roost.server.metrics_copies import copy_families
from roost.server.metrics_graphs import graph_families
from roost.server.metrics_kserve import KServeHistograms
from roost.server.metrics_machine import MachineUsage
from roost.server.metrics_memory import device_families, memory_families
from roost.server.metrics_prepared import prepared_families
from roost.server.metrics_triton import gpu_text, machine_text, triton_slices

_RESIDENT = frozenset({InstanceState.READY, InstanceState.DRAINING, InstanceState.UNLOADING})

_DURATIONS = {
    "request": "from the first byte of a request to its answer",
    "request_queue": "that requests waited for a free slot of their model",
    "request_load_wait": "that requests waited for their model to be loaded",
    "request_compute": "that the runtime took for requests",
}

_COUNTERS = (
    ("roost_rows_total", "rows", "Rows of batches run, by model version."),
    ("roost_executions_total", "executions", "Batches run, by model version."),
    ("roost_queue_seconds_total", "slot_wait_s", "Seconds that requests waited for a free slot, by model version."),
    ("roost_load_wait_seconds_total", "load_wait_s", "Seconds that requests waited for loads, by model version."),
    ("roost_compute_seconds_total", "compute_s", "Seconds that the runtime took, by model version."),
    ("roost_loading_seconds_total", "load_s", "Seconds that successful loads took, by model version."),
    ("roost_evictions_total", "evictions", "Evictions of a loaded copy, by model version."),
    ("roost_load_failures_total", "load_failures", "Loads that failed, by model version."),
)


# A model version's counters behind its labels, which are written once a scrape.
_Labelled: TypeAlias = tuple[str, ModelStats]


class _Durations:
    """The histograms of one model or of all."""

    __slots__ = ("compute", "load", "load_wait", "queue", "request")

    def __init__(self) -> None:
        self.request = Histogram()
        self.queue = Histogram()
        self.load_wait = Histogram()
        self.compute = Histogram()
        self.load = Histogram()

    def observe(self, record: RequestRecord) -> None:
        """Counts a request; one that failed only for the steps that it got to."""
        done = record.code is None
        self.request.observe(record.total_s)
        if done or record.queue_s:
            self.queue.observe(record.queue_s)
        if done or record.load_wait_s:
            self.load_wait.observe(record.load_wait_s)
        if done or record.compute_s:
            self.compute.observe(record.compute_s)

    def observe_batch(self, batch: BatchRecord) -> None:
        """Counts the requests of a batch."""
        self.request.observe_many(batch.total_s)
        self.queue.observe_many(batch.queue_s)
        if any(batch.load_wait_s):
            self.load_wait.observe_many(batch.load_wait_s)
        else:
            self.load_wait.observe_same(0.0, batch.count)
        self.compute.observe_same(batch.compute_s, batch.count)

    def by_name(self) -> dict[str, Histogram]:
        """The histograms by the middle of their metric's name."""
        parts = (self.request, self.queue, self.load_wait, self.compute)
        return dict(zip(_DURATIONS, parts, strict=True)) | {"load": self.load}


class Metrics:
    """Everything that is exposed. It watches ``stats`` from its construction on.

    Args:
        stats: The counters; its hooks become ours.
        view: Makes a view of the mesh, once for each scrape.
        histogram_models: Models that get histograms of their own.
        shown: Yields the revisions that Triton's metrics show, in parts; None for none of these metrics.
        lean_requests: How many requests took REST's lean path.
        instances: Yields what is loaded in a worker, if views do not have it.
        graphs: The inference graphs.
    """

    def __init__(
        self,
        stats: Stats,
        view: Callable[[], MeshView],
        histogram_models: Sequence[str] = (),
        shown: Callable[[], Iterator[list[Revision]]] | None = None,
        lean_requests: Callable[[], int] = int,
        instances: Callable[[WorkerView], Iterable[InstanceView]] = attrgetter("instances"),
        graphs: Collection[Graph] = (),
    ) -> None:
        self._stats = stats
        self._lean_requests = lean_requests
        self._instances = instances
        self._graphs = graphs
        self._view = view
        self._shown = shown
        self._usage = MachineUsage()
        self._kserve = KServeHistograms(histogram_models)
        self._all = _Durations()
        self._by_model = {name: _Durations() for name in histogram_models}
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)
        stats.on_request = self._on_request
        stats.on_batch = self._on_batch
        stats.on_load = self._on_load

    def _on_request(self, record: RequestRecord) -> None:
        self._all.observe(record)
        if record.code is None:
            self._kserve.observe(record)
        own = self._by_model.get(record.name)
        if own is not None:
            own.observe(record)

    def _on_batch(self, batch: BatchRecord) -> None:
        self._all.observe_batch(batch)
        self._kserve.observe_batch(batch)
        own = self._by_model.get(batch.name)
        if own is not None:
            own.observe_batch(batch)

    def _on_load(self, name: str, load_s: float) -> None:
        self._all.load.observe(load_s)
        own = self._by_model.get(name)
        if own is not None:
            own.load.observe(load_s)

    async def render(self) -> AsyncGenerator[bytes, None]:
        """Writes everything in slices, giving the event loop a turn after each."""
        view = self._view()
        yield self._server_text(view).encode()
        await asyncio.sleep(0)
        for parts in self._parts(view):
            for text in parts:
                if text:
                    yield text.encode()
                await asyncio.sleep(0)

    def _parts(self, view: MeshView) -> Iterator[Iterator[str]]:
        yield self._histogram_slices()
        yield self._kserve.slices()
        yield _instance_slices([(worker, self._instances(worker)) for worker in view.workers])
        yield _model_slices(self._stats)
        if self._shown is not None:
            yield iter([machine_text(self._usage), gpu_text(view.devices)])
            yield triton_slices(self._shown(), self._stats)

    def _server_text(self, view: MeshView) -> str:
        families = [
            family("roost_build_info", "gauge", "The version that runs.", [(labels_of(version=__version__), 1)]),
            family("roost_ready", "gauge", "Whether the server is ready.", [("", int(view.ready))]),
            family("roost_models", "gauge", "Models that the server knows.", [("", view.models)]),
            family("roost_queued_requests", "gauge", "Requests that wait.", [("", view.queued)]),
            family("roost_body_bytes", "gauge", "Bytes of request bodies in the server.", [("", view.body_bytes)]),
            family("roost_sequences", "gauge", "Sequences of requests under way.", [("", view.sequences)]),
            family("roost_sequence_bytes", "gauge", "Bytes of their state.", [("", view.sequence_bytes)]),
            family("roost_answer_bytes", "gauge", "Bytes of answers not read yet.", [("", view.answer_bytes)]),
            family("roost_body_limit_bytes", "gauge", "Limit of roost_body_bytes.", [("", view.body_limit_bytes)]),
            family(
                "roost_gc_survivors_frozen",
                "gauge",
                "Whether full garbage collections leave out what earlier ones have left.",
                [("", int(survivors_are_frozen()))],
            ),
            family(
                "roost_rest_lean_requests_total",
                "counter",
                "Plain requests over REST, which take less time than others.",
                [("", self._lean_requests())],
            ),
            family(
                "roost_refusals_total",
                "counter",
                "Requests that ran into a limit, by limit.",
                [(labels_of(reason=limit), count) for limit, count in self._stats.refusals.items()],
            ),
            *device_families(view.devices),
            *_worker_families(view),
            *prepared_families(self._stats.prepared),
            *cache_families(self._stats.cache),
            *copy_families(self._stats.copies, view.workers),
            *graph_families(self._graphs),
        ]
        return "".join(families) + generate_latest(self._process).decode()

    def _histogram_slices(self) -> Iterator[str]:
        for middle, histogram in self._all.by_name().items():
            name = f"roost_{middle}_seconds"
            what = _DURATIONS.get(middle, "that successful loads took")
            yield head(name, "histogram", f"Seconds {what}.") + join(list(histogram.lines(name)))
            if self._by_model:
                name = f"roost_model_{middle}_seconds"
                lines: list[str] = []
                for model, own in self._by_model.items():
                    lines += own.by_name()[middle].lines(name, labels_of(model=model))
                yield head(name, "histogram", f"Seconds {what}, by model.") + join(lines)


def _worker_families(view: MeshView) -> list[str]:
    workers = [(labels_of(worker=worker.id), worker) for worker in view.workers]

    def gauge(name: str, text: str, rows: Iterable[tuple[str, float]]) -> str:
        return family(name, "gauge", text, rows)

    return [
        gauge("roost_worker_up", "Whether a worker runs.", [(label, int(w.state == "up")) for label, w in workers]),
        family(
            "roost_worker_restarts_total",
            "counter",
            "Times that a worker was started again.",
            [(label, worker.restarts) for label, worker in workers],
        ),
        gauge(
            "roost_worker_info",
            "Always 1; its labels say which kind of models a worker has, and on which device.",
            [(labels_of(worker=w.id, kind=w.kind, device=w.device), 1) for _, w in workers],
        ),
        gauge("roost_worker_in_flight", "Batches that a worker has.", [(label, w.in_flight) for label, w in workers]),
        *memory_families(view.workers),
        gauge(
            "roost_fork_server_private_bytes",
            "Private memory of the process that workers are forked from, most of which they share.",
            [("", view.fork_server_bytes)],
        ),
        gauge(
            "roost_worker_arena_bytes",
            "Bytes that tensors take of the memory that a worker shares with the server.",
            [(label, worker.arena_bytes) for label, worker in workers],
        ),
    ]


def _instance_slices(loaded: Sequence[tuple[WorkerView, Iterable[InstanceView]]]) -> Iterator[str]:
    """Resident bytes by worker and model; sums first, since a worker may hold several copies of a version."""
    resident: list[tuple[WorkerView, dict[tuple[str, str], int]]] = []
    for worker, instances in loaded:
        copies = iter(instances)
        sizes: dict[tuple[str, str], int] = {}
        resident.append((worker, sizes))
        while part := list(islice(copies, SLICE)):
            for instance in part:
                if instance.state in _RESIDENT:
                    key = (instance.model, instance.version)
                    sizes[key] = sizes.get(key, 0) + instance.bytes
            yield ""
    yield family(
        "roost_resident_models",
        "gauge",
        "Loaded model versions in a worker.",
        [(labels_of(worker=worker.id), len(sizes)) for worker, sizes in resident],
    )
    yield family(
        "roost_resident_bytes",
        "gauge",
        "Bytes accounted for the loaded model versions in a worker.",
        [(labels_of(worker=worker.id, device=worker.device), sum(sizes.values())) for worker, sizes in resident],
    )
    name = "roost_model_resident_bytes"
    yield head(name, "gauge", "Bytes accounted for a loaded model version in a worker.")
    for worker, sizes in resident:
        rows = iter(sizes.items())
        while lines := list(islice(rows, SLICE)):
            yield join(
                [f"{name}{{{labels_of(model=m, version=v, worker=worker.id)}}} {size}" for (m, v), size in lines]
            )


def _model_slices(stats: Stats) -> Iterator[str]:
    models = list(stats.models.values())  # a copy: requests of new models come while slices are written
    slices: list[list[_Labelled]] = []
    yield head("roost_requests_total", "counter", "Finished requests by model version and code.")
    for start in range(0, len(models), SLICE):
        part = [(labels_of(model=item.name, version=item.version), item) for item in models[start : start + SLICE]]
        slices.append(part)
        yield join(_request_lines(part))
    yield head("roost_loads_total", "counter", "Successful loads, by model version.")
    yield from (join(_counter_lines("roost_loads_total", "loads", part, zeros=True)) for part in slices)
    for name, attribute, text in _COUNTERS:
        yield head(name, "counter", text)
        yield from (join(_counter_lines(name, attribute, part)) for part in slices)


def _request_lines(models: Sequence[_Labelled]) -> list[str]:
    lines: list[str] = []
    for labels, stats in models:
        if stats.name:
            lines.append(f'roost_requests_total{{{labels},code="OK"}} {stats.ok}')
        if stats.errors:
            lines += [f'roost_requests_total{{{labels},code="{code}"}} {n}' for code, n in stats.errors.items()]
    return lines


def _counter_lines(name: str, attribute: str, models: Sequence[_Labelled], *, zeros: bool = False) -> list[str]:
    value_of = attrgetter(attribute)
    return [
        f"{name}{{{labels}}} {number(value)}"
        for labels, stats in models
        if stats.name and ((value := value_of(stats)) or zeros)
    ]

"""Counters of requests, runs, loads and evictions: one small object per model version, made at its first use.

Counters only grow, as Prometheus wants them. What belongs to a revision (the statistics extension and Triton's metrics,
both of which start anew when a model is loaded anew) is the difference to a mark that is set at the revision's first
request, so that nothing is counted twice and versions that are never reloaded have no second set of counters.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter, sub
from typing import NamedTuple

from roost.core.errors import Code, Limit, RoostError
from roost.core.frames import Response, StepTimes
from roost.core.requests import InferRequest, RequestContext
from roost.router.cache_counts import CacheStats, CacheTotals
from roost.router.copy_counts import CopyCounts
from roost.router.outcomes import Outcome, outcome_of
from roost.router.prepared_counts import PreparedCounts
from roost.router.records import BatchRecord, RequestRecord, note_steps, record_of
from roost.router.responses import Kind, ResponseStats

MAX_BATCH_SIZES = 1024

LOAD_HALF_LIFE_S = 300.0
"""What a load took counts half as much as an expectation for each time that this has passed since."""


class Counted(NamedTuple):
    """What was counted for a revision; steps are those of requests that succeeded, times in nanoseconds."""

    success: int = 0
    success_ns: int = 0
    failures: tuple[int, ...] = (0,) * len(Outcome)
    fail_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    rows: int = 0
    executions: int = 0


NOTHING = Counted()


class ModelStats:
    """Everything counted for one model version; outlives evictions, and but for the last five also reloads.

    Attributes:
        name: The model.
        version: The version.
        ok: Requests that succeeded.
        ok_s: What they took in all.
        queue_s: What they waited for slots and loads.
        input_s: What the worker took for their input.
        infer_s: What the model took for them.
        output_s: What the worker took for their output.
        errors: Requests that failed, by code; most versions never fail, and there may be many of them.
        failures: The same by ``Outcome``.
        fail_s: What they took in all.
        slot_wait_s: What requests waited for slots, failed ones included.
        load_wait_s: What requests waited for loads, failed ones included.
        rows: Rows of batches run.
        executions: Batches run.
        loads: Loads that succeeded.
        load_s: What they took in all.
        last_load_s: What the last of them took.
        loaded_at: When that was over, on the monotonic clock.
        load_failures: Loads that failed.
        evictions: Loaded copies that were evicted.
        last_at: When the last request was answered, seconds since 1970.
        batch: The first size of batch seen, how many there were of it, and the nanoseconds of their three steps.
        other_batches: The same for other sizes, by size.
        responses: By position in the stream, if the model is decoupled.
        cache: What is counted of answers that are kept, if any are.
    """

    __slots__ = (
        "_before",
        "batch",
        "cache",
        "errors",
        "evictions",
        "executions",
        "fail_s",
        "failures",
        "infer_s",
        "input_s",
        "last_at",
        "last_load_s",
        "load_failures",
        "load_s",
        "load_wait_s",
        "loaded_at",
        "loads",
        "name",
        "ok",
        "ok_s",
        "other_batches",
        "output_s",
        "queue_s",
        "responses",
        "rows",
        "slot_wait_s",
        "version",
    )

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.ok = 0
        self.ok_s = self.fail_s = 0.0
        self.queue_s = self.input_s = self.infer_s = self.output_s = 0.0
        self.errors: dict[Code, int] | None = None
        self.failures: list[int] | None = None
        self.slot_wait_s = self.load_wait_s = 0.0
        self.rows = self.executions = 0
        self.loads = self.load_failures = self.evictions = 0
        self.load_s = self.last_load_s = self.loaded_at = 0.0
        self.last_at = 0.0
        self.batch: array[int] | None = None  # nearly always the only one, and a dictionary costs three times as much
        self.other_batches: dict[int, array[int]] | None = None
        self.responses: ResponseStats | None = None
        self.cache: CacheStats | None = None
        self._before: Counted | None = None

    @property
    def compute_s(self) -> float:
        """What workers took for requests that succeeded."""
        return self.input_s + self.infer_s + self.output_s

    def restart(self) -> None:
        """A revision takes over: what is said of it starts anew."""
        if self.ok or self.failures or self.executions:
            self._before = self._counted()
        self.last_at = 0.0
        self.batch = self.other_batches = self.responses = self.cache = None

    def since_restart(self) -> Counted:
        """What was counted for the present revision."""
        now, before = self._counted(), self._before
        if before is None:
            return now
        return Counted(
            now.success - before.success,
            now.success_ns - before.success_ns,
            tuple(map(sub, now.failures, before.failures)),
            now.fail_ns - before.fail_ns,
            now.queue_ns - before.queue_ns,
            now.input_ns - before.input_ns,
            now.infer_ns - before.infer_ns,
            now.output_ns - before.output_ns,
            now.rows - before.rows,
            now.executions - before.executions,
        )

    def _counted(self) -> Counted:
        return Counted(
            self.ok,
            round(self.ok_s * 1e9),
            NOTHING.failures if self.failures is None else tuple(self.failures),
            round(self.fail_s * 1e9),
            round(self.queue_s * 1e9),
            round(self.input_s * 1e9),
            round(self.infer_s * 1e9),
            round(self.output_s * 1e9),
            self.rows,
            self.executions,
        )

    def ran(self, rows: int, times: StepTimes) -> None:
        """Counts a batch that was run."""
        self.rows += rows
        self.executions += 1
        batch = self.batch
        if batch is None:
            batch = self.batch = _no_batches(rows)
        elif batch[0] != rows:
            batch = self._other_batch(rows)
        batch[1] += 1
        batch[2] += times.input_end - times.input_start
        batch[3] += times.infer_end - times.infer_start
        batch[4] += times.output_end - times.output_start

    def _other_batch(self, rows: int) -> array[int]:
        if self.other_batches is None:
            self.other_batches = {}
        batch = self.other_batches.get(rows)
        if batch is None:
            batch = _no_batches(rows)
            if len(self.other_batches) < MAX_BATCH_SIZES:  # clients choose sizes; what is over is not listed
                self.other_batches[rows] = batch
        return batch

    def batches(self) -> list[array[int]]:
        """``batch`` and ``other_batches``, by size."""
        first = [] if self.batch is None else [self.batch]
        return sorted([*first, *(self.other_batches or {}).values()], key=itemgetter(0))

    def responded(self, context: RequestContext, response: Response) -> None:
        """Counts a response of a decoupled model; to be called before ``note_steps``, which forgets the one before."""
        responses = self._responses()
        times, position = response.times, context.responses
        began_ns = int(context.run_ended * 1e9) or times.infer_start  # a response begins where the one before ended
        if not response.outputs:
            responses.ended(position, Kind.EMPTY_RESPONSE, max(0, times.output_end - began_ns))
            return
        output_ns = max(0, times.output_end - max(began_ns, times.output_start))
        responses.responded(position, max(0, times.output_start - began_ns), output_ns)
        context.responses += 1
        if not position:
            responses.first(time.monotonic() - context.received)

    def stream_failed(self, context: RequestContext, *, cancelled: bool) -> None:
        """Counts that the next response of a decoupled model does not come."""
        kind = Kind.CANCEL if cancelled else Kind.FAIL
        took_s = time.monotonic() - context.run_ended if context.run_ended else 0.0
        self._responses().ended(context.responses, kind, int(took_s * 1e9))

    def _responses(self) -> ResponseStats:
        if self.responses is None:
            self.responses = ResponseStats()
        return self.responses

    def count(self, request: RequestRecord) -> None:
        """Counts a finished request."""
        _, _, code, total_s, queue_s, load_wait_s, input_s, infer_s, output_s, _, _, limit = request
        self.slot_wait_s += queue_s
        self.load_wait_s += load_wait_s
        if code is not None:
            self._count_failure(code, limit, total_s)
            return
        self.ok += 1
        self.ok_s += total_s
        self.queue_s += queue_s + load_wait_s
        self.input_s += input_s
        self.infer_s += infer_s
        self.output_s += output_s
        self.last_at = time.time()

    def count_batch(self, batch: BatchRecord) -> None:
        """Counts the requests of a batch that succeeded."""
        count, queue_s, load_wait_s = batch.count, sum(batch.queue_s), sum(batch.load_wait_s)
        self.slot_wait_s += queue_s
        self.load_wait_s += load_wait_s
        self.ok += count
        self.ok_s += sum(batch.total_s)
        self.queue_s += queue_s + load_wait_s
        self.input_s += count * batch.input_s
        self.infer_s += count * batch.infer_s
        self.output_s += count * batch.output_s
        self.last_at = time.time()

    def _count_failure(self, code: Code, limit: Limit | None, total_s: float) -> None:
        if self.errors is None:
            self.errors = {}
        self.errors[code] = self.errors.get(code, 0) + 1
        if self.failures is None:
            self.failures = [0] * len(Outcome)
        self.failures[outcome_of(code, limit)] += 1
        self.fail_s += total_s


@dataclass(slots=True)
class Stats:
    """The counters of all versions that were ever used, and who wants to see each request.

    Attributes:
        models: By (name, version). Requests that name no known model count under ``("", "")``.
        refusals: How often each limit was run into.
        on_request: Called with what each finished request took, for histograms.
        on_batch: The same for the requests of a batch that succeeded together.
        on_end: Called with each request that has finished and what it took, for logs.
        on_load: Called with (model name, seconds) after each successful load.
        prepared: What is counted of prepared copies.
        copies: What is counted of copies that come and go.
        cache: What the answers take that are kept.
    """

    models: dict[tuple[str, str], ModelStats] = field(default_factory=dict)
    refusals: dict[Limit, int] = field(default_factory=lambda: dict.fromkeys(Limit, 0))
    on_request: Callable[[RequestRecord], None] | None = None
    on_batch: Callable[[BatchRecord], None] | None = None
    on_end: Callable[[InferRequest, RequestRecord], None] | None = None
    on_load: Callable[[str, float], None] | None = None
    prepared: PreparedCounts = field(default_factory=PreparedCounts)
    copies: CopyCounts = field(default_factory=CopyCounts)
    cache: CacheTotals = field(default_factory=CacheTotals)

    def of(self, name: str, version: str) -> ModelStats:
        """The counters of a version, made if they are not there."""
        key = (name, version)
        stats = self.models.get(key)
        if stats is None:
            stats = self.models[key] = ModelStats(name, version)
        return stats

    def forget(self, name: str, versions: Iterable[str]) -> None:
        """Drops the counters of a model that is gone: names come from clients, too, and there is no end of them."""
        for version in versions:
            self.models.pop((name, version), None)

    def finished(self, request: InferRequest, error: RoostError | Code | None) -> None:
        """Counts a request that has just ended, in ``error`` if that is not None."""
        record = record_of(request.context, error)
        self.record(record)
        if self.on_end is not None:
            self.on_end(request, record)

    def answered(self, counters: ModelStats, requests: Sequence[InferRequest], times: StepTimes) -> None:
        """Counts requests that have just succeeded with one batch; what the worker says of it is in ``times``."""
        if self.on_end is not None:
            for request in requests:
                note_steps(request.context, times)
                self.finished(request, None)
            return
        batch = BatchRecord(counters.name, requests, times)
        counters.count_batch(batch)
        if self.on_batch is not None:
            self.on_batch(batch)

    def record(self, request: RequestRecord) -> None:
        """Counts a finished request."""
        self.of(request.name, request.version).count(request)
        if request.limit is not None:
            self.refusals[request.limit] += 1
        if self.on_request is not None:
            self.on_request(request)

    def loaded(self, name: str, version: str, load_s: float, now: float = 0.0) -> None:
        """Counts a load that went well and was over at a time of the monotonic clock."""
        stats = self.of(name, version)
        stats.loads += 1
        stats.load_s += load_s
        stats.last_load_s = load_s
        stats.loaded_at = now
        if self.on_load is not None:
            self.on_load(name, load_s)

    def expected_load_s(self, name: str, version: str, now: float) -> float:
        """How long the next load takes at least, as far as those before tell; 0 if there was none.

        The longer ago the last one was, the less it tells: one that was slow for once would else refuse the requests
        for ever that would show it.
        """
        stats = self.of(name, version)
        if not stats.loads:
            return 0.0
        known_s = min(stats.last_load_s, stats.load_s / stats.loads)
        return known_s * float(0.5 ** ((now - stats.loaded_at) / LOAD_HALF_LIFE_S))


def _no_batches(rows: int) -> array[int]:
    return array("q", (rows, 0, 0, 0, 0))

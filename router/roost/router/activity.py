"""Looks at the live objects for those who watch a mesh, some at a time, so that 20,000 models hold up no request.

Counters are read when somebody looks, and rates are differences to the look before; nothing is counted for this that
would not be counted anyway. All who watch at the same time share their looks. What was remembered for rates is dropped
when nobody has looked for a while.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from roost.core.version import __version__
from roost.router.activity_view import (
    ENSEMBLE,
    FAILED,
    STANDBY,
    UNLOADED,
    Activity,
    ModelActivity,
    Order,
    ProcessActivity,
    Question,
    Totals,
    WorkerActivity,
)
from roost.router.catalog import Catalog
from roost.router.mesh import Mesh
from roost.router.models import Version
from roost.router.placement import Ledger
from roost.router.rates import Row
from roost.router.snapshot import private_bytes_of, running, view_devices
from roost.router.states import Availability
from roost.router.stats import ModelStats, Stats
from roost.router.usage import CpuTimes
from roost.router.worker import Worker

T = TypeVar("T")
_Key: TypeAlias = tuple[str, str]

SLICE = 128
"""So many models are looked at without a pause, in a few milliseconds at most."""
MIN_INTERVAL_S = 0.8
"""Looks that come sooner get what the one before has seen."""
STALE_S = 10.0
"""Rates over a longer time than this say nothing of now."""
MAX_MOVING = 32

_ORDERS: Mapping[Order, Callable[[Row], tuple[Any, ...]]] = {
    Order.RATE: lambda row: (-row.requests_per_s, -row.queued, -row.leases, -row.bytes, row.model, row.version),
    Order.MEMORY: lambda row: (-row.bytes, row.model, row.version),
    Order.QUEUE: lambda row: (-row.queued, -row.requests_per_s, row.model, row.version),
    Order.LOADS: lambda row: (-row.loads, -row.requests_per_s, row.model, row.version),
    Order.LATENCY: lambda row: (-row.latency_s, -row.requests_per_s, row.model, row.version),
    Order.NAME: lambda row: (row.model, row.version),
}


class ActivitySampler:
    """See the module.

    Args:
        catalog: The models.
        mesh: The workers and what is on them.
        ledger: The device's budget.
        stats: The counters.
    """

    def __init__(self, catalog: Catalog, mesh: Mesh, ledger: Ledger, stats: Stats) -> None:
        self._catalog = catalog
        self._mesh = mesh
        self._ledger = ledger
        self._stats = stats
        self._cpus = CpuTimes()
        self._looking = asyncio.Lock()
        self._forget: asyncio.TimerHandle | None = None
        self._clear()

    def _clear(self) -> None:
        """Forgets everything, as if nobody had looked yet."""
        self._rows: dict[_Key, Row] = {}
        self._names: set[str] = set()
        self._moving: list[Row] = []
        self._seen = self._loaded = 0
        self._unknown = Row("", "")  # requests that name no known model
        self._loaded_evicted: tuple[int, int] | None = None
        self._look = 0
        self._looked_at = self._window_s = 0.0
        self._workers: tuple[WorkerActivity, ...] = ()
        self._server = ProcessActivity(os.getpid(), 0.0, 0)
        self._totals = Totals(0, 0, 0, 0.0, 0.0, 0.0, 0.0)
        self._cpus.clear()

    async def look(self, question: Question) -> Activity:
        """What happens now, as far as it was asked for."""
        async with self._looking:  # or one look would change the rows that another one sorts
            now = time.monotonic()
            if not self._look or now - self._looked_at >= MIN_INTERVAL_S:
                await self._look_at_all(now)
            matching, models = await self._choose(question)
            self._forget_later()
        return Activity(
            __version__,
            self._mesh.ready,
            self._window_s,
            self._totals,
            self._server,
            view_devices(self._ledger, self._mesh.device, self._mesh.gpus),
            self._workers,
            matching,
            tuple(models),
            tuple(row.view() for row in self._moving[:MAX_MOVING]),
        )

    def _forget_later(self) -> None:
        if self._forget is not None:
            self._forget.cancel()
        self._forget = asyncio.get_running_loop().call_later(STALE_S, self._forget_now)

    def _forget_now(self) -> None:
        if not self._looking.locked():
            self._clear()

    async def _look_at_all(self, now: float) -> None:
        self._window_s = now - self._looked_at if self._look else 0.0
        self._looked_at = now
        self._look += 1
        self._seen, self._moving = 0, []
        loads, evictions, requests_per_s, failures_per_s = 0, 0, 0.0, 0.0
        async for part in _in_slices(self._stats.models.values()):
            for stats in part:
                row = self._count(stats)
                loads += stats.loads
                evictions += stats.evictions
                requests_per_s += row.requests_per_s
                failures_per_s += row.failures_per_s
        self._loaded = 0
        self._workers = tuple([await self._look_at_worker(worker) for worker in running(self._mesh.workers)])
        if len(self._rows) > self._seen:
            self._rows = {key: row for key, row in self._rows.items() if row.seen == self._look}
            self._names = {name for name, _ in self._rows}
        self._server = self._process(os.getpid())
        before, self._loaded_evicted = self._loaded_evicted or (loads, evictions), (loads, evictions)
        window_s = self._window_s or 1.0
        self._totals = Totals(
            len(self._catalog),
            self._loaded,
            self._mesh.queues.requests,
            requests_per_s,
            failures_per_s,
            max(0, loads - before[0]) / window_s,
            max(0, evictions - before[1]) / window_s,
        )

    def _count(self, stats: ModelStats) -> Row:
        row = self._row(stats.name, stats.version) if stats.name else self._unknown
        row.count(stats, self._window_s)
        return row

    def _row(self, name: str, version: str) -> Row:
        """The row of a version, cleared if this is the first that this look sees of it."""
        key = (name, version)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Row(name, version)
            self._names.add(name)
        if row.seen != self._look:
            row.clear(self._look)
            self._seen += 1
            known = self._catalog.known(name, version)
            if known is not None:
                _describe(row, known)
        return row

    async def _look_at_worker(self, worker: Worker) -> WorkerActivity:
        copies: dict[str, int] = {}
        accounted_bytes = 0
        async for part in _in_slices(worker.instances.values()):
            for instance in part:
                state, key = instance.state.value, instance.revision.key
                copies[state] = copies.get(state, 0) + 1
                size_bytes = instance.figures.private_bytes
                accounted_bytes += size_bytes
                row = self._row(key.name, key.version)
                self._loaded += state == "ready" != row.state
                if state != "ready" and not row.moving:
                    self._moving.append(row)
                row.add_copy(worker.id, state, size_bytes, instance.leases)
        return WorkerActivity(
            worker.id,
            worker.spec.kind,
            worker.spec.device,
            worker.state,
            worker.restarts,
            self._process(worker.pid),
            worker.spec.threads,
            len(worker.runs),
            worker.link.arena_bytes if worker.link is not None else 0,
            accounted_bytes,
            copies,
        )

    def _process(self, pid: int) -> ProcessActivity:
        return ProcessActivity(pid, self._cpus.since_last(pid, self._looked_at), private_bytes_of(pid))

    async def _choose(self, question: Question) -> tuple[int, list[ModelActivity]]:
        """How many models have such a name, and the first of them; those that were never used come last."""
        needle, order = question.needle.lower(), _ORDERS[question.order]
        best: list[Row] = []
        matching = 0
        async for part in _in_slices(self._rows.values()):
            found = [row for row in part if needle in row.model.lower()] if needle else part
            matching += len(found)
            best = heapq.nsmallest(question.top, itertools.chain(best, found), key=order)
        models = [row.view() for row in best]
        if self._catalog.explicit:  # then what was never loaded is not served
            return matching, models
        by_name = question.order is Order.NAME
        others, names = await self._unused(needle, question.top if by_name else question.top - len(models))
        models += [ModelActivity(name, "", STANDBY) for name in names]
        if by_name:
            models = sorted(models, key=lambda model: (model.model, model.version))[: question.top]
        return matching + others, models

    async def _unused(self, needle: str, top: int) -> tuple[int, list[str]]:
        """How many models with such a name were never used, and the first of them."""
        used = self._names
        first: list[str] = []
        count = 0
        async for part in _in_slices(self._catalog.homes()):
            found = [name for name in part if name not in used and needle in name.lower()]
            count += len(found)
            first = heapq.nsmallest(top, itertools.chain(first, found))
        return count, first


def _describe(row: Row, version: Version) -> None:
    row.queued = len(version.revision.queue)
    if version.revision.failure is not None:
        row.state = FAILED
    elif version.availability is Availability.UNAVAILABLE:
        row.state = UNLOADED
    elif version.revision.description.ensemble is not None:
        row.state = ENSEMBLE


async def _in_slices(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """What there was when this began, some at a time; the event loop has a turn after each."""
    rest = list(items)
    for start in range(0, len(rest), SLICE):
        yield rest[start : start + SLICE]
        await asyncio.sleep(0)

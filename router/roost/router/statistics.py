"""The statistics extension: what was counted since a version became available, made from counters and live objects."""

from __future__ import annotations

import asyncio
from array import array

from roost.core.errors import NotFound
from roost.core.names import shorten, version_order
from roost.core.statistics import BatchStatistics, InferStatistics, MemoryUsage, ModelStatistics, StatisticDuration
from roost.router.cache_counts import CacheStats
from roost.router.catalog import Catalog
from roost.router.revision import Revision
from roost.router.states import Availability, InstanceState
from roost.router.stats import NOTHING, Counted, ModelStats, Stats
from roost.router.traffic import Traffic

_SLICE = 500
_RESIDENT = frozenset({InstanceState.READY, InstanceState.DRAINING})
_NO_CACHE = CacheStats()


async def statistics(
    catalog: Catalog, traffic: Traffic, stats: Stats, name: str, version: str
) -> list[ModelStatistics]:
    """See ``Router.statistics``."""
    revisions = await _available(catalog, traffic, name, version) if name else await _all_shown(catalog)
    revisions.sort(key=lambda revision: (revision.key.name, version_order(revision.key.version)))
    found: list[ModelStatistics] = []
    for start in range(0, len(revisions), _SLICE):  # of very many models, other requests go on in between
        found += [_statistics_of(revision, stats) for revision in revisions[start : start + _SLICE]]
        if start:
            await asyncio.sleep(0)
    return found


async def _all_shown(catalog: Catalog) -> list[Revision]:
    found: list[Revision] = []
    for part in catalog.shown():
        found += part
        await asyncio.sleep(0)
    return found


async def _available(catalog: Catalog, traffic: Traffic, name: str, version: str) -> list[Revision]:
    try:
        model = await catalog.model(name)
    except NotFound:
        target, _ = traffic.resolve_main(name, version)
        if target == name:
            raise _not_available(name, "") from None
        model = await catalog.model(target)
    found = [
        present.revision
        for number, present in model.versions.items()
        if version in ("", number)
        and (present.availability is Availability.READY or (present.revision.used and not present.revision.retired))
    ]
    if not found:
        raise _not_available(name, version)
    return found


def _not_available(name: str, version: str) -> NotFound:
    of_version = f" version {version[:32]}" if version else ""
    return NotFound(f"requested model '{shorten(name, 128)}'{of_version} is not available")


def counted_of(revision: Revision, stats: Stats) -> tuple[ModelStats | None, Counted]:
    """The counters of a revision's version, if there are any, and what of them is the revision's."""
    own = stats.models.get((revision.key.name, revision.key.version))
    return own, NOTHING if own is None or not revision.used else own.since_restart()


def _statistics_of(revision: Revision, stats: Stats) -> ModelStatistics:
    name, version = revision.key.name, revision.key.version
    own, counted = counted_of(revision, stats)
    resident_bytes = sum(i.figures.private_bytes for i in revision.instances if i.state in _RESIDENT)
    memory = (MemoryUsage("CPU", 0, resident_bytes),)
    if own is None or not revision.used:
        return ModelStatistics(name, version, memory_usage=memory)
    return ModelStatistics(
        name,
        version,
        int(own.last_at * 1e3),
        counted.rows,
        counted.executions,
        _infer_statistics(counted, own.cache or _NO_CACHE),
        tuple(_batch_statistics(batch) for batch in own.batches()),
        memory,
        own.responses.by_position() if own.responses is not None else {},
    )


def _infer_statistics(counted: Counted, cache: CacheStats) -> InferStatistics:
    success = counted.success
    computed = max(0, success - cache.hits)  # a hit whose client has gone is no success
    return InferStatistics(
        StatisticDuration(success, counted.success_ns),
        StatisticDuration(sum(counted.failures), counted.fail_ns),
        StatisticDuration(success, counted.queue_ns),
        StatisticDuration(computed, counted.input_ns),
        StatisticDuration(computed, counted.infer_ns),
        StatisticDuration(computed, counted.output_ns),
        StatisticDuration(cache.hits, cache.hit_ns),
        StatisticDuration(cache.misses, cache.miss_ns),
    )


def _batch_statistics(batch: array[int]) -> BatchStatistics:
    size, count, input_ns, infer_ns, output_ns = batch
    return BatchStatistics(
        size,
        StatisticDuration(count, input_ns),
        StatisticDuration(count, infer_ns),
        StatisticDuration(count, output_ns),
    )

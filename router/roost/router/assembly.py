"""Puts a router together, and ends it in order: models listed and workers up at the start, workers gone at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from roost.core.tasks import in_background
from roost.core.threads import thread_pool
from roost.registry_client.overrides import OverrideFolders
from roost.registry_client.repository import LocalRepository
from roost.router.catalog import Catalog
from roost.router.control import Control
from roost.router.device_watch import DeviceWatch, ReadGpu
from roost.router.eviction import LRU, POLICIES
from roost.router.inference import Inference
from roost.router.launching import launcher
from roost.router.learned import Learned
from roost.router.least import LeastCopies
from roost.router.looking import Looker
from roost.router.measuring import Measuring
from roost.router.memory_watch import MemoryWatch
from roost.router.mesh import Mesh, MeshSettings
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.polling import Polling
from roost.router.prefetch import Prefetch
from roost.router.preload import Preload
from roost.router.prepared_copies import PreparedCopies
from roost.router.preparer import Preparer, PreparerSpec, launch_preparer
from roost.router.proof import BatchingMode
from roost.router.proofs import Proofs
from roost.router.recency import Recency
from roost.router.response_cache import ResponseCache
from roost.router.revision import Revision
from roost.router.router import Router
from roost.router.scaling import Scaling
from roost.router.spares import Spares
from roost.router.stats import Stats
from roost.router.traffic import Traffic
from roost.runtimes.prepared.cache import CopyCache

log = logging.getLogger(__name__)

_Work: TypeAlias = Coroutine[Any, Any, None]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What work in the background is done with."""

    settings: MeshSettings
    learned: Learned
    catalog: Catalog
    mesh: Mesh
    ledger: Ledger
    stats: Stats
    disk: Executor

    def preparer(self) -> Preparer:
        """The process that tries models runs them with as many threads as workers do."""
        spec = self.settings.spec
        return Preparer(PreparerSpec(spec.threads, spec.log_level, spec.log_format), launch_preparer)


@asynccontextmanager
async def router(
    repositories: Sequence[LocalRepository],
    learned: Learned,
    settings: MeshSettings,
    traffic: Traffic,
    *,
    explicit: bool,
    poll_interval_s: float | None = None,
    overrides_dir: Path | None = None,
    model_format: str = "",
    batching: BatchingMode = BatchingMode.PROVEN,
    eviction: str = LRU,
    cache: CopyCache | None = None,
    measure: bool = True,
    code_from: Collection[Path] = (),
    response_cache_bytes: int = 0,
    read_gpu: ReadGpu = lambda _: None,
) -> AsyncIterator[Router]:
    """Runs a router.

    The device's budget is 0 until ``set_limits`` is called, since what the idle processes use is known only then.

    Args:
        repositories: Where models come from.
        learned: What survives a restart.
        settings: How the mesh is made.
        traffic: The routes.
        explicit: Whether only load calls make models available.
        poll_interval_s: How often the repositories are looked at for changes; None for never.
        overrides_dir: A folder of the router's own for files that load calls bring; None to refuse them.
        model_format: What ``modelFormat`` of a KServe resource calls the models in it; empty if nobody said.
        batching: Which models are batched.
        eviction: The policy: one of ``eviction.POLICIES``.
        cache: Where prepared copies are kept; None for none.
        measure: Whether it is found out what models take.
        code_from: The repositories whose models may be code.
        response_cache_bytes: What answers may take that are kept for requests that are the same.
        read_gpu: Says what the GPU of a UUID is doing.
    """
    stats, policy = Stats(), POLICIES[eviction]()
    ledger = Ledger(Limits(0), policy)
    with _threads(settings) as (disk, classifying, asking_gpus):
        overrides = OverrideFolders(overrides_dir, model_format=model_format) if overrides_dir is not None else None
        catalog = Catalog(
            repositories, learned, disk, explicit=explicit, overrides=overrides, code_from=frozenset(code_from)
        )
        async with asyncio.TaskGroup() as group, launcher(settings.specs) as launches:
            mesh = Mesh(settings, ledger, catalog, stats, group, launch=launches.launch)
            mesh.kinds.forked_by(launches)
            try:
                await catalog.scan()
                _warn_of_what_is_unknown(traffic, catalog)
                await mesh.start()
                parts = _Parts(settings, learned, catalog, mesh, ledger, stats, disk)
                control = Control(catalog, mesh, stats, traffic)
                proofs = Proofs(batching, ledger, mesh.loader.room, catalog, parts.preparer())
                preload = Preload(learned, catalog, mesh.loader, ledger, disk, lambda: mesh.busy)
                watch = _watch_of_gpus(parts, read_gpu, asking_gpus) if mesh.gpus else None
                work = list(_background_work(parts, proofs, watch, cache=cache, measure=measure))
                if poll_interval_s is not None:
                    work.append(Polling(Looker(catalog, repositories, disk), control, poll_interval_s).run())
                if eviction != LRU:
                    work.append(Prefetch(policy, mesh.loader.bring).run())
                renew = control.renew if poll_interval_s is not None else None
                responses = _responses(mesh, catalog, stats, response_cache_bytes)
                inference = Inference(catalog, mesh, traffic, classifying, renew, responses)
                control.verify = inference.ensembles.verify
                async with _in_background(work):
                    yield Router(catalog, mesh, ledger, traffic, stats, inference, control, proofs, preload, launches)
            finally:
                await mesh.stop()
                if overrides is not None:
                    await asyncio.to_thread(overrides.clear)


@contextmanager
def _threads(settings: MeshSettings) -> Iterator[tuple[Executor, Executor, Executor]]:
    """Where files are read, where large answers are classified, and where GPUs are asked, if there are any."""
    with (
        thread_pool(2, "disk") as disk,
        thread_pool(1, "classify") as classifying,
        thread_pool(1, "gpus") if settings.gpus else nullcontext(disk) as asking_gpus,
    ):
        yield disk, classifying, asking_gpus


def _responses(mesh: Mesh, catalog: Catalog, stats: Stats, limit_bytes: int) -> ResponseCache:
    """Answers that are kept; those of a revision go with it."""
    responses = ResponseCache(limit_bytes, stats.cache, catalog.prepare)
    others_hear = mesh.loader.when_gone

    def gone(revision: Revision) -> None:
        others_hear(revision)
        responses.forget(revision)

    mesh.loader.when_gone = gone
    return responses


def _warn_of_what_is_unknown(traffic: Traffic, catalog: Catalog) -> None:
    for name in sorted(traffic.models() - set(catalog.names())):
        log.warning("a route leads to model '%s', which is in no repository", name)


@asynccontextmanager
async def _in_background(work: Iterable[_Work]) -> AsyncIterator[None]:
    async with AsyncExitStack() as background:
        for each in work:
            await background.enter_async_context(in_background(each))
        yield


def _background_work(
    parts: _Parts, proofs: Proofs, watch: DeviceWatch | None, *, cache: CopyCache | None, measure: bool
) -> Iterator[_Work]:
    """What goes on beside requests as long as the router runs."""
    mesh, ledger, disk = parts.mesh, parts.ledger, parts.disk
    preparers = [proofs.preparer]
    yield proofs.run()
    yield Recency(parts.learned, parts.stats, disk).run()
    if cache is not None:
        copies = _copies(parts, cache, proofs)
        preparers.append(copies.preparer)
        yield copies.run()
    if measure:
        yield _measuring(parts, preparers).run()
    yield MemoryWatch(mesh.workers, ledger, mesh.loader.room, mesh, parts.learned, disk).run()
    least = LeastCopies(parts.catalog, disk)
    yield least.run()
    yield Scaling(mesh, ledger, least, Spares(mesh.workers, ledger), parts.stats.copies).run()
    yield mesh.kinds.run()
    if watch is not None:
        yield watch.run()


def _watch_of_gpus(parts: _Parts, read_gpu: ReadGpu, thread: Executor) -> DeviceWatch:
    """Loads have budgets there, and are weighed, from now on."""
    mesh, loader, remember = parts.mesh, parts.mesh.loader, parts.catalog.remember_gpu_size
    watch = DeviceWatch(mesh.gpus, mesh.workers, parts.ledger, loader.room, read_gpu, thread, remember)
    watch.begin()
    loader.creator.weigh = watch.weigh
    return watch


def _copies(parts: _Parts, cache: CopyCache, proofs: Proofs) -> PreparedCopies:
    """Loads take prepared copies from now on; they are made while no proofs are."""
    loader = parts.mesh.loader
    copies = PreparedCopies(
        cache,
        parts.ledger,
        loader.room,
        loader,
        parts.preparer(),
        parts.disk,
        parts.stats.prepared,
        lambda: proofs.preparer.pid > 0,
    )
    loader.copies = copies
    return copies


def _measuring(parts: _Parts, others: Sequence[Preparer]) -> Measuring:
    """Hears of loads from now on; models are measured while no other preparer works."""
    loader, catalog = parts.mesh.loader, parts.catalog
    measuring = Measuring(
        parts.learned,
        parts.ledger,
        loader.room,
        loader,
        parts.preparer(),
        parts.disk,
        lambda: any(other.pid > 0 for other in others),
    )
    others_hear = catalog.when_loaded

    def loaded(revision: Revision) -> None:
        others_hear(revision)
        measuring.loaded(revision)

    catalog.when_loaded = loaded
    return measuring

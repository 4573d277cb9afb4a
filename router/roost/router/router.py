"""The router: everything between the transports and the workers, behind a few calls.

``DataPlane`` in ``roost.server`` is its only caller.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from roost.core.errors import RoostError, Unavailable
from roost.core.metadata import IndexEntry, ModelMetadata
from roost.core.names import version_order
from roost.core.requests import InferRequest, InferResponse
from roost.core.statistics import ModelStatistics
from roost.core.tasks import in_background
from roost.proto import model_config_pb2 as mc
from roost.registry_client.backends import PLATFORMS
from roost.registry_client.model_config import complete_config
from roost.registry_client.overrides import OverrideFolders
from roost.registry_client.repository import LocalRepository
from roost.router.activity import ActivitySampler
from roost.router.activity_view import Activity, Question
from roost.router.catalog import Catalog
from roost.router.control import Control
from roost.router.eviction import LRU, POLICIES
from roost.router.forking import ForkServer, fork_server
from roost.router.inference import Inference
from roost.router.learned import Learned
from roost.router.least import LeastCopies
from roost.router.looking import Looker
from roost.router.measuring import Measuring
from roost.router.memory_watch import MemoryWatch
from roost.router.mesh import Mesh, MeshSettings
from roost.router.models import Version
from roost.router.placement import Ledger, Limits
from roost.router.polling import Polling
from roost.router.prefetch import Prefetch
from roost.router.preload import Preload
from roost.router.prepared_copies import PreparedCopies
from roost.router.preparer import Preparer, PreparerSpec, launch_preparer
from roost.router.proof import BatchingMode
from roost.router.proofs import Proofs
from roost.router.recency import Recency
from roost.router.revision import Revision
from roost.router.scaling import Scaling
from roost.router.snapshot import private_bytes_of, view_device, view_worker
from roost.router.spares import Spares
from roost.router.states import Availability
from roost.router.statistics import statistics
from roost.router.stats import Stats
from roost.router.traffic import Traffic
from roost.router.validation import Contract
from roost.router.view import MeshView
from roost.runtimes.prepared.cache import CopyCache

log = logging.getLogger(__name__)

BATCHING = "roost.batching"
"""The parameter of a configuration that shows whether its model is batched, and why not."""


class Router:
    """See the module. Use ``router`` to get one that runs."""

    def __init__(
        self,
        catalog: Catalog,
        mesh: Mesh,
        ledger: Ledger,
        traffic: Traffic,
        stats: Stats,
        inference: Inference,
        control: Control,
        proofs: Proofs,
        preload: Preload,
        forks: ForkServer,
    ) -> None:
        self._catalog = catalog
        self._mesh = mesh
        self._ledger = ledger
        self._traffic = traffic
        self.stats = stats
        self._inference = inference
        self.begin = inference.begin
        self._control = control
        self._proofs = proofs
        self._preload = preload
        self._forks = forks
        self._sampler = ActivitySampler(catalog, mesh, ledger, stats)

    @property
    def ready(self) -> bool:
        """Whether requests can be answered: the models were listed and a worker is up."""
        return self._mesh.ready

    @property
    def workers_pids(self) -> list[int]:
        """The processes of the workers."""
        return [worker.pid for worker in self._mesh.workers if worker.pid]

    @property
    def pids(self) -> list[int]:
        """Those, and the one that they are forked from."""
        return [*self.workers_pids, *([self._forks.pid] if self._forks.pid else [])]

    def set_limits(self, limits: Limits) -> None:
        """Sets what instances may take together."""
        self._ledger.limits = limits

    def stage(self, name: str, version: str, size_bytes: int) -> memoryview | None:
        """Memory for a large input of a model from which it need not be copied again, if there is any now.

        It is the caller's as long as anybody views it.
        """
        return self._inference.stage(name, version, size_bytes)

    def infer(self, request: InferRequest) -> Coroutine[Any, Any, InferResponse]:
        """Answers one request; cancelling it takes it out of the queue or ends its run.

        Raises:
            RoostError: See DataPlane.
        """
        return self._inference.infer(request)

    def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Answers one request of any model, response by response; the last one is ``final``.

        The model waits while nobody takes what it has answered. Closing the generator takes the request out of the
        queue or ends its run.

        Raises:
            RoostError: See DataPlane; after what the model had answered before.
        """
        return self._inference.infer_stream(request)

    async def model_ready(self, name: str, version: str) -> bool:
        """Whether the version may be asked for; False for what is not known."""
        try:
            found = await self._catalog.version(*self._traffic.resolve_main(name, version))
        except RoostError:
            return False
        return found.availability is Availability.READY

    async def model_metadata(self, name: str, version: str) -> ModelMetadata:
        """Inputs, outputs, versions and platform; a signature that is not known yet is learned by loading once.

        Raises:
            RoostError: If there is no such version or it can't be loaded.
        """
        found, contract = await self._described(name, version)
        model = await self._catalog.model(found.revision.key.name)
        ready = [v for v, state in model.versions.items() if state.availability is Availability.READY]
        description = found.revision.description
        platform = description.config.platform or PLATFORMS.get(description.backend, description.backend)
        versions = (found.revision.key.version,) if version else tuple(sorted(ready, key=version_order))
        signature = contract.signature
        return ModelMetadata(name, versions, platform, signature.inputs, signature.outputs)

    async def model_config(self, name: str, version: str) -> mc.ModelConfig:
        """The configuration with all that was left out filled in.

        Raises:
            RoostError: If there is no such version or it can't be loaded.
        """
        found, contract = await self._described(name, version)
        config = complete_config(found.revision.description, contract.signature)
        config.parameters[BATCHING].string_value = await self._proofs.describe(found.revision)
        return config

    async def index(self, ready: bool, name: str = "") -> list[IndexEntry]:
        """The versions of all models or of one with their state."""
        return await self._catalog.index(ready, name)

    async def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """What was counted since versions became available, in order of names and versions.

        Args:
            name: The model, whose available versions are shown even if they were never used; empty: all versions that
                were used, and with explicit control all that are available.
            version: The version; empty: all.

        Raises:
            NotFound: If there is no such model or version.
        """
        return await statistics(self._catalog, self._traffic, self.stats, name, version)

    def shown(self) -> Iterator[Revision]:
        """The revisions that metrics show, in no order; models may come and go meanwhile."""
        return self._catalog.shown()

    def names(self) -> list[str]:
        """The models that may be asked for, sorted; with explicit control those that are loaded."""
        return self._catalog.available_names()

    async def load(self, name: str, parameters: Mapping[str, bool | int | str | bytes]) -> None:
        """Makes a model's versions available, once each of them was loaded; what is served already and unchanged stays.

        Args:
            name: The model.
            parameters: ``config`` and ``file:<path>`` take the place of what is on disk until the next load.

        Raises:
            FailedPrecondition: If loading is not explicit, or a version can't be loaded; what was served before stays.
            InvalidArgument: If configuration or files of the parameters are wrong.
            ResourceExhausted: If there is no space for the files.
        """
        await self._control.load(name, parameters)

    async def unload(self, name: str) -> None:
        """Takes a model from service; requests that were accepted are answered. Unknown models are fine.

        Raises:
            FailedPrecondition: If loading is not explicit.
        """
        await self._control.unload(name)

    async def load_at_start(self, names: Sequence[str]) -> None:
        """Loads what the command line names; a model that fails is UNAVAILABLE and does not stop the server."""
        await self._control.load_at_start(names)

    async def preload(self) -> None:
        """Loads again what was in use before the start, as far as it fits into the free part of the budget."""
        await self._preload.run()

    def view(self) -> MeshView:
        """What the mesh looks like now; the transports fill in what they hold."""
        return MeshView(
            self.ready,
            len(self._catalog),
            self._mesh.queues.requests,
            0,
            0,
            (view_device(self._ledger, self._mesh.device),),
            tuple(view_worker(worker, self._ledger) for worker in self._mesh.workers),
            self._mesh.answers.used_bytes,
            private_bytes_of(self._forks.pid),
        )

    async def activity(self, question: Question) -> Activity:
        """What happens in the mesh now, as far as it was asked for; cheap however many models there are."""
        return await self._sampler.look(question)

    async def _described(self, name: str, version: str) -> tuple[Version, Contract]:
        found = await self._catalog.version(*self._traffic.resolve_main(name, version))
        try:
            return found, await self._learn(found.revision)
        except Unavailable:
            if not await self._inference.replaced(found.revision):
                raise
        found = await self._catalog.version(*self._traffic.resolve_main(name, version))
        return found, await self._learn(found.revision)

    async def _learn(self, revision: Revision) -> Contract:
        """The contract of a revision, which is loaded for that if need be, but in nobody's place."""
        if revision.failure is not None:
            await self._mesh.loader.check(revision)
        if revision.contract is None:
            await self._inference.recall(revision)
        if revision.contract is None:
            await self._mesh.loader.bring(revision, claim=False, older_than=-math.inf)
        contract = revision.contract or revision.former  # it may have gone again already
        assert contract is not None
        return contract


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
    batching: BatchingMode = BatchingMode.PROVEN,
    eviction: str = LRU,
    cache: CopyCache | None = None,
    measure: bool = True,
) -> AsyncIterator[Router]:
    """Runs a router: models listed and workers up at the start, workers gone at the end.

    The device's budget is 0 until ``set_limits`` is called, since what the idle processes use is known only then.

    Args:
        repositories: Where models come from.
        learned: What survives a restart.
        settings: How the mesh is made.
        traffic: The routes.
        explicit: Whether only load calls make models available.
        poll_interval_s: How often the repositories are looked at for changes; None for never.
        overrides_dir: A folder of the router's own for files that load calls bring; None to refuse them.
        batching: Which models are batched.
        eviction: The policy: one of ``eviction.POLICIES``.
        cache: Where prepared copies are kept; None for none.
        measure: Whether it is found out what models take.
    """
    stats = Stats()
    policy = POLICIES[eviction]()
    ledger = Ledger(Limits(0), policy)
    with (
        ThreadPoolExecutor(2, thread_name_prefix="roost-disk") as disk,
        ThreadPoolExecutor(1, thread_name_prefix="roost-classify") as classifying,
    ):
        overrides = OverrideFolders(overrides_dir) if overrides_dir is not None else None
        catalog = Catalog(repositories, learned, disk, explicit=explicit, overrides=overrides)
        async with asyncio.TaskGroup() as group, fork_server(settings.spec) as forks:
            mesh = Mesh(settings, ledger, catalog, stats, group, launch=forks.launch)
            try:
                await catalog.scan()
                for name in sorted(traffic.models() - set(catalog.names())):
                    log.warning("a route leads to model '%s', which is in no repository", name)
                await mesh.start()
                control = Control(catalog, mesh, stats)
                work: list[Coroutine[Any, Any, None]] = []
                renew = None
                if poll_interval_s is not None:
                    work.append(Polling(Looker(catalog, repositories, disk), control, poll_interval_s).run())
                    renew = control.renew
                inference = Inference(catalog, mesh, traffic, classifying, renew)
                proofs = Proofs(batching, ledger, mesh.loader.room, catalog, _preparer(settings))
                preload = Preload(learned, catalog, mesh.loader, ledger, disk, lambda: mesh.busy)
                work += (proofs.run(), Recency(learned, stats, disk).run())
                preparers = [proofs.preparer]
                if cache is not None:
                    copies = _copies(cache, settings, ledger, mesh, proofs, stats, disk)
                    preparers.append(copies.preparer)
                    work.append(copies.run())
                if measure:
                    work.append(_measuring(settings, ledger, mesh, catalog, learned, disk, preparers).run())
                work.append(MemoryWatch(mesh.workers, ledger, mesh.loader.room, mesh, learned, disk).run())
                least = LeastCopies(catalog, disk)
                scaling = Scaling(mesh, ledger, least, Spares(mesh.workers, ledger), stats.copies)
                work += (least.run(), scaling.run())
                if eviction != LRU:
                    work.append(Prefetch(policy, mesh.loader.bring).run())
                async with AsyncExitStack() as background:
                    for each in work:
                        await background.enter_async_context(in_background(each))
                    yield Router(catalog, mesh, ledger, traffic, stats, inference, control, proofs, preload, forks)
            finally:
                await mesh.stop()
                if overrides is not None:
                    await asyncio.to_thread(overrides.clear)


def _copies(
    cache: CopyCache,
    settings: MeshSettings,
    ledger: Ledger,
    mesh: Mesh,
    proofs: Proofs,
    stats: Stats,
    disk: Executor,
) -> PreparedCopies:
    """Loads take prepared copies from now on; they are made while no proofs are."""
    loader = mesh.loader
    copies = PreparedCopies(
        cache,
        ledger,
        loader.room,
        loader,
        _preparer(settings),
        disk,
        stats.prepared,
        lambda: proofs.preparer.pid > 0,
    )
    loader.copies = copies
    return copies


def _measuring(
    settings: MeshSettings,
    ledger: Ledger,
    mesh: Mesh,
    catalog: Catalog,
    learned: Learned,
    disk: Executor,
    others: Sequence[Preparer],
) -> Measuring:
    """Hears of loads from now on; models are measured while no other preparer works."""
    loader = mesh.loader
    measuring = Measuring(
        learned,
        ledger,
        loader.room,
        loader,
        _preparer(settings),
        disk,
        lambda: any(other.pid > 0 for other in others),
    )
    others_hear = catalog.when_loaded

    def loaded(revision: Revision) -> None:
        others_hear(revision)
        measuring.loaded(revision)

    catalog.when_loaded = loaded
    return measuring


def _preparer(settings: MeshSettings) -> Preparer:
    """The process that tries models runs them with as many threads as workers do."""
    spec = settings.spec
    return Preparer(PreparerSpec(spec.threads, spec.log_level, spec.log_format), launch_preparer)

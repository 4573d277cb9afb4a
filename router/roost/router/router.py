"""The router: everything between the transports and the workers, behind a few calls.

``DataPlane`` in ``roost.server`` is its only caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from roost.core.errors import DeadlineExceeded, FailedPrecondition, RoostError
from roost.core.metadata import IndexEntry, ModelMetadata
from roost.core.names import version_order
from roost.core.requests import InferRequest, InferResponse
from roost.proto import model_config_pb2 as mc
from roost.registry_client.backends import PLATFORMS
from roost.registry_client.model_config import complete_config
from roost.registry_client.repository import LocalRepository
from roost.router.catalog import UNLOADED, Catalog, Model, Version, never_loaded
from roost.router.mesh import Mesh, MeshSettings
from roost.router.placement import Ledger
from roost.router.revision import Revision
from roost.router.snapshot import view_device, view_worker
from roost.router.states import Availability, AvailabilityEvent
from roost.router.stats import Stats
from roost.router.store import Store
from roost.router.traffic import Traffic
from roost.router.validation import Contract
from roost.router.view import MeshView

log = logging.getLogger(__name__)


class Router:
    """See the module. Use ``router`` to get one that runs."""

    def __init__(self, catalog: Catalog, mesh: Mesh, ledger: Ledger, traffic: Traffic, stats: Stats) -> None:
        self._catalog = catalog
        self._mesh = mesh
        self._ledger = ledger
        self._traffic = traffic
        self.stats = stats
        self._random = random.Random()
        self._loads: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # one load call a model at a time

    @property
    def ready(self) -> bool:
        """Whether requests can be answered: the models were listed and a worker is up."""
        return self._mesh.ready

    @property
    def workers_pids(self) -> list[int]:
        """The processes of the workers."""
        return [worker.pid for worker in self._mesh.workers if worker.pid]

    def set_budget(self, budget_bytes: int) -> None:
        """Sets how many private bytes instances may have together."""
        self._ledger.budget_bytes = budget_bytes

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answers one request; cancelling it takes it out of the queue or ends its run.

        Raises:
            RoostError: See DataPlane.
        """
        version = await self._resolve(request)
        revision = version.revision
        request.context.served_by = (revision.key.name, revision.key.version)
        if revision.failure is not None:
            await self._mesh.loader.check(revision)
        contract = revision.contract or await self._contract(revision, request.context.deadline)
        contract.check(request)
        pending = self._mesh.submit(revision, request)
        try:
            return await pending.future
        except asyncio.CancelledError:
            self._mesh.abandon(pending)
            raise

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
        return complete_config(found.revision.description, contract.signature)

    async def index(self, ready: bool) -> list[IndexEntry]:
        """All versions with their state."""
        return await self._catalog.index(ready)

    async def load(self, name: str) -> None:
        """Makes a model's versions available, once each of them was loaded; what is served already and unchanged stays.

        Raises:
            FailedPrecondition: If loading is not explicit, or a version can't be loaded; what was served before stays.
            NotFound: If there is no such model.
        """
        self._require_explicit()
        async with self._loads.setdefault(name, asyncio.Lock()):
            present = self._catalog.present(name)
            fresh = await self._catalog.reopen(name)
            if fresh.error is not None:
                raise FailedPrecondition(f"failed to load '{name}': {fresh.error.message}")
            kept = await self._unchanged(present, fresh)
            fresh.versions.update(kept)
            try:
                for number, version in fresh.versions.items():
                    if number not in kept:
                        await self._load_version(name, number, version, present)
            except FailedPrecondition:
                for number in fresh.versions.keys() - kept.keys():
                    self._mesh.retire(fresh.versions[number].revision)
                raise
            self._catalog.install(fresh)
            for number, old in (present.versions if present is not None else {}).items():
                if fresh.versions.get(number) is not old:
                    self._mesh.retire(old.revision)

    async def unload(self, name: str) -> None:
        """Takes a model from service; requests that were accepted are answered. Unknown models are fine.

        Raises:
            FailedPrecondition: If loading is not explicit.
        """
        self._require_explicit()
        present = self._catalog.present(name)
        if present is None:
            return
        for version in present.versions.values():
            if version.availability in (Availability.READY, Availability.UNAVAILABLE) and not never_loaded(version):
                self._take_from_service(version)

    async def load_at_start(self, names: Sequence[str]) -> None:
        """Loads what the command line names; a model that fails is UNAVAILABLE and does not stop the server."""
        wanted = self._catalog.names() if "*" in names else list(names)
        for name in wanted:
            try:
                await self.load(name)
            except RoostError as error:
                log.error("%s", error.message)

    def view(self) -> MeshView:
        """What the mesh looks like now; the transports fill in what they hold."""
        return MeshView(
            self.ready,
            len(self._catalog),
            self._mesh.queued,
            0,
            0,
            (view_device(self._ledger, self._mesh.device),),
            tuple(view_worker(worker, self._ledger) for worker in self._mesh.workers),
        )

    async def _resolve(self, request: InferRequest) -> Version:
        name, version = request.model_name, request.model_version
        if self._traffic.routes:
            name, version = self._traffic.resolve(name, version, self._random.random())
        found = self._catalog.known(name, version)
        if found is not None and found.availability is Availability.READY:
            return found
        return await self._catalog.version(name, version)

    async def _described(self, name: str, version: str) -> tuple[Version, Contract]:
        found = await self._catalog.version(*self._traffic.resolve_main(name, version))
        revision = found.revision
        if revision.failure is not None:
            await self._mesh.loader.check(revision)
        if revision.contract is None:
            await self._recall(revision)
        if revision.contract is None:
            await self._mesh.loader.bring(revision, claim=False, older_than=-math.inf)
        assert revision.contract is not None
        return found, revision.contract

    async def _contract(self, revision: Revision, deadline: float) -> Contract:
        """The contract of a revision that was not used since the start: from the store, else by loading it."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic()) if deadline < math.inf else None):
                await self._recall(revision)
                if revision.contract is None:
                    await self._mesh.loader.bring(revision)
        except TimeoutError:
            raise DeadlineExceeded("Request timeout expired while its model was loading") from None
        assert revision.contract is not None
        return revision.contract

    async def _recall(self, revision: Revision) -> None:
        """Takes the signature from the store, if it is there for these files.

        Whatever is wrong with them the load that follows meets again: it remembers it and makes it known.
        """
        with contextlib.suppress(RoostError):
            await self._catalog.prepare(revision)

    async def _unchanged(self, present: Model | None, fresh: Model) -> dict[str, Version]:
        """The versions that are served now and whose files and configuration are still the same."""
        kept: dict[str, Version] = {}
        for number, version in (present.versions if present is not None else {}).items():
            new = fresh.versions.get(number)
            same = new is not None and version.revision.description == new.revision.description
            if (
                same
                and version.availability is Availability.READY
                and not await self._catalog.changed(version.revision)
            ):
                kept[number] = version
        return kept

    async def _load_version(self, name: str, number: str, version: Version, present: Model | None) -> None:
        version.advance(AvailabilityEvent.LOAD)
        shown = present.versions.get(number) if present is not None else None
        try:
            await self._mesh.loader.bring(version.revision)
        except RoostError as error:
            reason = version.revision.failure.reason if version.revision.failure is not None else error.message
            version.advance(AvailabilityEvent.FAILED, reason)
            if shown is None or shown.availability is not Availability.READY:
                self._catalog.show_failed(name, number, version)
            raise FailedPrecondition(
                f"load failed for model '{name}': version {number} is at UNAVAILABLE state: {reason}"
            ) from None
        version.advance(AvailabilityEvent.LOADED)

    def _take_from_service(self, version: Version) -> None:
        if version.availability is Availability.READY:
            version.advance(AvailabilityEvent.UNLOAD)
            version.advance(AvailabilityEvent.UNLOADED, UNLOADED)
        else:
            version.advance(AvailabilityEvent.UNLOAD, UNLOADED)
        self._mesh.retire(version.revision)

    def _require_explicit(self) -> None:
        if not self._catalog.explicit:
            raise FailedPrecondition(
                "explicit model load / unload is not allowed: start the server with --model-control explicit"
            )


@asynccontextmanager
async def router(
    repositories: Sequence[LocalRepository],
    store: Store,
    settings: MeshSettings,
    traffic: Traffic,
    *,
    explicit: bool,
) -> AsyncIterator[Router]:
    """Runs a router: models listed and workers up at the start, workers gone at the end.

    The device's budget is 0 until ``set_budget`` is called, since what the idle processes use is known only then.
    """
    stats = Stats()
    ledger = Ledger(0)
    with ThreadPoolExecutor(2, thread_name_prefix="roost-disk") as disk:
        catalog = Catalog(repositories, store, disk, explicit=explicit)
        async with asyncio.TaskGroup() as group:
            mesh = Mesh(settings, ledger, catalog, stats, group)
            try:
                await catalog.scan()
                for name in sorted(traffic.models() - set(catalog.names())):
                    log.warning("a route leads to model '%s', which is in no repository", name)
                await mesh.start()
                yield Router(catalog, mesh, ledger, traffic, stats)
            finally:
                await mesh.stop()

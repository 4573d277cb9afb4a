"""The router: everything between the transports and the workers, behind a few calls.

``DataPlane`` in ``roost.server`` is its only caller.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from roost.core.errors import RoostError, Unavailable
from roost.core.metadata import IndexEntry, ModelMetadata
from roost.core.names import version_order
from roost.core.requests import InferRequest, InferResponse
from roost.core.statistics import ModelStatistics
from roost.proto import model_config_pb2 as mc
from roost.registry_client.backends import platform_of
from roost.registry_client.model_config import complete_config
from roost.router.activity import ActivitySampler
from roost.router.activity_view import Activity, Question
from roost.router.catalog import Catalog
from roost.router.control import Control
from roost.router.devices import show_devices
from roost.router.inference import Inference
from roost.router.launching import Launcher
from roost.router.mesh import Mesh
from roost.router.models import Version
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.preload import Preload
from roost.router.proofs import Proofs
from roost.router.revision import Revision
from roost.router.snapshot import private_bytes_of, running, view_devices, view_instances, view_worker
from roost.router.states import Availability
from roost.router.statistics import statistics
from roost.router.stats import Stats
from roost.router.traffic import Traffic
from roost.router.validation import Contract
from roost.router.view import InstanceView, MeshView

BATCHING = "roost.batching"
"""The parameter of a configuration that shows whether its model is batched, and why not."""


class Router:
    """See the module. ``roost.router.assembly`` makes one that runs."""

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
        launches: Launcher,
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
        self._launches = launches
        self._sampler = ActivitySampler(catalog, mesh, ledger, stats)

    @property
    def ready(self) -> bool:
        """Whether requests can be answered: the models were listed and a worker is up."""
        return self._mesh.ready

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs now."""
        return self._mesh.busy

    @property
    def workers_pids(self) -> list[int]:
        """The processes of the workers."""
        return [worker.pid for worker in self._mesh.workers if worker.pid]

    @property
    def pids(self) -> list[int]:
        """Those, and the ones that they are forked from."""
        return [*self.workers_pids, *self._launches.pids]

    def set_limits(self, limits: Limits) -> None:
        """Sets what instances may take together."""
        self._mesh.set_limits(limits)

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
        return found.availability is Availability.READY and await self._inference.ensembles.ready(found.revision)

    async def model_metadata(self, name: str, version: str) -> ModelMetadata:
        """Inputs, outputs, versions and platform; a signature that is not known yet is learned by loading once.

        Raises:
            RoostError: If there is no such version or it can't be loaded.
        """
        found, contract = await self._described(name, version)
        model = await self._catalog.model(found.revision.key.name)
        ready = [v for v, state in model.versions.items() if state.availability is Availability.READY]
        description = found.revision.description
        platform = description.config.platform or platform_of(description.backend) or description.backend
        versions = (found.revision.key.version,) if version else tuple(sorted(ready, key=version_order))
        signature = contract.signature
        return ModelMetadata(name, versions, platform, signature.inputs, signature.outputs)

    async def model_config(self, name: str, version: str) -> mc.ModelConfig:
        """The configuration with all that was left out filled in.

        Raises:
            RoostError: If there is no such version or it can't be loaded.
        """
        found, contract = await self._described(name, version)
        revision = found.revision
        config = complete_config(revision.description, contract.signature)
        show_devices(config, revision)
        if revision.description.ensemble is None:
            config.parameters[BATCHING].string_value = await self._proofs.describe(revision)
        elif revision.plan is not None:  # as far as its steps are known
            config.model_transaction_policy.decoupled = revision.plan.streaming is not None
        return config

    async def index(self, ready: bool, name: str = "") -> list[IndexEntry]:
        """The versions of all models or of one with their state; an ensemble is as ready as its steps."""
        entries = [self._with_steps(entry) for entry in await self._catalog.index(ready, name)]
        return [entry for entry in entries if entry.state == Availability.READY] if ready else entries

    def _with_steps(self, entry: IndexEntry) -> IndexEntry:
        found = self._catalog.known(entry.name, entry.version) if entry.state == Availability.READY else None
        if found is None or found.revision.description.ensemble is None:
            return entry
        reason = self._inference.ensembles.missing(found.revision)
        return IndexEntry(entry.name, entry.version, Availability.UNAVAILABLE, reason) if reason else entry

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

    def shown(self) -> Iterator[list[Revision]]:
        """The revisions that metrics show, in parts and in no order; models may come and go meanwhile."""
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

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Takes a model from service; requests that were accepted are answered. Unknown models are fine.

        Args:
            name: The model.
            dependents: Whether the models of an ensemble's steps go with it that were loaded for it alone.

        Raises:
            FailedPrecondition: If loading is not explicit.
        """
        await self._control.unload(name, dependents=dependents)

    async def load_at_start(self, names: Sequence[str]) -> None:
        """Loads what the command line names; a model that fails is UNAVAILABLE and does not stop the server."""
        await self._control.load_at_start(names)

    async def preload(self) -> None:
        """Loads again what was in use before the start, as far as it fits into the free part of the budget."""
        await self._preload.run()

    def view(self, *, instances: bool = True) -> MeshView:
        """What the mesh looks like now, with or without instances; the transports fill in what they hold."""
        return MeshView(
            self.ready,
            len(self._catalog),
            self._mesh.queues.requests,
            0,
            0,
            view_devices(self._ledger, self._mesh.device, self._mesh.gpus),
            tuple(view_worker(worker, self._ledger, instances=instances) for worker in running(self._mesh.workers)),
            self._mesh.answers.used_bytes,
            sum(map(private_bytes_of, self._launches.pids)),
            self._mesh.sequence_budget.sequences,
            self._mesh.sequence_budget.bytes,
        )

    def instances(self, worker: int) -> Iterator[InstanceView]:
        """What is loaded in a worker."""
        return view_instances(self._mesh.workers[worker], self._ledger)

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

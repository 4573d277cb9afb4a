"""Which models and versions there are, and which of them may be asked for.

At the start only the folder names are read. A model's folder is looked into when the model is first asked for, its
files are hashed when it is first loaded; so a server with very many models starts at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from roost.core.errors import NotFound, RoostError, Unavailable, error_of
from roost.core.metadata import IndexEntry
from roost.core.names import DEFAULT_NAMESPACE, VersionKey, is_name, version_order
from roost.core.tensors import Signature
from roost.registry_client.model_config import (
    ModelDescription,
    effective_signature,
    served_versions,
    signature_from_config,
)
from roost.registry_client.repository import LocalRepository, ModelFolder
from roost.router.revision import Revision
from roost.router.states import Availability, AvailabilityEvent, next_availability
from roost.router.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

UNLOADED = "unloaded"
FOLDERS_LOOKED_AT_EVERY_S = 1.0


@dataclass(eq=False, slots=True)
class Version:
    """A version as clients see it: its present revision and whether it may be asked for."""

    revision: Revision
    availability: Availability
    reason: str = ""

    def advance(self, event: AvailabilityEvent, reason: str = "") -> None:
        """Moves to the next availability, with the reason that clients are shown."""
        self.availability = next_availability(self.availability, event)
        self.reason = reason


@dataclass(eq=False, slots=True)
class Model:
    """A model whose folder was looked into.

    ``error`` says why it has no versions that could be served; ``looked_at`` is when the folder was read.
    """

    name: str
    looked_at: float = 0.0
    description: ModelDescription | None = None
    versions: dict[str, Version] = field(default_factory=dict)
    error: RoostError | None = None

    def latest(self) -> Version | None:
        """The highest version that is READY, else the highest of all."""
        if len(self.versions) == 1:  # nearly always, and asked for each request
            return next(iter(self.versions.values()))
        ordered = sorted(self.versions, key=version_order, reverse=True)
        ready = [v for v in ordered if self.versions[v].availability is Availability.READY]
        return self.versions[(ready or ordered)[0]] if ordered else None


class Catalog:
    """See the module. Blocking reads of the disk run on ``disk``."""

    def __init__(
        self,
        repositories: Sequence[LocalRepository],
        store: Store,
        disk: Executor,
        *,
        explicit: bool,
    ) -> None:
        self._repositories = repositories
        self._store = store
        self._disk = disk
        self.explicit = explicit
        self._homes: dict[str, LocalRepository | None] = {}  # None: the name is in more than one repository
        self._models: dict[str, Model] = {}

    def __len__(self) -> int:
        return len(self._homes)

    async def scan(self) -> None:
        """Reads the names of all models."""
        for repository in self._repositories:
            for name in await self._on_disk(repository.scan):
                self._homes[name] = None if name in self._homes else repository
        for name in [n for n, home in self._homes.items() if home is None]:
            log.error("model '%s' is in more than one repository: it is not served", name)

    def names(self) -> list[str]:
        """All model names, sorted."""
        return sorted(self._homes)

    def known(self, name: str, version: str) -> Version | None:
        """The version if it can be said without reading the disk: the hot path."""
        model = self._models.get(name)
        if model is None:
            return None
        return model.versions.get(version) if version else model.latest()

    async def version(self, name: str, version: str) -> Version:
        """The version that a request for ``name`` and ``version`` means.

        Raises:
            NotFound: If there is no such model or version, or it was never loaded or unloaded by a call.
            Unavailable: If its configuration or files are broken.
        """
        model = await self.model(name)
        if model.error is not None:
            model = await self._look_again(model)
        if model.error is not None:
            raise error_of(model.error.code, model.error.message)  # a kept one would keep every caller's frames
        found = model.versions.get(version) if version else model.latest()
        if found is None and version:
            raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
        if found is None or never_loaded(found) or found.reason == UNLOADED:
            raise NotFound(f"Request for unknown model: '{name}' has no available versions")
        return found

    async def model(self, name: str) -> Model:
        """The model of a name; its folder is read at the first call.

        Raises:
            NotFound: If there is none.
        """
        model = self._models.get(name)
        if model is not None:
            return model
        if name not in self._homes:
            raise NotFound(f"Request for unknown model: '{_shown(name)}' is not found")
        model = await self._on_disk(partial(self._open, name))
        return self._models.setdefault(name, model)  # two callers may have read the folder at once

    async def reopen(self, name: str) -> Model:
        """Reads a model's folder afresh, for a load call; what is served now stays as it is.

        Raises:
            NotFound: If there is no such folder.
        """
        if self._homes.get(name) is None and is_name(name):
            await self._find(name)
        if name not in self._homes:
            raise NotFound(f"failed to load '{_shown(name)}', failed to poll from model repository")
        return await self._on_disk(partial(self._open, name))

    def present(self, name: str) -> Model | None:
        """The model as it is known now, without a look at the disk."""
        return self._models.get(name)

    def show_failed(self, name: str, number: str, version: Version) -> None:
        """Lets clients see why a load call failed, where nothing else is served under that version."""
        self._models.setdefault(name, Model(name)).versions[number] = version

    def install(self, model: Model) -> None:
        """Puts a model in the place of the one of its name."""
        self._models[model.name] = model

    async def prepare(self, revision: Revision) -> None:
        """Looks at a revision's files, hashing those that changed, and takes the signature from the store if there.

        Raises:
            RoostError: If the files are missing or unreadable.
        """
        await self._on_disk(partial(self._prepare, revision))

    async def changed(self, revision: Revision) -> bool:
        """Whether the files are others than those that were looked at last."""
        artifact = revision.artifact

        def look() -> bool:
            try:
                stamp = revision.folder.stamp(revision.key.version, revision.description)
            except RoostError:
                return artifact is not None
            return artifact is None or stamp != artifact.stamp

        return await self._on_disk(look)

    async def remember(self, revision: Revision, signature: Signature) -> None:
        """Keeps what the runtime said of a revision's artifact, for the next start."""
        artifact = revision.artifact
        if artifact is not None:
            backend = revision.description.backend
            await self._on_disk(partial(self._store.put_signature, artifact.digest, backend, signature))

    def loaded(self, revision: Revision) -> None:
        """A load of the revision went well."""
        version = self._present(revision)
        if version is not None:
            version.advance(AvailabilityEvent.LOADED)

    def failed(self, revision: Revision, reason: str) -> None:
        """A load of the revision failed for good or for a while."""
        version = self._present(revision)
        if version is not None:
            version.advance(AvailabilityEvent.FAILED, reason)

    def _present(self, revision: Revision) -> Version | None:
        """The version that the revision is the present one of; None once another took its place or it was unloaded."""
        model = self._models.get(revision.key.name)
        version = model.versions.get(revision.key.version) if model is not None else None
        return version if version is not None and version.revision is revision and not revision.retired else None

    async def index(self, ready: bool) -> list[IndexEntry]:
        """All versions with their state; models that were never loaded have only a name."""
        await self._open_all()
        entries: list[IndexEntry] = []
        for name in self.names():
            entries.extend(self._index_of(name))
        return [e for e in entries if e.state == Availability.READY] if ready else entries

    def _index_of(self, name: str) -> Iterable[IndexEntry]:
        model = self._models.get(name)
        if model is None or (all(never_loaded(version) for version in model.versions.values()) and not model.error):
            return [IndexEntry(name)]
        if model.error is not None:
            return [IndexEntry(name, "", Availability.UNAVAILABLE, model.error.message)]
        rows = sorted(model.versions.items(), key=lambda item: version_order(item[0]))
        return [IndexEntry(name, v, state.availability, state.reason) for v, state in rows]

    async def _open_all(self) -> None:
        """Looks into the folders that were not yet, some at a time so that the loop stays free."""
        if self.explicit:
            return
        missing = [name for name in self._homes if name not in self._models]
        for start in range(0, len(missing), 256):
            names = missing[start : start + 256]
            for model in await self._on_disk(partial(self._open_some, names)):
                self._models.setdefault(model.name, model)

    async def _look_again(self, model: Model) -> Model:
        """Reads the folder of a model that could not be served afresh, in case it was mended, but not all the time."""
        now = time.monotonic()
        if now - model.looked_at < FOLDERS_LOOKED_AT_EVERY_S:
            return model
        model.looked_at = now
        fresh = await self._on_disk(partial(self._open, model.name))
        if self._models.get(model.name) is model:
            self._models[model.name] = fresh
        return self._models.get(model.name, fresh)

    async def _find(self, name: str) -> None:
        """Looks for a folder that has come since the scan."""
        for repository in self._repositories:
            try:
                await self._on_disk(partial(repository.open_model, name))
            except NotFound:
                continue
            self._homes[name] = repository
            return

    def _open_some(self, names: Sequence[str]) -> list[Model]:
        return [self._open(name) for name in names]

    def _open(self, name: str) -> Model:
        model = Model(name, time.monotonic())
        repository = self._homes[name]
        if repository is None:
            model.error = Unavailable(f"model '{name}' is in more than one repository")
            return model
        try:
            folder = repository.open_model(name)
            description = model.description = folder.load_config()
            versions = folder.versions()
            served = served_versions(description, versions)
        except RoostError as error:
            model.error = Unavailable(f"model '{name}' can't be served: {error.message}")
            return model
        if not served:
            model.error = Unavailable(f"model '{name}' has no version to serve")
        for version in served:
            model.versions[version] = self._version(folder, description, name, version)
        return model

    def _version(self, folder: ModelFolder, description: ModelDescription, name: str, version: str) -> Version:
        key = VersionKey(DEFAULT_NAMESPACE, name, version)
        revision = Revision(key, folder, description)
        declared = signature_from_config(description)
        if declared is not None:
            revision.describe(declared)
        return Version(revision, Availability.UNAVAILABLE if self.explicit else Availability.READY)

    def _prepare(self, revision: Revision) -> None:
        description = revision.description
        artifact = revision.folder.artifact(revision.key.version, description, self._store)
        known = self._store.get_signature(artifact.digest, description.backend)
        revision.artifact = artifact
        if known is not None and revision.contract is None:
            revision.describe(effective_signature(description, known))

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)


def never_loaded(version: Version) -> bool:
    """Whether the version waits for its first load call."""
    return version.availability is Availability.UNAVAILABLE and not version.reason


def _shown(name: str) -> str:
    return name if len(name) <= 128 else name[:128] + "..."

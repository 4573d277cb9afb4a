"""Which models and versions there are, and which of them may be asked for.

At the start only the folder names are read. A model's folder is looked into when the model is first asked for, its
files are hashed when it is first loaded; so a server with very many models starts at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TypeVar

from roost.core.errors import FailedPrecondition, NotFound, PollFailed, Unavailable, error_of
from roost.core.metadata import IndexEntry
from roost.core.names import is_name, shorten, version_order
from roost.core.tensors import Signature
from roost.registry_client.load_options import said_under
from roost.registry_client.model_config import effective_signature
from roost.registry_client.overrides import OverrideFolders
from roost.registry_client.repository import LocalRepository
from roost.router.brought import Brought
from roost.router.learned import Learned
from roost.router.measured import measured_conditions
from roost.router.models import UNLOADED, Model, Opener, Version, files_changed
from roost.router.proof import Proof, conditions_of
from roost.router.revision import Revision
from roost.router.states import Availability, AvailabilityEvent

log = logging.getLogger(__name__)

T = TypeVar("T")

FOLDERS_LOOKED_AT_EVERY_S = 1.0
_LOOK = 100


class Catalog:
    """See the module. Blocking reads of the disk run on ``disk``."""

    def __init__(
        self,
        repositories: Sequence[LocalRepository],
        learned: Learned,
        disk: Executor,
        *,
        explicit: bool,
        overrides: OverrideFolders | None = None,
        code_from: frozenset[Path] = frozenset(),
    ) -> None:
        self._repositories = repositories
        self._learned = learned
        self._disk = disk
        self.explicit = explicit
        self.least: set[str] = set()
        """Models that were opened and want to be loaded without being asked for, and some that did."""
        self.unread: list[str] = []
        """Models that nobody has looked at for that yet; with explicit control a load call does."""
        self._opener = Opener(explicit=explicit, least=self.least, code_from=code_from)
        self.brought = Brought(overrides, self._opener, disk)
        self._homes: dict[str, LocalRepository | None] = {}  # None: the name is in more than one repository
        self._models: dict[str, Model] = {}
        self.when_loaded: Callable[[Revision], None] = lambda _: None
        """Told of each load that went well."""

    def __len__(self) -> int:
        return len(self._homes) + len(self.brought.names() - self._homes.keys())

    async def scan(self) -> None:
        """Reads the names of all models."""
        for repository in self._repositories:
            for name in await self._on_disk(repository.scan):
                self._homes[name] = None if name in self._homes else repository
        if not self.explicit:
            self.unread.extend(self._homes)
        for name in [n for n, home in self._homes.items() if home is None]:
            log.error("model '%s' is in more than one repository: it is not served", name)

    def names(self) -> list[str]:
        """All model names, sorted."""
        return sorted(self._homes.keys() | self._models.keys())

    def available_names(self) -> list[str]:
        """The names of the models that may be asked for, sorted; nothing is read from the disk for that."""
        ready = {
            name
            for name, model in self._models.items()
            if any(version.availability is Availability.READY for version in model.versions.values())
        }
        if self.explicit:
            return sorted(ready)
        return sorted(ready | {name for name, home in self._homes.items() if home and name not in self._models})

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
            Unavailable: If its configuration or files are broken, or if its policy does not serve the version.
        """
        model = await self.model(name)
        if model.error is not None:
            model = await self._look_again(model)
        if model.error is not None:
            raise error_of(model.error.code, model.error.message)  # a kept one would keep every caller's frames
        found = model.versions.get(version) if version else model.latest()
        if version in model.unserved and any(v.availability is Availability.READY for v in model.versions.values()):
            raise Unavailable(f"Request for unknown model: '{name}' version {version} is not at ready state")
        if found is None and version:
            raise NotFound(f"Request for unknown model: '{name}' version {version} is not found")
        if found is None or found.never_loaded() or found.reason == UNLOADED:
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
        if name in self._homes:
            model = await self._on_disk(partial(self._open, name, self._homes[name]))
        if model is None or name not in self._homes:  # it may have gone meanwhile
            raise NotFound(f"Request for unknown model: '{shorten(name, 128)}' is not found")
        if not model.was_readable:  # the next call may have more luck
            return model
        return self._models.setdefault(name, model)  # two callers may have read the folder at once

    async def reopen(self, name: str, config: str | None = None) -> Model:
        """Reads a model's folder afresh; what is served now stays as it is.

        Args:
            name: The model.
            config: A configuration in JSON in place of the one on disk.

        Raises:
            PollFailed: If there is no such folder.
            InvalidArgument: If the configuration is wrong.
        """
        if self._homes.get(name) is None and is_name(name):
            await self._find(name)
        if name not in self._homes:
            raise PollFailed(f"failed to load '{shorten(name, 128)}', failed to poll from model repository")
        return await self._on_disk(partial(self._open, name, self._homes[name], config))

    def present(self, name: str) -> Model | None:
        """The model as it is known now, without a look at the disk."""
        return self._models.get(name)

    def shown(self) -> Iterator[list[Revision]]:
        """The revisions that statistics show: those that were used, with explicit control all that are available.

        In parts, of which many may be empty: each is a look at so many models that others need not wait for it.
        """
        models = list(self._models.values())  # models come and go while this is suspended
        for start in range(0, len(models), _LOOK):
            yield [
                version.revision
                for model in models[start : start + _LOOK]
                for version in model.versions.values()
                if self._is_shown(version)
            ]

    def _is_shown(self, version: Version) -> bool:
        revision = version.revision
        return not revision.retired and (
            revision.used or (self.explicit and version.availability is Availability.READY)
        )

    def steps_of(self, name: str) -> tuple[str, ...]:
        """The models of the steps of an ensemble, as far as is known without a look at the disk."""
        model = self._models.get(name)
        ensemble = model.description.ensemble if model is not None and model.description is not None else None
        return ensemble.models if ensemble is not None else ()

    def ensembles_with(self, steps: Set[str]) -> list[str]:
        """The ensembles that may be asked for and have one of these models, or routes, as a step."""
        return [
            name
            for name, model in self._models.items()
            if not steps.isdisjoint(self.steps_of(name))
            and any(v.availability is Availability.READY for v in model.versions.values())
        ]

    def show_failed(self, name: str, number: str, version: Version) -> None:
        """Lets clients see why a load call failed, where nothing else is served under that version."""
        if name in self._homes:  # of others nothing is left to be seen
            self._models.setdefault(name, Model(name)).versions[number] = version

    def install(self, model: Model) -> None:
        """Puts a model in the place of the one of its name."""
        self._models[model.name] = model

    def homes(self) -> Mapping[str, LocalRepository | None]:
        """The repository of each model; None for names that are in more than one."""
        return self._homes

    def appear(self, name: str, repository: LocalRepository) -> None:
        """A repository has a folder of that name; one that is known already stays where it is."""
        if name not in self._homes:
            self._homes[name] = repository
            if not self.explicit:
                self.unread.append(name)

    def in_repository(self, name: str) -> bool:
        """Whether a repository has a folder of that name, as far as was seen."""
        return name in self._homes

    def forget(self, name: str) -> None:
        """The model is not known any more."""
        self._models.pop(name, None)
        self._homes.pop(name, None)

    async def prepare(self, revision: Revision, *, unless_within_s: float = 0.0) -> None:
        """Looks at a revision's files, hashing those that changed, and takes the signature from the store if there.

        Args:
            revision: Whose files.
            unless_within_s: It is enough if that was done so long ago.

        Raises:
            RoostError: If the files are missing or unreadable.
        """
        if time.monotonic() - revision.looked_at >= unless_within_s or revision.contract is None:
            await self._on_disk(partial(self._prepare, revision))

    async def changed(self, revision: Revision) -> bool:
        """Whether the files are others than those that were looked at last."""
        return await self._on_disk(partial(files_changed, revision))

    async def outdated(self, name: str) -> bool:
        """Whether a model's folder is not as it was read; one that is gone is no news."""
        model, home = self._models.get(name), self._homes.get(name)
        if model is None or home is None:
            return False
        try:
            stamp = await self._on_disk(partial(home.folder_of(name).folder_stamp, model.stamp))
        except NotFound:
            return False
        return stamp != model.stamp

    async def remember(self, revision: Revision, signature: Signature) -> None:
        """Keeps what the runtime said of a revision's artifact, for the next start."""
        artifact = revision.artifact
        if artifact is None:
            return
        key = artifact.digest, said_under(revision.description)
        if not self._learned.has_signature(*key, signature):  # else the request that waits would wait for nothing
            await self._on_disk(partial(self._learned.put_signature, *key, signature))

    async def remember_size(self, revision: Revision) -> None:
        """Keeps what an instance was found to take when it was loaded, for the next start."""
        if revision.artifact is not None and revision.measured is not None:
            key = revision.artifact.digest, measured_conditions(revision.description)
            await self._on_disk(partial(self._learned.put_measured, *key, revision.measured))

    async def recall_gpu_size(self, revision: Revision) -> None:
        """Looks up what an instance was found to take of a GPU, unless that is known."""
        if revision.artifact is not None and revision.measured_on_gpu is None:
            key = revision.artifact.digest, measured_conditions(revision.description, on_gpu=True)
            revision.measured_on_gpu = await self._on_disk(partial(self._learned.get_measured, *key))

    async def remember_gpu_size(self, revision: Revision) -> None:
        """Keeps that, for the next start."""
        if revision.artifact is not None and revision.measured_on_gpu is not None:
            key = revision.artifact.digest, measured_conditions(revision.description, on_gpu=True)
            await self._on_disk(partial(self._learned.put_measured, *key, revision.measured_on_gpu))

    async def remember_proof(self, key: tuple[str, str], proof: Proof) -> None:
        """Keeps what was found out about batches of the files with a digest, for the next start."""
        await self._on_disk(partial(self._learned.put_proof, *key, proof))

    def loaded(self, revision: Revision) -> None:
        """A load of the revision went well."""
        self.when_loaded(revision)
        version = self._present(revision)
        if version is not None:
            version.advance(AvailabilityEvent.LOADED)

    def mended(self, revision: Revision) -> None:
        """A revision that is never loaded was found to be fine."""
        version = self._present(revision)
        if version is not None and version.availability is not Availability.READY:
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

    async def index(self, ready: bool, name: str = "") -> list[IndexEntry]:
        """The versions of all models or of one with their state; models that were never loaded have only a name."""
        await self._open_all([name] if name else list(self._homes))
        entries: list[IndexEntry] = []
        for known in self.names() if not name else self._known(name):
            entries.extend(self._index_of(known))
        return [e for e in entries if e.state == Availability.READY] if ready else entries

    def _known(self, name: str) -> list[str]:
        return [name] if name in self._homes or name in self._models else []

    def _index_of(self, name: str) -> Iterable[IndexEntry]:
        model = self._models.get(name)
        if model is None or (all(version.never_loaded() for version in model.versions.values()) and not model.error):
            return [IndexEntry(name)]
        if model.error is not None:
            return [IndexEntry(name, "", Availability.UNAVAILABLE, model.error.message)]
        rows = sorted(model.versions.items(), key=lambda item: version_order(item[0]))
        return [IndexEntry(name, v, state.availability, state.reason) for v, state in rows]

    async def _open_all(self, names: Sequence[str]) -> None:
        """Looks into the folders that were not yet, some at a time so that the loop stays free."""
        if self.explicit:
            return
        missing = [(name, self._homes[name]) for name in names if name in self._homes and name not in self._models]
        for start in range(0, len(missing), 256):
            for model in await self._on_disk(partial(self._open_some, missing[start : start + 256])):
                if model.name in self._homes and model.was_readable:
                    self._models.setdefault(model.name, model)

    async def _look_again(self, model: Model) -> Model:
        """Reads the folder of a model that could not be served afresh, in case it was mended, but not all the time."""
        now = time.monotonic()
        if now - model.looked_at < FOLDERS_LOOKED_AT_EVERY_S or model.name not in self._homes:
            return model
        model.looked_at = now
        fresh = await self._on_disk(partial(self._open, model.name, self._homes[model.name]))
        if self._models.get(model.name) is model:
            self._models[model.name] = fresh
        return self._models.get(model.name, fresh)

    async def _find(self, name: str) -> None:
        """Looks where there is a folder of that name now: it may have come, or gone from all repositories but one."""
        found: list[LocalRepository] = []
        for repository in self._repositories:
            try:
                await self._on_disk(partial(repository.open_model, name))
            except NotFound:
                continue
            found.append(repository)
        if found:
            self._homes[name] = found[0] if len(found) == 1 else None
        else:
            self._homes.pop(name, None)

    def _open_some(self, models: Sequence[tuple[str, LocalRepository | None]]) -> list[Model]:
        return [self._open(name, home) for name, home in models]

    def _open(self, name: str, repository: LocalRepository | None, config: str | None = None) -> Model:
        if repository is None:
            reason = Unavailable(f"model '{name}' is in more than one repository")
            return Model(name, time.monotonic(), error=reason)
        try:
            folder = repository.open_model(name)
        except NotFound as error:
            reason = Unavailable(f"model '{name}' can't be served: {error.message}")
            return Model(name, time.monotonic(), error=reason)
        return self._opener.open(folder) if config is None else self._opener.open_with(folder, config)

    def _prepare(self, revision: Revision) -> None:
        looked_at = time.monotonic()
        description, before = revision.description, revision.artifact
        artifact = revision.folder.artifact(revision.key.version, description, self._learned)
        if before is not None and before.digest != artifact.digest and revision.resident():
            raise FailedPrecondition("its files have changed: what is loaded now stays alone until it is replaced")
        known = self._learned.get_signature(artifact.digest, said_under(description))
        revision.artifact, revision.looked_at = artifact, looked_at
        revision.measured = self._learned.get_measured(artifact.digest, measured_conditions(description))
        prepared = measured_conditions(description, prepared=True)
        revision.measured_copy = self._learned.get_measured(artifact.digest, prepared)
        if not description.max_batch_size:
            revision.proof = self._learned.get_proof(artifact.digest, conditions_of(description))
        if before is not None and before.digest != artifact.digest:
            revision.former = revision.measured_on_gpu = None
        if revision.contract is None:
            if revision.former is not None:
                revision.hold_to(revision.former)
            elif known is not None:
                revision.describe(effective_signature(description, known))

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)

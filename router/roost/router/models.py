"""Models and their versions as clients see them, and how both are made from a model's folder."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from roost.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, RoostError, Unavailable
from roost.core.names import DEFAULT_NAMESPACE, VersionKey, version_order
from roost.registry_client.backends import BACKENDS
from roost.registry_client.model_config import (
    ModelDescription,
    parse_config_json,
    served_versions,
    signature_from_config,
)
from roost.registry_client.model_folder import FolderStamp, ModelFolder
from roost.router.revision import Revision
from roost.router.states import Availability, AvailabilityEvent, next_availability
from roost.runtimes.adapters import ADAPTERS, installed_runtimes

log = logging.getLogger(__name__)

UNLOADED = "unloaded"
MAX_WARNINGS = 100_000


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

    def never_loaded(self) -> bool:
        """Whether it waits for its first load call."""
        return self.availability is Availability.UNAVAILABLE and not self.reason


@dataclass(eq=False, slots=True)
class Model:
    """A model whose folder was looked into.

    Attributes:
        name: Its name.
        looked_at: When the folder was read.
        description: Its configuration; None if that could not be read.
        versions: Those that its version policy serves.
        error: Why it has no versions that could be served.
        unserved: Versions that are there, but that the policy does not serve.
        stamp: The state of the folder when it was read.
        overrides: Digest of the files and the configuration that a load call brought; empty if it brought no files.
    """

    name: str
    looked_at: float = 0.0
    description: ModelDescription | None = None
    versions: dict[str, Version] = field(default_factory=dict)
    error: RoostError | None = None
    unserved: frozenset[str] = frozenset()
    stamp: FolderStamp = ()
    overrides: str = ""

    def latest(self) -> Version | None:
        """The highest version that is READY, else the highest of all."""
        if len(self.versions) == 1:  # nearly always, and asked for each request
            return next(iter(self.versions.values()))
        ordered = sorted(self.versions, key=version_order, reverse=True)
        ready = [v for v in ordered if self.versions[v].availability is Availability.READY]
        return self.versions[(ready or ordered)[0]] if ordered else None

    @property
    def was_readable(self) -> bool:
        """Whether what is known of it comes from its folder: it does not where there was no descriptor to look with."""
        return not isinstance(self.error, ResourceExhausted)

    def differs(self, stamp: FolderStamp) -> bool:
        """Whether the folder is not as it was read, or the files of what is loaded are not as they were.

        Files of what is not loaded are looked at before they are loaded, whatever this says. Blocks.
        """
        if stamp != self.stamp:
            return True
        return any(version.revision.instances and files_changed(version.revision) for version in self.versions.values())

    def all_ready(self) -> bool:
        """Whether there are versions, and each of them may be asked for."""
        states = {version.availability for version in self.versions.values()}
        return states == {Availability.READY}


class Opener:
    """Makes models from their folders; its methods block.

    Args:
        explicit: Whether versions wait for a load call.
        least: Gets the names of models that want to be loaded without being asked for.
        code_from: The repositories whose models may be code.
    """

    def __init__(
        self, *, explicit: bool, least: set[str] | None = None, code_from: frozenset[Path] = frozenset()
    ) -> None:
        self._explicit = explicit
        self._least = set() if least is None else least
        self._code_from = code_from
        self._warned: set[tuple[str, str]] = set()

    def open(self, folder: ModelFolder) -> Model:
        """Reads a model's folder; what is wrong with it is the model's ``error``."""
        model = Model(folder.name, time.monotonic())
        try:
            model.stamp = folder.folder_stamp()
            self._fill(model, folder, folder.load_config())
        except RoostError as error:
            model.error = _not_served(folder.name, error)
        return model

    def open_with(self, folder: ModelFolder, config: str) -> Model:
        """The same with a configuration that a load call brought, in JSON.

        Raises:
            InvalidArgument: If the configuration can't be understood or asks for what can't be done.
        """
        model = Model(folder.name, time.monotonic())
        try:
            detected = folder.detect_backend()
        except RoostError as error:
            model.error = _not_served(folder.name, error)
            return model
        try:
            description = parse_config_json(config, folder.name, detected_backend=detected)
            if BACKENDS[description.backend].is_code:
                raise InvalidArgument(f"load calls bring no code, and models of '{description.backend}' are code")
        except InvalidArgument as error:
            reason = f"failed to load '{folder.name}', failed to poll from model repository: {error.message}"
            raise InvalidArgument(reason) from None
        try:
            self._fill(model, folder, description)
        except RoostError as error:
            model.error = _not_served(folder.name, error)
        return model

    def _fill(self, model: Model, folder: ModelFolder, description: ModelDescription) -> None:
        check_backend(description.backend, may_bring_code=folder.path.parent in self._code_from)
        model.description = description
        if description.policy.min_copies and description.ensemble is None:
            self._least.add(folder.name)
        versions = folder.versions_of(description)
        served = served_versions(description, versions)
        model.unserved = frozenset(versions) - frozenset(served)
        if not served:
            foreign = folder.foreign_format()
            model.error = Unavailable(f"model '{folder.name}' has no version to serve{foreign and f': {foreign}'}")
        for version in served:
            model.versions[version] = self._version(folder, description, version)
        self._warn(folder.name, description)

    def _version(self, folder: ModelFolder, description: ModelDescription, version: str) -> Version:
        key = VersionKey(DEFAULT_NAMESPACE, folder.name, version)
        revision = Revision(key, folder, description, may_bring_code=folder.path.parent in self._code_from)
        declared = signature_from_config(description)
        if declared is not None:
            revision.describe(declared)
        return Version(revision, Availability.UNAVAILABLE if self._explicit else Availability.READY)

    def _warn(self, name: str, description: ModelDescription) -> None:
        """Says what of a configuration has no effect, once for each key of a model."""
        for key in description.without_effect:
            if (name, key) not in self._warned and len(self._warned) < MAX_WARNINGS:
                self._warned.add((name, key))
                log.warning("model '%s': '%s' of its configuration has no effect in this server", name, key)


def _not_served(name: str, error: RoostError) -> RoostError:
    kind = ResourceExhausted if isinstance(error, ResourceExhausted) else Unavailable
    return kind(f"model '{name}' can't be served: {error.message}")


@functools.cache
def _is_installed(backend: str) -> bool:
    """Nothing that is installed later is found, since workers would not find it either."""
    return bool(installed_runtimes([backend]))


def check_backend(backend: str, *, may_bring_code: bool, is_installed: Callable[[str], bool] = _is_installed) -> None:
    """Says why models of a backend can't be served, if so.

    Raises:
        FailedPrecondition: If it is not installed, or they are code and that is not allowed.
    """
    if BACKENDS[backend].is_composed:
        return  # the models that they are made of have backends of their own
    if not is_installed(backend):
        extra = ADAPTERS[backend].extra
        raise FailedPrecondition(f"backend '{backend}' is not installed here, it needs pip install 'roost[{extra}]'")
    if BACKENDS[backend].is_code and not may_bring_code:
        raise FailedPrecondition(f"models of backend '{backend}' are code, which is not allowed without --allow-code")


def files_changed(revision: Revision) -> bool:
    """Whether the files are others than those that were looked at last; blocks."""
    if revision.description.ensemble is not None:  # which has none
        return False
    artifact = revision.artifact
    try:
        stamp = revision.folder.stamp(revision.key.version, revision.description)
    except RoostError:
        return artifact is not None
    return artifact is None or stamp != artifact.stamp

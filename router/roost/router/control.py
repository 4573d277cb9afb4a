"""Changes of which models may be asked for: load and unload calls, and what a look at the repositories has found.

What is new is loaded beside what is served and takes its place when that went well; whatever fails leaves things as
they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from weakref import WeakValueDictionary

from roost.core.errors import FailedPrecondition, LoadFailed, PollFailed, RoostError
from roost.core.names import version_order
from roost.registry_client.overrides import Overrides, read_overrides
from roost.router.catalog import Catalog
from roost.router.mesh import Mesh
from roost.router.models import UNLOADED, Model, Version
from roost.router.revision import Revision
from roost.router.states import Availability, AvailabilityEvent
from roost.router.stats import Stats
from roost.router.traffic import Traffic

LOOKS_EVERY_S = 1.0

log = logging.getLogger(__name__)


class Control:
    """See the module.

    Args:
        catalog: The models.
        mesh: Loads them.
        stats: Has their counters.
        traffic: Routes, which steps of ensembles follow.

    Attributes:
        verify: Checks that an ensemble can be served.
    """

    def __init__(self, catalog: Catalog, mesh: Mesh, stats: Stats, traffic: Traffic) -> None:
        self._catalog = catalog
        self._traffic = traffic
        self._mesh = mesh
        self._stats = stats
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # one change of a model at a time
        self.verify: Callable[[Revision], Awaitable[None]] | None = None
        self._along: set[str] = set()  # models that were loaded because they are steps of ensembles

    async def load(self, name: str, parameters: Mapping[str, bool | int | str | bytes]) -> None:
        """Makes a model's versions available, once each of them was loaded; what is served already and unchanged stays.

        With an ensemble, those models of its steps are loaded that are not.

        Args:
            name: The model.
            parameters: ``config`` and ``file:<path>`` take the place of what is on disk until the next load.

        Raises:
            FailedPrecondition: If loading is not explicit, or a version can't be loaded; what was served before stays.
            InvalidArgument: If configuration or files of the parameters are wrong.
            ResourceExhausted: If there is no space for the files.
        """
        self._require_explicit()
        overrides = read_overrides(name, parameters)
        self._along.discard(name)
        await self._load(name, overrides, ())

    async def _load(self, name: str, overrides: Overrides | None, above: tuple[str, ...]) -> None:
        """Loads a model for the ensembles ``above``, each of which is a step of the one before.

        Models of steps are loaded while nothing is locked: two ensembles with the same ones would wait for each other.
        """
        missing = await self._load_unless_steps_are_missing(name, overrides)
        if missing:
            await self._load_steps(missing, (*above, name))
            await self._load_unless_steps_are_missing(name, overrides, again=True)

    async def _load_unless_steps_are_missing(
        self, name: str, overrides: Overrides | None, *, again: bool = False
    ) -> list[str]:
        """Loads a model, or says what has to be loaded before; the second time it is for the load to say what is."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            present = self._catalog.present(name)
            if overrides is None or not overrides.files:
                fresh = await self._catalog.reopen(name, overrides.config if overrides is not None else None)
            else:
                digest = await self._catalog.brought.digest_of(overrides)
                if present is not None and present.overrides == digest and present.all_ready():
                    return []
                fresh = await self._catalog.brought.make(name, overrides, digest)
                if present is not None:  # what is on the disk is still there, but not served
                    known = present.versions.keys() | present.unserved
                    fresh.unserved = frozenset(known - fresh.versions.keys())
            if fresh.error is not None:
                raise PollFailed(f"failed to load '{name}': {fresh.error.message}")
            missing = [] if again else self._missing_steps(fresh)
            if missing:
                self._give_up(fresh, {})
            else:
                await self._replace(present, fresh)
            return missing

    def _missing_steps(self, model: Model) -> list[str]:
        ensemble = model.description.ensemble if model.description is not None else None
        missing: dict[str, None] = {}
        for step in ensemble.steps if ensemble is not None else ():
            name, version = self._traffic.resolve_main(step.model, step.version)
            found = self._catalog.known(name, version)
            if found is None or found.availability is not Availability.READY:
                missing[name] = None
        return list(missing)

    async def _load_steps(self, names: Sequence[str], above: tuple[str, ...]) -> None:
        """Loads models for the last of the ensembles ``above``."""
        for name in names:
            if name in above:
                circle = " -> ".join((*above, name))
                raise LoadFailed(f"load failed for model '{name}': circular dependency between ensembles: {circle}")
        loads = [self._load(name, None, above) for name in names]
        for name, outcome in zip(names, await asyncio.gather(*loads, return_exceptions=True), strict=True):
            if outcome is None:
                self._along.add(name)
            elif isinstance(outcome, RoostError):
                raise LoadFailed(f"load failed for model '{above[-1]}': its step '{name}': {outcome.message}") from None
            else:
                raise outcome

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Takes a model from service; requests that were accepted are answered. Unknown models are fine.

        Args:
            name: The model.
            dependents: Whether the models go with it that were loaded for it alone, as it is an ensemble of them.

        Raises:
            FailedPrecondition: If loading is not explicit.
        """
        self._require_explicit()
        steps = self._catalog.steps_of(name) if dependents else ()
        await self._unload(name)
        of_routes = {route: self._traffic.resolve_main(route, "")[0] for route in self._traffic.routes}
        for step in dict.fromkeys(of_routes.get(step, step) for step in steps):
            names = {step, *(route for route, model in of_routes.items() if model == step)}
            if step in self._along and not self._catalog.ensembles_with(names):
                self._along.discard(step)
                await self.unload(step, dependents=True)

    async def _unload(self, name: str) -> None:
        async with self._locks.setdefault(name, asyncio.Lock()):
            present = self._catalog.present(name)
            if present is None:
                return
            for version in present.versions.values():
                if version.availability is not Availability.UNLOADING and not version.never_loaded():
                    self._take_from_service(version)
            present.overrides = ""
            if not self._catalog.in_repository(name):
                self._forget(name, present)  # a load call had brought it: nothing of it is left

    async def load_at_start(self, names: Sequence[str]) -> None:
        """Loads what the command line names; a model that fails is UNAVAILABLE and does not stop the server."""
        wanted = self._catalog.names() if "*" in names else list(names)
        for name in wanted:
            try:
                await self.load(name, {})
            except RoostError as error:
                log.error("%s", error.message)

    async def refresh(self, name: str) -> None:
        """The model's folder has changed: what changed is loaded beside what is in use, and takes over.

        Raises:
            RoostError: If it can't; what was served before stays.
        """
        async with self._locks.setdefault(name, asyncio.Lock()):
            await self._refresh(name)

    async def renew(self, revision: Revision) -> bool:
        """A watched model's revision can't be loaded: looks, at most once a second, whether it has other files by now.

        Returns:
            Whether another revision has taken its place.
        """
        name = revision.key.name
        async with self._locks.setdefault(name, asyncio.Lock()):
            now = time.monotonic()
            if not revision.retired and now - revision.renewed >= LOOKS_EVERY_S:
                revision.renewed = now
                if await self._catalog.outdated(name):
                    with contextlib.suppress(RoostError):
                        await self._refresh(name)
            return revision.retired

    async def _refresh(self, name: str) -> None:
        present = self._catalog.present(name)
        if present is None:
            return  # nobody has asked for it yet
        fresh = await self._catalog.reopen(name)
        if fresh.error is not None:
            if present.error is not None:
                self._catalog.install(fresh)
            raise fresh.error
        kept = await self._keep_unchanged(present, fresh)
        new = [number for number in fresh.versions if number not in kept and _takes_over(number, present, fresh)]
        with self._making_way(present, kept):
            await self._bring_all([fresh.versions[number].revision for number in new], fresh, kept)
        self._install(fresh)

    async def remove(self, name: str) -> None:
        """The model's folder is gone: the model is not known any more; requests that were accepted are answered."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            present = self._catalog.present(name)
            self._forget(name, present)
            for version in present.versions.values() if present is not None else ():
                self._mesh.retire(version.revision)

    def _forget(self, name: str, present: Model | None) -> None:
        self._catalog.forget(name)
        if present is not None:
            self._stats.forget(name, present.versions)

    async def _replace(self, present: Model | None, fresh: Model) -> None:
        """Loads what is new in ``fresh`` and puts it in the place of ``present``."""
        kept = await self._keep_unchanged(present, fresh)
        try:
            with self._making_way(present, kept):
                for number, version in fresh.versions.items():
                    if number not in kept:
                        await self._load_version(number, version, present)
                    elif version.revision.description.ensemble is not None:
                        await self._verify_again(version.revision)
        except BaseException:
            self._give_up(fresh, kept)
            raise
        self._install(fresh)

    @contextlib.contextmanager
    def _making_way(self, present: Model | None, kept: Mapping[str, Version]) -> Iterator[None]:
        """While it lasts, what is to be replaced may be evicted even if it is pinned: there may be no room for both."""
        served = present.versions if present is not None else {}
        replaced = [version.revision for number, version in served.items() if number not in kept]
        for revision in replaced:
            self._mesh.give_way(revision, yields=True)
        try:
            yield
        finally:
            for revision in replaced:
                self._mesh.give_way(revision, yields=False)

    async def _bring_all(self, revisions: Sequence[Revision], fresh: Model, kept: Mapping[str, Version]) -> None:
        try:
            for revision in revisions:
                await self._bring(revision)
        except BaseException:
            self._give_up(fresh, kept)
            raise

    def _install(self, fresh: Model) -> None:
        present = self._catalog.present(fresh.name)  # a request may have opened the folder of a broken one meanwhile
        for version in fresh.versions.values():
            assert fresh.description is not None
            version.revision.redescribe(fresh.description)  # that of a version that was kept may differ a little
            version.revision.labels.clear()  # they are no part of a version's files
        self._catalog.install(fresh)
        for number, old in (present.versions if present is not None else {}).items():
            if fresh.versions.get(number) is not old:
                if old.revision.sequences is not None:
                    old.revision.sequences.replaced()
                self._mesh.retire(old.revision)

    def _give_up(self, fresh: Model, kept: Mapping[str, Version]) -> None:
        for number in fresh.versions.keys() - kept.keys():
            self._mesh.retire(fresh.versions[number].revision)

    async def _keep_unchanged(self, present: Model | None, fresh: Model) -> dict[str, Version]:
        """Puts the versions into ``fresh`` that are served now and whose files and configuration are the same."""
        kept: dict[str, Version] = {}
        for number, version in (present.versions if present is not None else {}).items():
            new = fresh.versions.get(number)
            if (
                new is not None
                and version.availability is Availability.READY
                and version.revision.folder == new.revision.folder
                and version.revision.description.loads_like(new.revision.description)
                and not await self._catalog.changed(version.revision)
            ):
                kept[number] = version
        fresh.versions.update(kept)
        return kept

    async def _load_version(self, number: str, version: Version, present: Model | None) -> None:
        name = version.revision.key.name
        version.advance(AvailabilityEvent.LOAD)
        shown = present.versions.get(number) if present is not None else None
        try:
            await self._bring(version.revision)
        except RoostError as error:
            reason = version.revision.failure.reason if version.revision.failure is not None else error.message
            version.advance(AvailabilityEvent.FAILED, reason)
            if shown is None or shown.availability is not Availability.READY:
                self._catalog.show_failed(name, number, version)
            raise LoadFailed(
                f"load failed for model '{name}': version {number} is at UNAVAILABLE state: {reason}"
            ) from None
        version.advance(AvailabilityEvent.LOADED)

    async def _bring(self, revision: Revision) -> None:
        """Loads a revision; an ensemble is only looked at, as its models are loaded."""
        if revision.description.ensemble is None:
            await self._mesh.loader.bring(revision)
        elif self.verify is not None:
            await self.verify(revision)

    async def _verify_again(self, revision: Revision) -> None:
        """An ensemble is as it was, but its models may be others by now."""
        try:
            await self._bring(revision)
        except RoostError as error:
            raise LoadFailed(f"load failed for model '{revision.key.name}': {error.message}") from None

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


def _takes_over(number: str, present: Model, fresh: Model) -> bool:
    """Whether a new revision gets requests at once that a loaded one answers now."""
    old = present.versions.get(number)
    if old is not None:
        return old.revision.in_use()
    is_latest = number == max(fresh.versions, key=version_order)
    return is_latest and any(version.revision.in_use() for version in present.versions.values())

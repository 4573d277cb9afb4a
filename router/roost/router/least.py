"""Which models want to be loaded whether or not anybody asks for them (``roost.min_copies``).

Folders are looked into only when a model is asked for, so that a server with very many models starts at once. Those few
that have to be known before are found in the background, by a search for the parameter's name in their configurations;
nothing is kept of the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial

from roost.core.errors import RoostError
from roost.core.tasks import look_every
from roost.registry_client.policy import MIN_COPIES
from roost.registry_client.repository import LocalRepository
from roost.router.catalog import Catalog
from roost.router.revision import Revision
from roost.router.states import Availability

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
MODELS_AT_A_TIME = 64
PAUSE_S = 0.03
"""Between two slices: 20,000 models take ten seconds, and a tenth of one CPU for as long."""


class LeastCopies:
    """See the module. Folders are read on ``disk``."""

    def __init__(self, catalog: Catalog, disk: Executor) -> None:
        self._catalog = catalog
        self._disk = disk

    def revisions(self) -> Iterator[Revision]:
        """Those of them that may be asked for now."""
        names = self._catalog.least
        for name in list(names):
            model = self._catalog.present(name)
            if model is None or model.description is None or not model.description.policy.min_copies:
                if model is not None:
                    names.discard(name)  # another configuration has taken the place of the one that wanted it
                continue
            for version in model.versions.values():
                if version.availability is Availability.READY and not version.revision.retired:
                    yield version.revision

    async def run(self) -> None:
        """Looks at what has come, for ever."""
        failed = partial(log.exception, "looking for models that want to be loaded failed")
        await look_every(LOOK_EVERY_S, self.find, failed, at_once=True)

    async def find(self) -> None:
        """Opens those of the models that came since the last time that may want it."""
        unread = self._catalog.unread
        while unread:
            names, unread[-MODELS_AT_A_TIME:] = unread[-MODELS_AT_A_TIME:], []
            homes = self._catalog.homes()
            places = [(name, home) for name in names if (home := homes.get(name)) is not None]
            search = partial(_mentioning, places)
            for name in await asyncio.get_running_loop().run_in_executor(self._disk, search):
                try:
                    await self._catalog.model(name)
                except RoostError as error:
                    log.debug("model '%s' can't be looked at: %s", name, error.message)
            await asyncio.sleep(PAUSE_S)


def _mentioning(places: Sequence[tuple[str, LocalRepository]]) -> list[str]:
    """The models whose configurations have the parameter's name in them; blocks."""
    return [name for name, home in places if home.folder_of(name).mentions(MIN_COPIES.encode())]

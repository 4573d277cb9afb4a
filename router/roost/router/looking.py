"""Which models are not what they were when they were opened or loaded: looks at the disk, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Sequence
from concurrent.futures import Executor
from enum import Enum
from functools import partial

from roost.core.errors import NotFound, RoostError
from roost.registry_client.repository import LocalRepository
from roost.router.catalog import Catalog
from roost.router.models import Model

log = logging.getLogger(__name__)

MODELS_AT_A_TIME = 256


class Seen(Enum):
    """What a look can say besides what a folder looks like."""

    SAME = 0
    GONE = 1


class Looker:
    """Looks at repositories on a thread, some models at a time, so that others get their turn.

    Args:
        catalog: What is served.
        repositories: Where it comes from.
        disk: Where blocking work is done.
    """

    def __init__(self, catalog: Catalog, repositories: Sequence[LocalRepository], disk: Executor) -> None:
        self._catalog = catalog
        self._repositories = repositories
        self._disk = disk
        self._unreadable: set[LocalRepository] = set()

    async def look(self) -> dict[str, Hashable]:
        """Looks at everything; models that came are known from now on.

        Returns:
            What models look like that are not what they were; ``Seen.GONE`` for those whose folder is gone.
        """
        names: set[str] = set()
        for repository in self._repositories:
            found = await self._scan(repository)
            for name in found:
                self._catalog.appear(name, repository)
            names.update(found)
        known = self._catalog.homes()
        gone = [name for name in known if name not in names]
        opened = [name for name in known if name in names and self._catalog.present(name) is not None]
        return await self.look_at([*gone, *opened])

    async def look_at(self, names: Sequence[str]) -> dict[str, Hashable]:
        """The same for some models alone."""
        differing: dict[str, Hashable] = {}
        homes = self._catalog.homes()
        for start in range(0, len(names), MODELS_AT_A_TIME):
            some = names[start : start + MODELS_AT_A_TIME]
            models = [(name, homes.get(name), self._catalog.present(name)) for name in some]
            loop = asyncio.get_running_loop()
            looks = await loop.run_in_executor(self._disk, partial(map_looks, models))
            differing.update(looks)
        return differing

    async def _scan(self, repository: LocalRepository) -> Sequence[str]:
        """The models of a repository; one that can't be read now is taken to be as it was."""
        try:
            names = await asyncio.get_running_loop().run_in_executor(self._disk, repository.scan)
        except RoostError as error:
            if repository not in self._unreadable:
                self._unreadable.add(repository)
                log.error("%s: its models are served as they were", error.message)
            return [name for name, home in self._catalog.homes().items() if home is repository]
        self._unreadable.discard(repository)
        return names


def map_looks(models: Sequence[tuple[str, LocalRepository | None, Model | None]]) -> dict[str, Hashable]:
    """Looks at models, each with its repository and as it is served; blocks."""
    looks = {name: _look(name, home, model) for name, home, model in models if home is not None}
    return {name: look for name, look in looks.items() if look is not Seen.SAME}


def _look(name: str, home: LocalRepository, model: Model | None) -> Hashable:
    try:
        folder = home.folder_of(name)
        stamp = folder.folder_stamp(model.stamp if model is not None else ())
        if model is None or not model.differs(stamp):
            return Seen.SAME
        return folder.whole_stamp()
    except NotFound:
        # Where a whole repository has gone, it will be back: a mount that failed is no order to serve nothing.
        return Seen.GONE if home.path.is_dir() else Seen.SAME
    except RoostError as error:
        return error.message

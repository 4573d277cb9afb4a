"""Models whose files a load call brought: written to disk first, removed when nobody needs them any more."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial

from roost.core.errors import FailedPrecondition
from roost.registry_client.model_folder import ModelFolder
from roost.registry_client.overrides import OverrideFolders, Overrides
from roost.router.models import Model, Opener
from roost.router.revision import Revision


class Brought:
    """See the module.

    Args:
        folders: Where the files go; None if load calls can't bring any.
        opener: Makes models of folders.
        disk: Where blocking work is done.
    """

    def __init__(self, folders: OverrideFolders | None, opener: Opener, disk: Executor) -> None:
        self._folders = folders
        self._opener = opener
        self._disk = disk
        self._users: dict[ModelFolder, set[Revision]] = {}

    def names(self) -> set[str]:
        """The models that there are files of."""
        return {folder.name for folder in self._users}

    async def digest_of(self, overrides: Overrides) -> str:
        """Tells what load calls bring from one another."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, overrides.digest)

    async def make(self, name: str, overrides: Overrides, digest: str) -> Model:
        """Writes the files and makes a model of them; they are there until all its revisions are ``released``.

        Raises:
            FailedPrecondition: If load calls can't bring files here, or they can't be written.
            InvalidArgument: If the configuration is wrong.
            ResourceExhausted: If there is no space for them.
        """
        if self._folders is None:
            raise FailedPrecondition("load calls can't bring files to this server")
        write = partial(self._write, self._folders, name, overrides)
        writing = asyncio.get_running_loop().run_in_executor(self._disk, write)
        try:
            model = await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(self._remove_unused)  # nobody knows of the folder
            raise
        model.overrides = digest
        revisions = {version.revision for version in model.versions.values()}
        for revision in revisions:
            self._users[revision.folder] = revisions
        return model

    def released(self, revision: Revision) -> None:
        """A retired revision has no instance any more and will not get one."""
        users = self._users.get(revision.folder)
        if users is None:
            return
        users.discard(revision)
        if not users:
            del self._users[revision.folder]
            self._remove(revision.folder)

    def _write(self, folders: OverrideFolders, name: str, overrides: Overrides) -> Model:
        folder = folders.write(name, overrides.files)
        try:
            model = self._opener.open_with(folder, overrides.config)
        except BaseException:
            folders.remove(folder)
            raise
        if not model.versions:
            folders.remove(folder)
        return model

    def _remove_unused(self, writing: asyncio.Future[Model]) -> None:
        if not writing.cancelled() and writing.exception() is None:
            for folder in {version.revision.folder for version in writing.result().versions.values()}:
                self._remove(folder)

    def _remove(self, folder: ModelFolder) -> None:
        if self._folders is not None:
            self._disk.submit(self._folders.remove, folder)

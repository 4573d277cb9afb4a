"""Step 5 of the data path: what loads know of prepared copies, and what their maker is told of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from roost.registry_client.digest import Artifact
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.model_folder import ModelFolder
from roost.registry_client.warmup import warmup_samples
from roost.router.revision import Revision
from roost.runtimes.prepared.cache import Copy
from roost.runtimes.prepared.making import CopyOrder


class CopySource(Protocol):
    """Knows prepared copies; see ``roost.router.prepared_copies``."""

    async def find(self, revision: Revision) -> Copy | None:
        """The copy to load a revision from, whose files were looked at."""

    def failed(self, revision: Revision, copy: Copy, *, lost: bool) -> None:
        """A load of a revision from its copy failed, perhaps since the worker was lost."""

    def loaded(self, revision: Revision, load_s: float, copy: Copy | None) -> None:
        """A revision was loaded."""


class NoCopies:
    """There are none."""

    async def find(self, revision: Revision) -> Copy | None:
        """None."""
        return None

    def failed(self, revision: Revision, copy: Copy, *, lost: bool) -> None:
        """There was none to fail."""

    def loaded(self, revision: Revision, load_s: float, copy: Copy | None) -> None:
        """Nothing is made."""


def order_of(
    folder: ModelFolder,
    description: ModelDescription,
    artifact: Artifact,
    *,
    threads: int,
    memory_bytes: int,
    options: Mapping[str, str] | None = None,
) -> CopyOrder:
    """The order for a copy of one version.

    Args:
        folder: The model's folder.
        description: Its configuration.
        artifact: The version's files.
        threads: Threads that a run may use.
        memory_bytes: What trying it may take.
        options: What its runtime is told; by default only what the configuration asks for.
    """
    return CopyOrder(
        path=artifact.path,
        root=artifact.root,
        digest=artifact.digest,
        files=[list(stamp) for stamp in artifact.stamp],
        backend=description.backend,
        memory_bytes=memory_bytes,
        options=dict(description.options if options is None else options),
        threads=threads,
        samples=warmup_samples(description.config),
        samples_root=str(folder.path),
    )

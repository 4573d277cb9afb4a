"""How many models fit: what each is accounted with, and what a budget holds of them. See ``docs/sizing.md``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from roost.core.errors import NotFound, RoostError
from roost.registry_client.model_config import served_versions
from roost.registry_client.repository import LocalRepository
from roost.router.plans import Limits
from roost.server.known_sizes import KnownSizes

SERVER_IDLE_BYTES = 78 << 20
"""With the process that workers are forked from."""
WORKER_IDLE_BYTES = 5 << 20
"""Besides what it shares with that one."""
OTHER_KINDS_BYTES: Mapping[str, int] = {
    "torch": 232 << 20,
    "tensorflow": 50 << 20,
    "sklearn": 104 << 20,
    "python": 23 << 20,
}
"""What the processes of another kind take before a model is loaded: the first worker and what it is forked from; more
workers take little besides."""
USED_VERSION_BYTES = 12 << 10
"""What the server keeps of each version that was used since the start, loaded or not; measured with ``simple``."""
MEMORY_SHARE = 0.7
MAPPED_SHARE = 0.9
"""Of the memory, for models and the files that they map; what is left is for requests, answers and the system."""
MAPPINGS_SHARE = 0.8
"""Of the mappings that a process may have, for models: the others are the process's own, and those of runs."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What one version takes.

    Attributes:
        name: The model.
        version: The version.
        file_bytes: Of its files.
        bytes: Private memory that it is accounted with once it is loaded.
        mapped_bytes: Of the prepared copy that it maps.
        mappings: In its worker's process.
        copy: Names that copy; versions with the same one share it.
        run_bytes: What its largest batch takes while it runs, beside all that; 0 if that is not known.
    """

    name: str
    version: str
    file_bytes: int
    bytes: int
    mapped_bytes: int = 0
    mappings: int = 0
    copy: str = ""
    run_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Repositories:
    """What there is in the repositories.

    Attributes:
        models: How many models there are.
        sizes: Every version that is served.
        broken: Names of models that can't be served, and why.
    """

    models: int
    sizes: tuple[ModelSize, ...]
    broken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Fit:
    """What the limits hold.

    Attributes:
        total_bytes: Private memory of all versions together.
        all_at_once: Whether all of them fit.
        largest_first: How many of them fit if the largest come first: as many always do.
        on_average: How many fit of average size.
        smallest_first: How many fit if the smallest come first: more never do.
        too_large: Those that do not fit alone; requests to them are refused.
    """

    total_bytes: int
    all_at_once: bool
    largest_first: int
    on_average: int
    smallest_first: int
    too_large: tuple[ModelSize, ...]


def limits_of(budget_bytes: int | None, memory_bytes: int, idle_bytes: int, max_mappings: int | None) -> Limits:
    """What models may take.

    Args:
        budget_bytes: ``--memory-budget``, if it is given: it holds even if there is less memory than that.
        memory_bytes: The memory that there is for the server.
        idle_bytes: What its processes take before a model is loaded.
        max_mappings: How many a process may have, if that is known.
    """
    private_bytes = budget_bytes
    if private_bytes is None:
        private_bytes = max(0, int(MEMORY_SHARE * memory_bytes) - idle_bytes)
    memory = max(private_bytes, int(MAPPED_SHARE * memory_bytes) - idle_bytes, 1)
    return Limits(private_bytes, memory, math.inf if max_mappings is None else int(MAPPINGS_SHARE * max_mappings))


def default_budget_bytes(memory_bytes: int, workers: int) -> int:
    """What ``--memory-budget`` will be about if it is not given; the server measures its idle use when it starts."""
    return limits_of(None, memory_bytes, idle_bytes(workers), None).private_bytes


def idle_bytes(workers: int) -> int:
    """What the processes take about before a model is loaded."""
    return SERVER_IDLE_BYTES + workers * WORKER_IDLE_BYTES


def fit(sizes: Sequence[ModelSize], limits: Limits, workers: int) -> Fit:
    """Says how many of these fit on a device."""
    loadable = sorted((size for size in sizes if _fits_alone(size, limits)), key=lambda size: _share(size, limits))
    largest_first = _how_many(reversed(loadable), limits, workers)
    smallest_first = _how_many(loadable, limits, workers)
    return Fit(
        sum(size.bytes for size in sizes),
        smallest_first == len(sizes),
        largest_first,
        max(largest_first, min(smallest_first, _on_average(loadable, limits, workers))),
        smallest_first,
        tuple(size for size in sizes if not _fits_alone(size, limits)),
    )


def _fits_alone(size: ModelSize, limits: Limits) -> bool:
    return _how_many([size], limits, 1) == 1


def _share(size: ModelSize, limits: Limits) -> float:
    """The largest share of a limit that it takes."""
    memory_bytes = size.bytes + size.mapped_bytes
    return max(
        size.bytes / max(1, limits.private_bytes), memory_bytes / limits.memory_bytes, size.mappings / limits.mappings
    )


def _how_many(sizes: Iterable[ModelSize], limits: Limits, workers: int) -> int:
    """How many fit in this order until one does not."""
    private_bytes = mapped_bytes = mappings = count = 0
    copies: set[str] = set()
    for size in sizes:
        private_bytes += size.bytes
        mapped_bytes += 0 if size.copy in copies else size.mapped_bytes
        mappings += size.mappings
        if size.copy:
            copies.add(size.copy)
        if (
            private_bytes > limits.private_bytes
            or private_bytes + mapped_bytes > limits.memory_bytes
            or mappings > workers * limits.mappings
        ):
            break
        count += 1
    return count


def _on_average(sizes: Sequence[ModelSize], limits: Limits, workers: int) -> int:
    """How many fit if each takes what they take on average."""
    private_bytes = sum(size.bytes for size in sizes)
    copies = {size.copy or index: size.mapped_bytes for index, size in enumerate(sizes)}
    mappings = sum(size.mappings for size in sizes)
    shares = (
        private_bytes / max(1, limits.private_bytes),
        (private_bytes + sum(copies.values())) / limits.memory_bytes,
        mappings / (workers * limits.mappings),
    )
    return min(len(sizes), int(len(sizes) / max(shares))) if max(shares) else len(sizes)


def read_repositories(repositories: Iterable[LocalRepository], known: KnownSizes) -> Repositories:
    """Looks at the folders of all models, and at the sizes of their files; no file but configurations is read.

    Args:
        repositories: Where models are.
        known: What a server has found out about them.

    Raises:
        FailedPrecondition: If a repository can't be read.
    """
    names: dict[str, int] = {}
    sizes: list[ModelSize] = []
    broken: list[tuple[str, str]] = []
    for repository in repositories:
        for name in repository.scan():
            names[name] = names.get(name, 0) + 1
            try:
                sizes += _sizes_of(repository, name, known)
            except RoostError as error:
                broken.append((name, error.message))
    twice = {name for name, count in names.items() if count > 1}
    broken += [(name, "it is in more than one repository") for name in sorted(twice)]
    return Repositories(len(names), tuple(size for size in sizes if size.name not in twice), tuple(broken))


def _sizes_of(repository: LocalRepository, name: str, known: KnownSizes) -> Iterator[ModelSize]:
    folder = repository.open_model(name)
    description = folder.load_config()
    served = served_versions(description, folder.versions_of(description))
    if not served:
        raise NotFound(folder.foreign_format() or "it has no version to serve")
    if description.ensemble is not None:  # its steps are models of their own
        return
    for version in served:
        file_bytes = sum(file.size for file in folder.stamp(version, description))
        found = known.look_up(folder, description, version, file_bytes)
        figures = found.figures
        yield ModelSize(
            name,
            version,
            file_bytes,
            figures.private_bytes,
            figures.mapped_bytes,
            figures.mappings,
            found.copy,
            found.run_bytes,
        )

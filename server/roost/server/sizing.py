"""How many models fit: what each is accounted with, and what a budget holds of them. See ``docs/sizing.md``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from roost.core.errors import NotFound, RoostError
from roost.registry_client.model_config import served_versions
from roost.registry_client.repository import LocalRepository
from roost.router.revision import BASE_BYTES, BYTES_PER_ARTIFACT_BYTE

SERVER_IDLE_BYTES = 45 << 20
WORKER_IDLE_BYTES = 25 << 20
MEMORY_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What one version takes: ``file_bytes`` on the disk, ``bytes`` as it is accounted once it is loaded."""

    name: str
    version: str
    file_bytes: int
    bytes: int
    declared: bool = False


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
    """What a budget holds.

    Attributes:
        budget_bytes: The budget.
        total_bytes: All versions together.
        largest_first: How many of them fit if the largest come first: as many always do.
        on_average: How many fit of average size.
        smallest_first: How many fit if the smallest come first: more never do.
        too_large: Those that do not fit alone; requests to them are refused.
    """

    budget_bytes: int
    total_bytes: int
    largest_first: int
    on_average: int
    smallest_first: int
    too_large: tuple[ModelSize, ...]


def accounted_bytes(declared_bytes: int | None, file_bytes: int) -> int:
    """What an instance is accounted with before anything else is known of it."""
    return BASE_BYTES + BYTES_PER_ARTIFACT_BYTE * file_bytes if declared_bytes is None else declared_bytes


def default_budget_bytes(memory_bytes: int, workers: int) -> int:
    """What ``--memory-budget`` will be about if it is not given; the server measures its idle use when it starts."""
    return max(0, int(MEMORY_SHARE * memory_bytes) - idle_bytes(workers))


def idle_bytes(workers: int) -> int:
    """What the processes take about before a model is loaded."""
    return SERVER_IDLE_BYTES + workers * WORKER_IDLE_BYTES


def fit(sizes: Sequence[ModelSize], budget_bytes: int) -> Fit:
    """Says how many of these fit into a budget."""
    loadable = sorted(size.bytes for size in sizes if size.bytes <= budget_bytes)
    average_bytes = sum(loadable) / len(loadable) if loadable else 0.0
    on_average = min(len(loadable), int(budget_bytes / average_bytes)) if average_bytes else len(loadable)
    return Fit(
        budget_bytes,
        sum(size.bytes for size in sizes),
        _how_many(reversed(loadable), budget_bytes),
        on_average,
        _how_many(loadable, budget_bytes),
        tuple(size for size in sizes if size.bytes > budget_bytes),
    )


def _how_many(sizes: Iterable[int], budget_bytes: int) -> int:
    """How many fit in this order until one does not."""
    return sum(1 for _ in itertools.takewhile(lambda total: total <= budget_bytes, itertools.accumulate(sizes)))


def read_repositories(repositories: Iterable[LocalRepository]) -> Repositories:
    """Looks at the folders of all models, and at the sizes of their files; no file but configurations is read.

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
                sizes += _sizes_of(repository, name)
            except RoostError as error:
                broken.append((name, error.message))
    twice = {name for name, count in names.items() if count > 1}
    broken += [(name, "it is in more than one repository") for name in sorted(twice)]
    return Repositories(len(names), tuple(size for size in sizes if size.name not in twice), tuple(broken))


def _sizes_of(repository: LocalRepository, name: str) -> Iterator[ModelSize]:
    folder = repository.open_model(name)
    description = folder.load_config()
    declared = description.policy.memory_bytes
    served = served_versions(description, folder.versions_of(description))
    if not served:
        raise NotFound("it has no version to serve")
    for version in served:
        file_bytes = sum(file.size for file in folder.stamp(version, description))
        yield ModelSize(name, version, file_bytes, accounted_bytes(declared, file_bytes), declared is not None)

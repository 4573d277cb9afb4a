"""What a configuration says of instances: where they are, and what each of their runs needs beside a place."""

from __future__ import annotations

from dataclasses import dataclass

from roost.core.errors import InvalidArgument
from roost.core.names import shorten
from roost.proto import model_config_pb2 as mc

_Group = mc.ModelInstanceGroup
_WITHOUT_GPUS = {_Group.KIND_CPU: "KIND_CPU", _Group.KIND_MODEL: "KIND_MODEL"}


@dataclass(frozen=True, slots=True)
class Resource:
    """So many units of something that runs share.

    Attributes:
        name: What it is called.
        count: How many units a run needs.
        is_global: Whether all devices together have some; else each device has some of its own.
    """

    name: str
    count: int
    is_global: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What each run of a model needs of what runs share, as Triton's ``rate_limiter`` has it.

    Attributes:
        resources: What it holds as long as it goes on, by name.
        priority: A model with 2 gets half the turns of one with 1.
    """

    resources: tuple[Resource, ...]
    priority: int = 1


def check_instance_groups(config: mc.ModelConfig) -> None:
    """Checks the groups of a configuration; some words are Triton's.

    Raises:
        InvalidArgument: Naming what is wrong.
    """
    for position, group in enumerate(config.instance_group):
        name = group.name or f"{config.name}_{position}"
        what = f"instance group {shorten(name)} of model {config.name}"
        if group.count < 0:
            raise InvalidArgument(f"{what}: count is {group.count}; it must not be negative")
        if group.gpus and group.kind in _WITHOUT_GPUS:
            raise InvalidArgument(f"{what} has kind {_WITHOUT_GPUS[group.kind]} but specifies one or more GPUs")
        wrong = [gpu for gpu in group.gpus if gpu < 0 or list(group.gpus).count(gpu) > 1]
        if wrong:
            raise InvalidArgument(f"{what} specifies invalid or repeated gpu id {wrong[0]}")
        _check_resources(what, group.rate_limiter)


def demand_of(config: mc.ModelConfig) -> Demand | None:
    """What each run needs, by a configuration that was checked; None for nothing.

    All groups are runs of the same copies here, so of groups that differ it is the most that any of them needs.
    """
    counts: dict[tuple[str, bool], int] = {}
    for group in config.instance_group:
        for item in group.rate_limiter.resources:
            key = item.name, bool(getattr(item, "global"))  # a word of Python
            counts[key] = max(counts.get(key, 0), item.count)
    resources = tuple(Resource(name, count, is_global) for (name, is_global), count in sorted(counts.items()) if count)
    if not resources:
        return None
    return Demand(resources, min(max(1, group.rate_limiter.priority) for group in config.instance_group))


def asks_for_gpu(config: mc.ModelConfig) -> bool:
    """Whether a group is to be on a GPU."""
    return any(group.kind == _Group.KIND_GPU for group in config.instance_group)


def _check_resources(what: str, limiter: mc.ModelRateLimiter) -> None:
    names = [resource.name for resource in limiter.resources]
    for resource in limiter.resources:
        if not resource.name:
            raise InvalidArgument(f"{what}: a resource of rate_limiter has no name")
        if names.count(resource.name) > 1:
            raise InvalidArgument(f"{what}: resource '{shorten(resource.name)}' of rate_limiter is listed twice")

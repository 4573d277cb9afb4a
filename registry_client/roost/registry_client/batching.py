"""What a configuration says of batches: ``dynamic_batching`` and ``instance_group`` as a batcher needs them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from roost.core.errors import InvalidArgument
from roost.proto import model_config_pb2 as mc


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What Triton calls a ``ModelQueuePolicy``: how long requests of one priority level wait, and how many.

    Attributes:
        timeout_s: How long a request may wait; infinity for as long as its deadline lets it.
        delays: Whether one that has waited so long goes behind the others instead of being refused.
        may_override: Whether a request may ask for a shorter wait by its own ``timeout``.
        max_requests: How many may wait; 0 for no limit but the server's.
    """

    timeout_s: float = math.inf
    delays: bool = False
    may_override: bool = False
    max_requests: int = 0


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How requests to a model become batches. The defaults are those of a model without ``dynamic_batching``.

    Attributes:
        preferred_rows: Sizes that are better than others, ascending.
        max_delay_s: How long the oldest request may wait for others to fill a batch, though an instance is free.
        preserve_ordering: Whether answers go out in the order of the requests.
        levels: How many priority levels there are; 0 for one without a number. Level 1 goes first.
        default_level: The level of a request that names none, or one that there is not.
        policies: What is said of single levels.
        default_policy: What holds for the others; None if nothing is said, so that deadlines alone count.
        instances: Batches of one loaded copy that may run at once.
        is_plain: Whether requests differ by their deadlines alone.
    """

    preferred_rows: tuple[int, ...] = ()
    max_delay_s: float = 0.0
    preserve_ordering: bool = False
    levels: int = 0
    default_level: int = 0
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict, hash=False)
    default_policy: QueuePolicy | None = None
    instances: int = 1

    is_plain: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        is_plain = not (self.levels or self.policies or self.default_policy or self.preserve_ordering)
        object.__setattr__(self, "is_plain", is_plain)

    def level_of(self, priority: int) -> int:
        """The level of a request that asks for a priority."""
        return priority if 1 <= priority <= self.levels else self.default_level

    def policy_of(self, level: int) -> QueuePolicy | None:
        """What is said of a level; None if nothing is."""
        return self.policies.get(level, self.default_policy)


_PLAIN = BatchPolicy()  # one object for all of the many models that say nothing


def batch_policy(config: mc.ModelConfig) -> BatchPolicy:
    """Reads a configuration that was checked."""
    instances = sum(group.count or 1 for group in config.instance_group) or 1
    if config.HasField("sequence_batching"):
        return _sequence_batch_policy(config, instances)
    if not config.HasField("dynamic_batching"):
        return _PLAIN if instances == 1 else BatchPolicy(instances=instances)
    batching = config.dynamic_batching
    default = queue_policy(batching.default_queue_policy) if batching.HasField("default_queue_policy") else None
    return BatchPolicy(
        _preferred_rows(batching.preferred_batch_size, config.max_batch_size),
        batching.max_queue_delay_microseconds / 1e6,
        batching.preserve_ordering,
        batching.priority_levels,
        batching.default_priority_level,
        {level: queue_policy(policy) for level, policy in batching.priority_queue_policy.items()},
        default,
        instances,
    )


def _sequence_batch_policy(config: mc.ModelConfig, instances: int) -> BatchPolicy:
    """How requests of different sequences share batches."""
    batching = config.sequence_batching
    if not batching.HasField("oldest"):
        return BatchPolicy(max_delay_s=batching.direct.max_queue_delay_microseconds / 1e6, instances=instances)
    oldest = batching.oldest
    return BatchPolicy(
        _preferred_rows(oldest.preferred_batch_size, config.max_batch_size),
        oldest.max_queue_delay_microseconds / 1e6,
        oldest.preserve_ordering,
        instances=instances,
    )


def _preferred_rows(sizes: Iterable[int], max_batch_size: int) -> tuple[int, ...]:
    preferred = tuple(sorted(set(sizes)))
    return () if preferred == (max_batch_size,) else preferred  # which is what is preferred anyhow


def queue_policy(policy: mc.ModelQueuePolicy) -> QueuePolicy:
    """Reads one queue policy."""
    timeout_us = policy.default_timeout_microseconds
    return QueuePolicy(
        timeout_us / 1e6 if timeout_us else math.inf,
        policy.timeout_action == mc.ModelQueuePolicy.DELAY,
        policy.allow_timeout_override,
        policy.max_queue_size,
    )


def check_preferred_sizes(sizes: Iterable[int], max_batch_size: int, block: str) -> None:
    """Checks ``preferred_batch_size``, in the words of Triton but for the block in front.

    Raises:
        InvalidArgument: If a batch can't have one of the sizes.
    """
    for size in sizes:
        if size < 1:
            raise InvalidArgument(f"{block}: preferred size must be positive, not {size}")
        if size > max_batch_size:
            raise InvalidArgument(f"{block}: preferred size must be <= max batch size {max_batch_size}, not {size}")

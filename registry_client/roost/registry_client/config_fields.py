"""What becomes of each field of a model configuration: one table.

A field that is not in the table has its parts in it; a test asserts that every field is decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Any

from google.protobuf.message import Message
from roost.proto import model_config_pb2 as mc


class Effect(Enum):
    """What a server does with a field."""

    HONOURED = auto()
    """It acts on it."""
    SHOWN = auto()
    """Nothing depends on it; it is kept for those who ask for the configuration."""
    NONE = auto()
    """It can't act on it and says so in the log; it is kept like the others."""
    REFUSED = auto()
    """A model that needs it can't be served right without it."""


FIELDS: Mapping[str, Effect] = {
    "name": Effect.HONOURED,
    "platform": Effect.HONOURED,
    "backend": Effect.HONOURED,
    "runtime": Effect.NONE,
    "version_policy": Effect.HONOURED,
    "max_batch_size": Effect.HONOURED,
    "input.name": Effect.HONOURED,
    "input.data_type": Effect.HONOURED,
    "input.format": Effect.SHOWN,
    "input.dims": Effect.HONOURED,
    "input.reshape": Effect.HONOURED,
    "input.is_shape_tensor": Effect.NONE,
    "input.allow_ragged_batch": Effect.NONE,
    "input.optional": Effect.HONOURED,
    "input.is_non_linear_format_io": Effect.NONE,
    "output.name": Effect.HONOURED,
    "output.data_type": Effect.HONOURED,
    "output.dims": Effect.HONOURED,
    "output.reshape": Effect.HONOURED,
    "output.label_filename": Effect.HONOURED,
    "output.is_shape_tensor": Effect.NONE,
    "output.is_non_linear_format_io": Effect.NONE,
    "batch_input": Effect.REFUSED,
    "batch_output": Effect.REFUSED,
    "optimization.graph": Effect.HONOURED,
    "optimization.priority": Effect.NONE,
    "optimization.cuda": Effect.NONE,
    "optimization.execution_accelerators": Effect.NONE,
    # Pinned memory speeds up copies to GPUs; where there is none, no copy is slower without it.
    "optimization.input_pinned_memory": Effect.SHOWN,
    "optimization.output_pinned_memory": Effect.SHOWN,
    "optimization.gather_kernel_buffer_threshold": Effect.NONE,
    "optimization.eager_batching": Effect.NONE,
    "instance_group.name": Effect.SHOWN,
    "instance_group.kind": Effect.HONOURED,
    "instance_group.count": Effect.HONOURED,
    "instance_group.rate_limiter": Effect.HONOURED,
    "instance_group.gpus": Effect.HONOURED,
    "instance_group.secondary_devices": Effect.NONE,
    "instance_group.profile": Effect.NONE,
    "instance_group.passive": Effect.NONE,
    "instance_group.host_policy": Effect.NONE,
    "default_model_filename": Effect.HONOURED,
    "cc_model_filenames": Effect.NONE,
    "metric_tags": Effect.NONE,
    "parameters": Effect.HONOURED,  # each for itself, see ``description``
    "model_warmup": Effect.HONOURED,
    "model_operations": Effect.NONE,
    "model_transaction_policy": Effect.HONOURED,
    "model_repository_agents": Effect.NONE,
    "response_cache": Effect.HONOURED,
    "model_metrics": Effect.NONE,
    "dynamic_batching": Effect.HONOURED,
    "sequence_batching.max_sequence_idle_microseconds": Effect.HONOURED,
    "sequence_batching.control_input": Effect.HONOURED,
    "sequence_batching.state.input_name": Effect.HONOURED,
    "sequence_batching.state.output_name": Effect.HONOURED,
    "sequence_batching.state.data_type": Effect.HONOURED,
    "sequence_batching.state.dims": Effect.HONOURED,
    "sequence_batching.state.initial_state": Effect.HONOURED,
    # Buffers on a GPU, of which there are none here.
    "sequence_batching.state.use_same_buffer_for_input_output": Effect.NONE,
    "sequence_batching.state.use_growable_memory": Effect.NONE,
    "sequence_batching.iterative_sequence": Effect.REFUSED,
    "sequence_batching.direct": Effect.HONOURED,
    "sequence_batching.oldest": Effect.HONOURED,
    "ensemble_scheduling.step.model_name": Effect.HONOURED,
    "ensemble_scheduling.step.model_version": Effect.HONOURED,
    "ensemble_scheduling.step.input_map": Effect.HONOURED,
    "ensemble_scheduling.step.output_map": Effect.HONOURED,
    "ensemble_scheduling.step.model_namespace": Effect.REFUSED,
    # Queues of the steps' models have limits of their own.
    "ensemble_scheduling.max_inflight_requests": Effect.NONE,
}
"""What becomes of each field, by its path."""

WITHOUT_RELOAD = ("version_policy", "instance_group")
"""Fields that a loaded instance does not depend on: a change of these alone loads nothing anew.

But it does depend on where its groups are.
"""


def fields_without_effect(config: mc.ModelConfig) -> tuple[str, ...]:
    """The paths of the fields that are set, but that the server can't act on; sorted."""
    return tuple(sorted(set(_without_effect(config, ""))))


def _without_effect(message: Message, prefix: str) -> Iterator[str]:
    fields: list[tuple[Any, Any]] = list(message.ListFields())
    for field, value in fields:
        path = prefix + field.name
        effect = FIELDS.get(path)
        if effect is Effect.NONE:
            yield path
        elif effect is None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _without_effect(part, path + ".")


def loaded_part(config: mc.ModelConfig) -> mc.ModelConfig:
    """A copy of what a loaded instance depends on."""
    copy = mc.ModelConfig()
    copy.CopyFrom(config)
    for name in WITHOUT_RELOAD:
        copy.ClearField(name)
    anywhere = (mc.ModelInstanceGroup.KIND_AUTO, ())
    for kind, gpus in sorted({(group.kind, tuple(group.gpus)) for group in config.instance_group} - {anywhere}):
        copy.instance_group.add(kind=kind, gpus=gpus)
    return copy

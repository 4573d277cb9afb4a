"""Checks of a model configuration that need nothing but the configuration.

The rules are those of Triton's model configuration; what Roost can't do is refused here, so that a model
never serves with a part of its configuration ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import Message
from roost.core.errors import InvalidArgument
from roost.core.tensors import MAX_RANK
from roost.proto import model_config_pb2 as mc
from roost.registry_client.batching import check_preferred_sizes
from roost.registry_client.ensemble import PLATFORM, check_ensemble
from roost.registry_client.files import is_plain_file_name
from roost.registry_client.instance_groups import check_instance_groups
from roost.registry_client.reshape import check_reshape
from roost.registry_client.response_cache import check_response_cache
from roost.registry_client.sequence_checks import check_sequences
from roost.registry_client.warmup import check_warmup


def check_config(config: mc.ModelConfig) -> None:
    """Checks a configuration as written, before anything is completed.

    Raises:
        InvalidArgument: If it contradicts itself or asks for what can't be done.
    """
    _check_supported(config)
    _check_enums(config)
    if config.max_batch_size < 0:
        raise InvalidArgument(f"max_batch_size is {config.max_batch_size}; it must not be negative")
    _check_tensors("input", config.input)
    _check_tensors("output", config.output)
    _check_version_policy(config.version_policy)
    if config.HasField("ensemble_scheduling") or config.platform == PLATFORM:
        check_ensemble(config)
    if config.HasField("sequence_batching"):
        check_sequences(config)
    if config.HasField("dynamic_batching"):
        _check_dynamic_batching(config.dynamic_batching, config.max_batch_size)
    check_instance_groups(config)
    check_response_cache(config)
    check_warmup(config)
    _check_file_name("default_model_filename", config.default_model_filename, "the version's folder")
    for output in config.output:
        _check_file_name(f"label_filename of output '{output.name}'", output.label_filename, "the model's folder")


def _check_supported(config: mc.ModelConfig) -> None:
    if config.batch_input:
        raise InvalidArgument("batch_input is not supported yet")
    if config.batch_output:
        raise InvalidArgument("batch_output is not supported yet")


def _check_enums(message: Message) -> None:
    """Refuses numbers that no enumeration has a name for; JSON and protobuf let them through."""
    fields: list[tuple[Any, Any]] = list(message.ListFields())
    for field, value in fields:
        if field.enum_type is not None:
            if value not in field.enum_type.values_by_number:
                raise InvalidArgument(f"{field.name} has no value {value}")
        elif field.message_type is not None:
            for part in _messages(value):
                _check_enums(part)


def _messages(value: Any) -> Iterable[Message]:
    if isinstance(value, Message):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value
    return [part for part in parts if isinstance(part, Message)]


def _check_tensors(kind: str, tensors: Iterable[mc.ModelInput] | Iterable[mc.ModelOutput]) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if not tensor.name:
            raise InvalidArgument(f"an {kind} has no name")
        if tensor.name in names:
            raise InvalidArgument(f"{kind} '{tensor.name}' is listed twice")
        names.add(tensor.name)
        if len(tensor.dims) >= MAX_RANK:
            raise InvalidArgument(f"{kind} '{tensor.name}': {len(tensor.dims)} dims are over the limit of {MAX_RANK}")
        wrong = [dim for dim in tensor.dims if dim < -1 or dim == 0]
        if wrong:
            raise InvalidArgument(f"{kind} '{tensor.name}': dims must be positive or -1, not {wrong[0]}")
        if tensor.HasField("reshape"):
            check_reshape(f"{kind} '{tensor.name}'", tensor.dims, tensor.reshape.shape)


def _check_version_policy(policy: mc.ModelVersionPolicy) -> None:
    if not policy.HasField("specific"):
        return
    if not policy.specific.versions:
        raise InvalidArgument("version_policy: specific lists no versions")
    wrong = [version for version in policy.specific.versions if version < 1]
    if wrong:
        raise InvalidArgument(f"version_policy: versions must be positive, not {wrong[0]}")


def _check_dynamic_batching(batching: mc.ModelDynamicBatching, max_batch_size: int) -> None:
    """The rules of Triton, in its words but for the field in front."""
    check_preferred_sizes(batching.preferred_batch_size, max_batch_size, "dynamic_batching")
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= default <= levels:
        raise InvalidArgument(f"dynamic_batching: default priority level must be in range [1, {levels}], not {default}")
    wrong = [level for level in batching.priority_queue_policy if not 1 <= level <= levels]
    if wrong:
        raise InvalidArgument(
            f"dynamic_batching: priority queue policy must have priority level in range [1, {levels}], not {min(wrong)}"
        )
    if not batching.preserve_ordering:
        return
    if levels > 1:
        raise InvalidArgument("dynamic_batching: Only one priority level is allowed when 'preserve_ordering' is true")
    for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
        if policy.default_timeout_microseconds and policy.timeout_action == mc.ModelQueuePolicy.DELAY:
            raise InvalidArgument(
                "dynamic_batching: Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true"
            )


def _check_file_name(field: str, name: str, folder: str) -> None:
    # It is joined to the folder, so it must be a name in it and nothing else.
    if name and not is_plain_file_name(name):
        raise InvalidArgument(f"{field} must be the plain name of a file in {folder}")

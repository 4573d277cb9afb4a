"""The effective configuration that the config call shows: what was written, with the defaults filled in."""

from __future__ import annotations

from typing import cast

from roost.core.tensors import DATATYPES, Signature, TensorSpec
from roost.proto import model_config_pb2 as mc
from roost.registry_client.backends import platform_of
from roost.registry_client.description import ModelDescription
from roost.registry_client.sequences import IDLE_US


def complete_config(description: ModelDescription, signature: Signature) -> mc.ModelConfig:
    """Fills a configuration's defaults as Triton does, except that ``max_batch_size`` stays as written.

    The result can be sent back as the configuration of a load call: it describes the same model.

    Args:
        description: The model's description.
        signature: Its effective signature, shapes with the batch dimension.

    Returns:
        A message of its own that the caller may change.
    """
    config = mc.ModelConfig()
    config.CopyFrom(description.config)
    if description.ensemble is None:
        config.backend = description.backend
    config.platform = config.platform or platform_of(description.backend)
    if len(description.model_files) == 1:  # else it depends on which of them is there
        config.default_model_filename = description.model_files[0]
    if config.version_policy.WhichOneof("policy_choice") in (None, "latest"):
        config.version_policy.latest.num_versions = max(config.version_policy.latest.num_versions, 1)
    _complete_tensors(config, description, signature)
    if description.ensemble is not None:  # which has neither instances nor a graph of its own
        return config
    _complete_optimization(config.optimization)
    _complete_instance_groups(config)
    if config.HasField("sequence_batching"):
        batching = config.sequence_batching
        batching.max_sequence_idle_microseconds = batching.max_sequence_idle_microseconds or IDLE_US
    if (
        config.HasField("dynamic_batching")
        and config.max_batch_size
        and not config.dynamic_batching.preferred_batch_size
    ):
        config.dynamic_batching.preferred_batch_size.append(config.max_batch_size)
    return config


def _complete_tensors(config: mc.ModelConfig, description: ModelDescription, signature: Signature) -> None:
    batched = description.max_batch_size > 0
    inputs = {item.name: item for item in description.config.input}
    outputs = {item.name: item for item in description.config.output}
    del config.input[:]
    del config.output[:]
    for spec in signature.inputs:
        item = config.input.add()
        if spec.name in inputs:
            item.CopyFrom(inputs[spec.name])
        item.optional = spec.optional
        _complete_tensor(item, spec, batched)
    for spec in signature.outputs:
        item_out = config.output.add()
        if spec.name in outputs:
            item_out.CopyFrom(outputs[spec.name])
        _complete_tensor(item_out, spec, batched)


def _complete_tensor(item: mc.ModelInput | mc.ModelOutput, spec: TensorSpec, batched: bool) -> None:
    item.name = spec.name
    item.data_type = cast("mc.DataType", mc.DataType.Value(DATATYPES[spec.datatype].config_name))
    del item.dims[:]
    item.dims.extend(spec.shape[batched:])
    if spec.inner is not None:
        item.reshape.SetInParent()
        del item.reshape.shape[:]
        item.reshape.shape.extend(spec.inner[batched:])


def _complete_optimization(optimization: mc.ModelOptimizationPolicy) -> None:
    if not optimization.HasField("input_pinned_memory"):
        optimization.input_pinned_memory.enable = True
    if not optimization.HasField("output_pinned_memory"):
        optimization.output_pinned_memory.enable = True


def _complete_instance_groups(config: mc.ModelConfig) -> None:
    # A default group carries the model's name, a written one without a name its position behind it.
    if not config.instance_group:
        config.instance_group.add(name=config.name)
    for position, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{position}"
        group.count = max(group.count, 1)
        if group.kind == mc.ModelInstanceGroup.KIND_AUTO:
            group.kind = mc.ModelInstanceGroup.KIND_CPU

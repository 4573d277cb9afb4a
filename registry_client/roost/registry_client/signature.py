"""What a model takes and gives, as its configuration and the model itself say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from roost.core.errors import InvalidArgument
from roost.core.names import version_order
from roost.core.tensors import DATATYPE_OF_CONFIG, DATATYPES, Signature, TensorSpec
from roost.proto import model_config_pb2 as mc
from roost.registry_client.backends import BACKENDS
from roost.registry_client.description import ModelDescription
from roost.registry_client.sequences import clients_part

_Declared: TypeAlias = mc.ModelInput | mc.ModelOutput


def served_versions(description: ModelDescription, versions: Sequence[str]) -> list[str]:
    """Picks the versions that the model's ``version_policy`` serves, in ascending order; default: the latest.

    Versions of a ``specific`` policy that do not exist are left out.
    """
    ordered = sorted(versions, key=version_order)
    policy = description.config.version_policy
    if policy.HasField("all"):
        return ordered
    if policy.HasField("specific"):
        wanted = {str(version) for version in policy.specific.versions}
        return [version for version in ordered if version in wanted]
    return ordered[-max(policy.latest.num_versions, 1) :]


def signature_from_config(description: ModelDescription) -> Signature | None:
    """The signature if the configuration alone tells it: inputs and outputs, each with datatype and dims."""
    config = description.config
    declared: list[_Declared] = [*config.input, *config.output]
    if not config.input or not config.output or not all(item.dims and _datatype(item) for item in declared):
        return None
    batched = description.max_batch_size > 0
    return Signature(
        tuple(_spec(i, _datatype(i), batched, i.optional) for i in config.input),
        tuple(_spec(o, _datatype(o), batched) for o in config.output),
    )


def effective_signature(description: ModelDescription, model: Signature) -> Signature:
    """Merges the configuration's tensors with the model's own.

    A side (inputs or outputs) that the configuration does not list is the model's; so are a missing datatype
    and missing dims. A listed side decides order, optional inputs, and which outputs exist for clients.

    Where rows of a batching model are scalars, clients see ``[-1, 1]`` instead of ``[-1]``, as Triton has it.

    Args:
        description: The model's description.
        model: What the runtime reports, shapes with the batch dimension.

    Raises:
        InvalidArgument: If the configuration contradicts the model; the text has what both say.
    """
    batched = description.max_batch_size > 0
    config = description.config
    if config.HasField("sequence_batching"):
        model = clients_part(config, model, says_all=not BACKENDS[description.backend].is_code)
    if batched:
        _check_batched(description, model)
    inputs = {spec.name: spec for spec in model.inputs}
    outputs = {spec.name: spec for spec in model.outputs}
    merged_inputs = tuple(
        _merge("input", item, _own(inputs, item.name, "input"), batched, item.optional) for item in config.input
    )
    merged_outputs = tuple(
        _merge("output", item, _own(outputs, item.name, "output"), batched) for item in config.output
    )
    if merged_inputs:
        listed = {item.name for item in config.input}
        missing = [spec.name for spec in model.inputs if spec.name not in listed and not spec.optional]
        if missing:
            raise InvalidArgument(f"input '{missing[0]}' is needed by the model, but the config does not list it")
    return Signature(
        merged_inputs or tuple(_completed(spec, batched) for spec in model.inputs),
        merged_outputs or tuple(_completed(spec, batched) for spec in model.outputs),
    )


def _own(specs: dict[str, TensorSpec], name: str, kind: str) -> TensorSpec:
    if name not in specs:
        has = ", ".join(f"'{own}'" for own in list(specs)[:20]) or "none"
        raise InvalidArgument(f"{kind} '{name}' is in the config, but not in the model; its {kind}s: {has}")
    return specs[name]


def _merge(kind: str, declared: _Declared, own: TensorSpec, batched: bool, optional: bool = False) -> TensorSpec:
    datatype = _datatype(declared)
    if datatype and datatype != own.datatype:
        has = DATATYPES[own.datatype].config_name if own.datatype in DATATYPES else own.datatype
        raise InvalidArgument(
            f"{kind} '{own.name}': the config says data_type {mc.DataType.Name(declared.data_type)}, "
            f"the model has {has}"
        )
    optional = optional or own.optional
    if not declared.dims:
        return _completed(replace(own, optional=optional), batched)
    spec = _spec(declared, own.datatype, batched, optional)
    # Runtimes report an output of unknown rank as a scalar; then the configuration is all there is.
    unknown = kind == "output" and not own.shape
    if not unknown and not _fits(spec.own_shape, own.own_shape):
        batch = " behind the batch dimension" if batched else ""
        field = "reshape" if declared.HasField("reshape") else "dims"
        raise InvalidArgument(
            f"{kind} '{own.name}': the config says {field} {list(spec.own_shape[batched:])}{batch}, the model has "
            f"shape {list(own.shape)}"
        )
    return spec


def _completed(spec: TensorSpec, batched: bool) -> TensorSpec:
    """A tensor of which the configuration says no dims: those of the model, but for scalar rows."""
    if not batched or spec.shape != (-1,):
        return spec
    return replace(spec, shape=(-1, 1), inner=spec.shape)


def _spec(declared: _Declared, datatype: str, batched: bool, optional: bool = False) -> TensorSpec:
    inner = _full_shape(declared.reshape.shape, batched) if declared.HasField("reshape") else None
    return TensorSpec(declared.name, datatype, _full_shape(declared.dims, batched), optional, inner)


def _fits(shape: tuple[int, ...], own: tuple[int, ...]) -> bool:
    # A -1 of the configuration against a fixed dimension would promise what the model can't take: Triton
    # refuses it, too.
    return len(shape) == len(own) and all(mine in (-1, dim) for dim, mine in zip(shape, own, strict=True))


def _check_batched(description: ModelDescription, model: Signature) -> None:
    """Refuses a batching configuration of a model with a tensor, known to clients, that can't grow in front."""
    outputs = {item.name: bool(item.dims) for item in description.config.output}
    known = [("input", spec) for spec in model.inputs]
    known += [("output", spec) for spec in model.outputs if not outputs or spec.name in outputs]
    for kind, spec in known:
        unknown = kind == "output" and not spec.shape and outputs.get(spec.name, False)
        if not unknown and spec.shape[:1] != (-1,):
            raise InvalidArgument(
                f"max_batch_size is {description.max_batch_size}, but {kind} '{spec.name}' of the model has no "
                f"variable first dimension: its shape is {list(spec.shape)}"
            )


def _datatype(declared: _Declared) -> str:
    """The protocol's name of the declared datatype; empty if none is declared."""
    if declared.data_type == mc.TYPE_INVALID:
        return ""
    return DATATYPE_OF_CONFIG[mc.DataType.Name(declared.data_type)].name


def _full_shape(dims: Sequence[int], batched: bool) -> tuple[int, ...]:
    return (-1, *dims) if batched else tuple(dims)

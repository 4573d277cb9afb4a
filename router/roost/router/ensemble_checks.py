"""Whether the models of an ensemble's steps fit together; pure.

Shapes are compared as Triton compares them: with or without the dimension of the batch, and -1 fits anything. What that
leaves open is seen when a request has it, by the model of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from roost.core.errors import InvalidArgument
from roost.core.tensors import TensorSpec
from roost.registry_client.ensemble import MAX_STEPS, Ensemble, Step
from roost.router.ensemble_plan import Fit, Plan, StepModel, error_at, fits
from roost.router.revision import Revision
from roost.router.validation import Contract


def make_plan(revision: Revision, models: Sequence[StepModel]) -> Plan:
    """Checks that the models of an ensemble's steps fit together.

    Raises:
        InvalidArgument: If they do not; the text names the step and the tensor.
    """
    ensemble, contract = revision.description.ensemble, revision.contract
    assert ensemble is not None
    assert contract is not None
    name, batches = revision.key.name, contract.max_batch_size > 0
    origins = {
        spec.name: _Origin(spec.datatype, spec.own_shape, batches, "the ensemble") for spec in contract.signature.inputs
    }
    for number, (step, model) in enumerate(zip(ensemble.steps, models, strict=True)):
        try:
            _check_maps(step, model.contract, contract.max_batch_size)
        except InvalidArgument as error:
            raise error_at(name, number, step, error) from None
        origins |= _origins_of(number, step, model.contract)
    inputs = tuple(
        tuple(_checked_inputs(name, number, step, model.contract, origins))
        for number, (step, model) in enumerate(zip(ensemble.steps, models, strict=True))
    )
    outputs = {}
    for spec in contract.signature.outputs:
        _check_agreement(f"in ensemble '{name}', output '{spec.name}'", spec, spec.own_shape, batches, origins)
        outputs[spec.name] = Fit(spec.name, spec.name, spec.own_shape, batches)
    plan = Plan(name, ensemble, tuple(models), inputs, outputs, _streaming(name, ensemble, models))
    if plan.requests > MAX_STEPS:
        raise InvalidArgument(
            f"a request to ensemble '{name}' would come to {plan.requests} requests, more than the limit of {MAX_STEPS}"
        )
    return plan


class _Origin(NamedTuple):
    """What is known of an ensemble tensor by where it comes from."""

    datatype: str
    shape: tuple[int, ...]
    batches: bool
    where: str


def _check_maps(step: Step, contract: Contract, max_batch_size: int) -> None:
    inputs = {spec.name: spec for spec in contract.signature.inputs}
    outputs = {spec.name for spec in contract.signature.outputs}
    for name, tensor in step.inputs.items():
        if name not in inputs:
            raise InvalidArgument(
                f"ensemble tensor '{tensor}' is mapped to input '{name}', which the model does not have; "
                f"it takes {_listed(inputs)}"
            )
    for name, spec in inputs.items():
        if name not in step.inputs and not spec.optional:
            raise InvalidArgument(f"input '{name}' of the model is not mapped to any ensemble tensor")
    for name, tensor in step.outputs.items():
        if name not in outputs:
            raise InvalidArgument(
                f"ensemble tensor '{tensor}' is mapped from output '{name}', which the model does not have; "
                f"it has {_listed(outputs)}"
            )
    if 0 < contract.max_batch_size < max_batch_size:
        raise InvalidArgument(
            f"the ensemble allows a maximum batch size of {max_batch_size}, but the model one of "
            f"{contract.max_batch_size}"
        )


def _origins_of(number: int, step: Step, contract: Contract) -> dict[str, _Origin]:
    specs = {spec.name: spec for spec in contract.signature.outputs}
    batches, where = contract.max_batch_size > 0, f"step {number} (model '{step.model}')"
    return {
        tensor: _Origin(specs[output].datatype, specs[output].shape, batches, where)
        for output, tensor in step.outputs.items()
    }


def _checked_inputs(
    name: str, number: int, step: Step, contract: Contract, origins: Mapping[str, _Origin]
) -> Iterable[Fit]:
    batches = contract.max_batch_size > 0
    for spec in contract.signature.inputs:
        tensor = step.inputs.get(spec.name)
        if tensor is not None:
            where = f"in ensemble '{name}', step {number} (model '{step.model}'): input '{spec.name}'"
            _check_agreement(where, spec, spec.shape, batches, origins, tensor)
            yield Fit(spec.name, tensor, spec.shape, batches)


def _check_agreement(
    where: str,
    spec: TensorSpec,
    shape: tuple[int, ...],
    batches: bool,
    origins: Mapping[str, _Origin],
    tensor: str = "",
) -> None:
    tensor = tensor or spec.name
    origin = origins[tensor]
    if origin.datatype != spec.datatype and not spec.lenient:
        raise InvalidArgument(
            f"{where}: inconsistent data type of ensemble tensor '{tensor}': {origin.datatype} from {origin.where}, "
            f"but {spec.datatype} is expected"
        )
    rows = shape[batches:], origin.shape[origin.batches :]
    # Runtimes report an output of unknown rank as a scalar.
    if origin.shape and not fits(*rows) and not fits(shape, origin.shape):
        raise InvalidArgument(
            f"{where}: inconsistent shape of ensemble tensor '{tensor}': {list(origin.shape)} from {origin.where}, "
            f"but {list(shape)} is expected"
        )


def _streaming(name: str, ensemble: Ensemble, models: Sequence[StepModel]) -> int | None:
    """The step that streams.

    Raises:
        InvalidArgument: If there are two: what of one belongs to what of the other nobody could say.
    """
    found = [number for number, model in enumerate(models) if model.decoupled]
    if len(found) > 1:
        steps = " and ".join(f"step {number} (model '{ensemble.steps[number].model}')" for number in found[:2])
        raise InvalidArgument(f"in ensemble '{name}', only one step may be decoupled: {steps} are")
    return found[0] if found else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))

"""What an ensemble answers, made of what its steps have answered, and what is counted of it."""

from __future__ import annotations

from collections.abc import Mapping

from roost.core.errors import Internal
from roost.core.frames import StepTimes
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import NO_PARAMETERS, Parameters, Tensor
from roost.registry_client.sequences import SEQUENCE_END, SEQUENCE_ID, SEQUENCE_START
from roost.router.ensemble_plan import Plan, Ways
from roost.router.ensemble_run import Spent
from roost.router.revision import Revision

MAX_DEPTH = 32
"""Ensembles within ensembles. Circles are found before; this ends those that came about since."""

_ECHOED = (SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END)


def inputs_of(revision: Revision, request: InferRequest) -> dict[str, Tensor]:
    """The ensemble tensors that a checked request brings."""
    contract = revision.contract
    reshapes = contract.reshapes if contract is not None else None
    if reshapes is None:
        return {tensor.name: tensor for tensor in request.inputs}
    return {t.name: Tensor(t.name, t.datatype, reshapes.input_shape(t), t.data) for t in request.inputs}


def label_file_of(revision: Revision, output: str) -> tuple[Revision, str, str]:
    """Where the classes of an output have their names: in a file of a revision, for one of its own outputs.

    An output of an ensemble has the names that it has in the model that it comes from, unless there are others. The
    file is empty if there are none.
    """
    for _ in range(MAX_DEPTH):
        config = revision.description.config
        file_name = next((item.label_filename for item in config.output if item.name == output), "")
        plan = revision.plan
        if file_name or plan is None:
            return revision, output, file_name
        number = plan.ensemble.producers[output]
        output = next(own for own, tensor in plan.ensemble.steps[number].outputs.items() if tensor == output)
        revision = plan.models[number].revision
    return revision, output, ""


def response_of(
    revision: Revision,
    plan: Plan,
    ways: Ways,
    request: InferRequest,
    tensors: Mapping[str, Tensor],
    *,
    final: bool = True,
) -> InferResponse:
    """The answer that is made of what the steps have answered.

    Raises:
        Internal: If a step has left out what it was asked for.
    """
    reshapes = revision.contract.reshapes if revision.contract is not None else None
    outputs: list[Tensor] = []
    for name in ways.names:
        tensor = tensors.get(name)
        if tensor is None:
            raise plan.error_at(plan.ensemble.producers[name], Internal(f"it did not answer with '{name}'"))
        shape = plan.outputs[name].shape_of(tensor.shape)
        if reshapes is not None:
            shape = reshapes.output_shape(name, shape)
        outputs.append(Tensor(name, tensor.datatype, shape, tensor.data, NO_PARAMETERS))
    version, parameters = revision.key.version, _echoed(request.parameters)
    return InferResponse(request.model_name, version, outputs, request.id, parameters, final)


def _echoed(parameters: Parameters) -> Parameters:
    """Of a sequence the response says which it belongs to, as Triton's ensembles do."""
    if SEQUENCE_ID not in parameters:
        return NO_PARAMETERS
    return {name: parameters[name] for name in _ECHOED if name in parameters}


def note_spent(revision: Revision, request: InferRequest, rows: int, began: float, spent: Spent) -> None:
    """Counts the request as a run of the ensemble, and keeps in its context what the steps took."""
    context = request.context
    context.queued = context.queued or began
    context.load_wait_s += spent.load_wait_s
    context.run_started = context.queued + context.load_wait_s + spent.queue_s
    context.infer_started = context.run_started + spent.input_s
    context.infer_ended = context.infer_started + spent.infer_s
    context.run_ended = context.infer_ended + spent.output_s
    counters = revision.counters
    if counters is not None:
        points = (0.0, spent.input_s, spent.input_s, spent.input_s + spent.infer_s)
        input_start, input_end, infer_start, infer_end = (round(point * 1e9) for point in points)
        output_end = infer_end + round(spent.output_s * 1e9)
        times = StepTimes(input_start, input_end, infer_start, infer_end, infer_end, output_end)
        counters.ran(rows if revision.description.max_batch_size else 1, times)

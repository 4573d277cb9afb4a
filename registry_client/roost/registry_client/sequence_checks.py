"""Checks of ``sequence_batching`` that need nothing but the configuration."""

from __future__ import annotations

from collections.abc import Sequence

from roost.core.errors import InvalidArgument
from roost.proto import model_config_pb2 as mc
from roost.registry_client.batching import check_preferred_sizes
from roost.registry_client.files import is_plain_file_name
from roost.registry_client.sequences import datatype_of

_CORRELATION_TYPES = frozenset({"UINT64", "INT64", "UINT32", "INT32", "BYTES"})


def check_sequences(config: mc.ModelConfig) -> None:
    """Checks ``sequence_batching``, in the words of Triton where it has any.

    Raises:
        InvalidArgument: If it contradicts itself or asks for what can't be done.
    """
    batching, name = config.sequence_batching, config.name
    if batching.iterative_sequence:
        raise InvalidArgument("sequence_batching: iterative_sequence is not supported")
    _check_controls(batching.control_input, name)
    for control in batching.control_input:
        _check_is_hidden(control.name, config)
    if batching.HasField("oldest"):
        _check_oldest(batching.oldest, config.max_batch_size)
    elif not 0 <= batching.direct.minimum_slot_utilization <= 1:
        raise InvalidArgument("sequence_batching: minimum_slot_utilization must be in range [0, 1]")
    if batching.state and config.model_transaction_policy.decoupled:
        raise InvalidArgument(
            "sequence_batching: state can't be kept for decoupled models, which answer more than once"
        )
    _check_states(config)


def _check_controls(inputs: Sequence[mc.ModelSequenceBatching.ControlInput], model: str) -> None:
    kinds: set[int] = set()
    names: set[str] = set()
    for control_input in inputs:
        name = control_input.name
        if not name:
            raise InvalidArgument(f"sequence batching control tensor must have a name for {model}")
        if name in names or len(control_input.control) > 1:
            raise InvalidArgument(
                f"sequence batching control tensor '{name}' is specified for multiple control kinds for {model}"
            )
        names.add(name)
        for control in control_input.control:
            kind = mc.ModelSequenceBatching.Control.Kind.Name(control.kind)
            if control.kind in kinds:
                raise InvalidArgument(f"sequence batching specifies multiple {kind} tensors for {model}")
            kinds.add(control.kind)
            _check_control(control, kind, model)


def _check_control(control: mc.ModelSequenceBatching.Control, kind: str, model: str) -> None:
    if control.kind == mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID:
        if datatype_of(control.data_type) not in _CORRELATION_TYPES:
            shown = mc.DataType.Name(control.data_type)
            raise InvalidArgument(f"unexpected data type {shown} for control {kind} for {model}")
        return
    given = {
        field: len(getattr(control, field))
        for field in ("int32_false_true", "fp32_false_true", "bool_false_true")
        if getattr(control, field)
    }
    if len(given) != 1:
        raise InvalidArgument(
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for "
            f"{kind} for {model}"
        )
    for field, count in given.items():
        if count != 2:
            raise InvalidArgument(
                f"sequence batching control '{field}' must have exactly 2 entries for {kind} for {model}"
            )


def _check_oldest(oldest: mc.ModelSequenceBatching.StrategyOldest, max_batch_size: int) -> None:
    if oldest.max_candidate_sequences < 0:
        raise InvalidArgument("sequence_batching: max_candidate_sequences must not be negative")
    check_preferred_sizes(oldest.preferred_batch_size, max_batch_size, "sequence_batching")


def _check_states(config: mc.ModelConfig) -> None:
    names: set[str] = {control.name for control in config.sequence_batching.control_input}
    outputs: set[str] = set()
    for state in config.sequence_batching.state:
        what = f"sequence_batching: state '{state.input_name}'"
        if not state.input_name or not state.output_name:
            raise InvalidArgument("sequence_batching: a state needs an input_name and an output_name")
        if state.input_name in names or state.output_name in outputs:
            raise InvalidArgument(f"{what}: its input or its output is named twice")
        names.add(state.input_name)
        outputs.add(state.output_name)
        _check_is_hidden(state.input_name, config)
        if not datatype_of(state.data_type):
            raise InvalidArgument(f"{what} has no data_type")
        if any(dim == 0 or dim < -1 for dim in state.dims):
            raise InvalidArgument(f"{what}: dims must be positive or -1")
        if len(state.initial_state) > 1:
            raise InvalidArgument(f"{what}: there may be one initial_state")
        for initial in state.initial_state:
            _check_initial(initial, state, what)


def _check_initial(
    initial: mc.ModelSequenceBatching.InitialState, state: mc.ModelSequenceBatching.State, what: str
) -> None:
    if initial.data_type != state.data_type:
        raise InvalidArgument(f"{what}: its initial_state has another data_type")
    fits = len(initial.dims) == len(state.dims) and all(
        mine > 0 and own in (-1, mine) for own, mine in zip(state.dims, initial.dims, strict=True)
    )
    if not fits:
        raise InvalidArgument(f"{what}: dims of its initial_state must be positive, and fit {list(state.dims)}")
    if initial.data_file and not is_plain_file_name(initial.data_file):
        raise InvalidArgument(f"{what}: data_file must be the plain name of a file in the model's folder initial_state")


def _check_is_hidden(name: str, config: mc.ModelConfig) -> None:
    if any(item.name == name for item in config.input):
        raise InvalidArgument(f"sequence_batching: '{name}' is filled in by the server: it can't be listed as an input")

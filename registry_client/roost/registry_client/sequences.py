"""What ``sequence_batching`` of a configuration says: which tensors tell a model where in its sequence a request is.

*Controls* are inputs that the server makes itself: whether the request begins its sequence or ends it, whether there
is a request at all in a row of a batch, and which sequence it is of. *State* is what a model gives with one request to
be given back with the next one of the sequence. Clients see neither of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from roost.core.errors import FailedPrecondition, InvalidArgument
from roost.core.tensors import DATATYPE_OF_CONFIG, DATATYPES, Signature, TensorSpec
from roost.proto import model_config_pb2 as mc
from roost.registry_client.policy import ModelPolicy

IDLE_US = 1_000_000
"""A sequence ends after so long without a request if nothing else is said, as Triton has it."""

SEQUENCE_ID = "sequence_id"
SEQUENCE_START = "sequence_start"
SEQUENCE_END = "sequence_end"
PARAMETERS = frozenset({SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END})
"""Of a request, those that say where in which sequence it is."""


class ControlKind(IntEnum):
    """What a control says; the numbers are those of the configuration."""

    START = mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_START
    READY = mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_READY
    END = mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_END
    CORRELATION_ID = mc.ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID


@dataclass(frozen=True, slots=True)
class Control:
    """One control.

    Attributes:
        name: The input of the model.
        kind: What it says.
        datatype: Of the input.
        false: The bytes of one element that says no; none where the element is the correlation id.
        true: Likewise of one that says yes.
    """

    name: str
    kind: ControlKind
    datatype: str
    false: bytes = b""
    true: bytes = b""


@dataclass(frozen=True, slots=True)
class State:
    """One state tensor.

    Attributes:
        input_name: Where the model takes it.
        output_name: Where the model gives the next one.
        datatype: Of both.
        dims: Of one row; -1 is any.
        initial_dims: Of the one that a sequence begins with.
        initial_file: The file with its elements in the model's folder ``initial_state``; empty for zeros.
    """

    input_name: str
    output_name: str
    datatype: str
    dims: tuple[int, ...]
    initial_dims: tuple[int, ...]
    initial_file: str = ""


@dataclass(frozen=True, slots=True)
class SequencePolicy:
    """How requests of sequences reach a model.

    Attributes:
        is_direct: Whether each sequence has a row of its own in all batches, from its first request to its last.
        candidates: So many sequences are run at a time; others wait until one of them has ended.
        idle_s: After so long without a request a sequence has ended.
        controls: Inputs that the server makes.
        states: What is kept from one request to the next; none where the model itself keeps what it needs.
        max_delay_s: How long a batch of rows waits for more of them, where each sequence has its own.
        minimum_utilization: It does not if this share of the rows is filled.
    """

    is_direct: bool
    candidates: int
    idle_s: float
    controls: tuple[Control, ...]
    states: tuple[State, ...]
    max_delay_s: float = 0.0
    minimum_utilization: float = 0.0

    @property
    def keeps_inside(self) -> bool:
        """Whether the model itself remembers its sequences, so that each of them is bound to one loaded copy."""
        return not self.states


def sequence_policy(config: mc.ModelConfig) -> SequencePolicy | None:
    """Reads a configuration that was checked; None for models without sequences."""
    if not config.HasField("sequence_batching"):
        return None
    batching = config.sequence_batching
    rows = max(1, config.max_batch_size)
    instances = sum(group.count or 1 for group in config.instance_group) or 1
    states = tuple(_state(state) for state in batching.state)
    is_direct = not batching.HasField("oldest")
    # Each of a model's instances has its rows. Of a model that keeps state in them there is one copy here, so one set.
    own_rows = rows * (instances if states else 1)
    candidates = own_rows if is_direct else batching.oldest.max_candidate_sequences or rows
    direct = batching.direct
    return SequencePolicy(
        is_direct,
        candidates,
        (batching.max_sequence_idle_microseconds or IDLE_US) / 1e6,
        tuple(_controls(batching)),
        states,
        direct.max_queue_delay_microseconds / 1e6 if is_direct else 0.0,
        direct.minimum_slot_utilization if is_direct else 0.0,
    )


def of_one_copy(policy: ModelPolicy, sequences: SequencePolicy | None) -> ModelPolicy:
    """What the owner of a model asks for, if that goes with what its sequences need.

    Raises:
        InvalidArgument: If there are to be several copies of a model that itself remembers its sequences.
    """
    if sequences is None or not sequences.keeps_inside:
        return policy
    if policy.min_copies > 1:
        raise InvalidArgument(
            "roost.min_copies is over 1, but there is one copy of a model that keeps the state of its sequences itself "
            "(sequence_batching without state): it has to know them all"
        )
    return replace(policy, max_copies=1)


def declared_tensors(config: mc.ModelConfig) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs that clients do not see, and the outputs with state, as the model has them."""
    policy = sequence_policy(config)
    if policy is None:
        return [], []
    batch = (-1,) if config.max_batch_size > 0 else ()
    controls = [TensorSpec(control.name, control.datatype, (*batch, 1)) for control in policy.controls]
    inputs = [TensorSpec(state.input_name, state.datatype, (*batch, *state.dims)) for state in policy.states]
    outputs = [TensorSpec(state.output_name, state.datatype, (*batch, *state.dims)) for state in policy.states]
    return [*controls, *inputs], outputs


def clients_part(config: mc.ModelConfig, model: Signature, *, says_all: bool) -> Signature:
    """What is left of a model's signature for clients.

    Args:
        config: The configuration, which has ``sequence_batching``.
        model: What the runtime reports.
        says_all: Whether that has all that the model takes, also what the configuration does not list as inputs.

    Raises:
        InvalidArgument: If the model has a control or a state otherwise than the configuration, or not at all.
    """
    inputs, outputs = declared_tensors(config)
    if says_all:
        for what, declared, own in (("input", inputs, model.inputs), ("output", outputs, model.outputs)):
            known = {spec.name: spec for spec in own}
            for spec in declared:
                _check_own(what, spec, known.get(spec.name))
    shown = {item.name for item in config.output}
    hidden = {spec.name for spec in inputs}
    hidden_outputs = {spec.name for spec in outputs} - shown
    return Signature(
        tuple(spec for spec in model.inputs if spec.name not in hidden),
        tuple(spec for spec in model.outputs if spec.name not in hidden_outputs),
    )


def _check_own(what: str, declared: TensorSpec, own: TensorSpec | None) -> None:
    if own is None:
        raise InvalidArgument(f"{what} '{declared.name}' of sequence_batching is not in the model")
    if own.datatype != declared.datatype:
        raise InvalidArgument(
            f"{what} '{declared.name}': sequence_batching says {declared.datatype}, the model has {own.datatype}"
        )
    unknown = what == "output" and not own.shape  # runtimes report an output of unknown rank as a scalar
    if not unknown and (
        len(own.shape) != len(declared.shape)
        or any(-1 not in (mine, dim) and mine != dim for dim, mine in zip(own.shape, declared.shape, strict=True))
    ):
        raise InvalidArgument(
            f"{what} '{declared.name}': sequence_batching makes its shape {list(declared.shape)}, the model has "
            f"{list(own.shape)}"
        )


def _controls(batching: mc.ModelSequenceBatching) -> Iterator[Control]:
    for control_input in batching.control_input:
        for control in control_input.control:
            kind = ControlKind(control.kind)
            if kind is ControlKind.CORRELATION_ID:
                yield Control(control_input.name, kind, datatype_of(control.data_type))
                continue
            datatype, values = _values(control)
            false, true = (np.array(value, DATATYPES[datatype].dtype).tobytes() for value in values)
            yield Control(control_input.name, kind, datatype, false, true)


def _values(control: mc.ModelSequenceBatching.Control) -> tuple[str, Iterable[float]]:
    if control.int32_false_true:
        return "INT32", control.int32_false_true
    if control.fp32_false_true:
        return "FP32", control.fp32_false_true
    return "BOOL", control.bool_false_true


def _state(state: mc.ModelSequenceBatching.State) -> State:
    dims = tuple(state.dims)
    # A sequence begins with dimensions of 1 where any would do and none is said, as in Triton.
    initial_dims = tuple(1 if dim == -1 else dim for dim in dims)
    file = ""
    for initial in state.initial_state:
        initial_dims, file = tuple(initial.dims), initial.data_file
    return State(state.input_name, state.output_name, datatype_of(state.data_type), dims, initial_dims, file)


def initial_bytes(states: Iterable[State], read: Callable[[str], bytes]) -> dict[str, bytes]:
    """Reads the states that sequences begin with, by input name, where files have them.

    Args:
        states: All of them.
        read: Reads a file of the model's folder ``initial_state``.

    Raises:
        FailedPrecondition: If one is not as large as the configuration says.
        InvalidArgument: If there is no such file.
    """
    found = {}
    for state in states:
        if not state.initial_file:
            continue
        data, itemsize = read(state.initial_file), DATATYPES[state.datatype].itemsize
        expected = math.prod(state.initial_dims) * itemsize
        if itemsize and len(data) != expected:
            raise FailedPrecondition(
                f"initial state '{state.initial_file}' has {len(data)} bytes, its dims and data_type make {expected}"
            )
        found[state.input_name] = data
    return found


def zeros(datatype: str, dims: Sequence[int]) -> bytes:
    """The elements of a tensor of zeros, or of empty strings."""
    return bytes(math.prod(dims) * (DATATYPES[datatype].itemsize or 4))


def datatype_of(number: mc.DataType) -> str:
    """The protocol's name of a datatype; empty if none is declared."""
    return "" if number == mc.TYPE_INVALID else DATATYPE_OF_CONFIG[mc.DataType.Name(number)].name

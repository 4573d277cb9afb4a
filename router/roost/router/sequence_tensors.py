"""What a model gets besides a client's inputs to know of its sequence, and what of its outputs is kept for the next."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items

from roost.core.errors import Internal, InvalidArgument
from roost.core.requests import InferRequest
from roost.core.tensors import DATATYPES, NO_PARAMETERS, Tensor, pack_bytes
from roost.registry_client.sequences import Control, ControlKind, SequencePolicy, State, zeros
from roost.router.sequence import CorrelationId, Turn, shown
from roost.router.validation import Contract

_UNSIGNED = ("UINT64", "UINT32")


class Wiring:
    """Makes the tensors that clients do not see.

    Args:
        policy: Says which there are.
        contract: What clients see.
        initial: The elements of the states that sequences begin with, by input name, of those that are in files.
    """

    def __init__(self, policy: SequencePolicy, contract: Contract, initial: Mapping[str, bytes]) -> None:
        self.contract = contract
        self._states = policy.states
        self._controls = policy.controls
        self._batch = (1,) if contract.max_batch_size > 0 else ()
        self._initial = tuple(self._first(state, initial) for state in policy.states)
        self._defaults = tuple(spec.name for spec in contract.signature.outputs if not spec.optional)
        self._flags = {
            (control.kind, value): self._tensor(control, control.true if value else control.false)
            for control in policy.controls
            if control.kind is not ControlKind.CORRELATION_ID
            for value in (False, True)
        }

    def inputs(self, turn: Turn) -> list[Tensor]:
        """The inputs of one request that the server makes, always in the same order.

        Raises:
            InvalidArgument: If the model can't be told of this correlation id.
        """
        sequence = turn.sequence
        state = sequence.state if sequence.state and not turn.start else self._initial
        return [*self._told(sequence.id, ready=True, start=turn.start, end=turn.end), *state]

    def absent(self) -> list[Tensor]:
        """The same of a row of a batch that has no request."""
        return [*self._told(0, ready=False, start=False, end=False), *self._initial]

    def outputs(self, wanted: Items[str]) -> list[str]:
        """The outputs that a run is to give for a request that wants these; none stands for all."""
        if not self._states:
            return list(wanted)
        return list(dict.fromkeys((*(wanted or self._defaults), *(state.output_name for state in self._states))))

    def clients_outputs(self, request: InferRequest, outputs: Items[Tensor]) -> list[Tensor]:
        """What of a run's outputs the client gets."""
        if not self._states:
            return list(outputs)
        names = {output.name for output in request.outputs} or set(self._defaults)
        return [tensor for tensor in outputs if tensor.name in names]

    def next_state(self, outputs: Items[Tensor]) -> list[Tensor]:
        """The inputs for the next request that a run has given, in memory of their own.

        They are copied, since what they are views on is often a whole batch's answer.

        Raises:
            Internal: If one is not there, or is not what the configuration says.
        """
        given = {tensor.name: tensor for tensor in outputs}
        return [self._kept(state, given.get(state.output_name)) for state in self._states]

    def _kept(self, state: State, tensor: Tensor | None) -> Tensor:
        name, dims = state.output_name, (*self._batch, *state.dims)
        if tensor is None:
            raise Internal(f"the model gave no '{name}', which is the state of the sequence")
        fits = len(tensor.shape) == len(dims) and all(
            want in (-1, got) for want, got in zip(dims, tensor.shape, strict=True)
        )
        if not fits or tensor.datatype != state.datatype:
            raise Internal(
                f"the model gave the state '{name}' as {tensor.datatype} {list(tensor.shape)}, its configuration says "
                f"{state.datatype} {list(dims)}"
            )
        return Tensor(state.input_name, tensor.datatype, tensor.shape, bytes(tensor.data), NO_PARAMETERS)

    def _first(self, state: State, initial: Mapping[str, bytes]) -> Tensor:
        data = initial.get(state.input_name) or zeros(state.datatype, state.initial_dims)
        return Tensor(state.input_name, state.datatype, (*self._batch, *state.initial_dims), data, NO_PARAMETERS)

    def _told(self, id_: CorrelationId, *, ready: bool, start: bool, end: bool) -> list[Tensor]:
        values = {ControlKind.READY: ready, ControlKind.START: start, ControlKind.END: end}
        return [
            self._tensor(control, self._correlation(control, id_))
            if control.kind is ControlKind.CORRELATION_ID
            else self._flags[control.kind, values[control.kind]]
            for control in self._controls
        ]

    def _correlation(self, control: Control, id_: CorrelationId) -> bytes:
        if control.datatype == "BYTES":
            return pack_bytes([str(id_).encode() if id_ else b""])
        if isinstance(id_, str):
            raise InvalidArgument(
                f"inference request for sequence {shown(id_)} to model '{self.contract.model}' must specify a numeric "
                f"correlation ID: the model takes it as {control.datatype}"
            )
        try:
            signed = control.datatype not in _UNSIGNED
            return id_.to_bytes(DATATYPES[control.datatype].itemsize, "little", signed=signed)
        except OverflowError:
            raise InvalidArgument(
                f"inference request for sequence {id_} to model '{self.contract.model}': the correlation ID does not "
                f"fit {control.datatype}, as which the model takes it"
            ) from None

    def _tensor(self, control: Control, data: bytes) -> Tensor:
        return Tensor(control.name, control.datatype, (*self._batch, 1), data, NO_PARAMETERS)

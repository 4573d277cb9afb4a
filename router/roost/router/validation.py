"""Step 3 of the data path: a request is checked against its model's signature before it is queued.

The order of checks and their wording follow Triton, whose clients match on some of the texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from roost.core.errors import Internal, InvalidArgument
from roost.core.frames import WireTensor
from roost.core.requests import InferRequest
from roost.core.tensors import DATATYPES, Parameters, Signature, Tensor, TensorSpec, element_count, unpack_slices
from roost.registry_client.reshape import reshaped

SHARED_SIGNATURES = 4096
"""So many different signatures are kept once for all models that have them: there may be thousands that are alike."""

MAX_PARAMETERS = 1000
MAX_PARAMETER_CHARS = 1 << 20

_NUMBERS = frozenset(name for name, datatype in DATATYPES.items() if datatype.itemsize) - {"BF16"}
"""What a lenient input takes: numpy has no type for BF16."""


class Reshapes:
    """Rewrites the shapes of tensors that clients see in another shape than the model has; data stays as it is."""

    __slots__ = ("_inputs", "_model", "_outputs")

    def __init__(self, model: str, signature: Signature) -> None:
        self._model = model
        self._inputs = {spec.name: spec for spec in signature.inputs if spec.inner is not None}
        self._outputs = {spec.name: spec for spec in signature.outputs if spec.inner is not None}

    def input_shape(self, tensor: Tensor | WireTensor) -> tuple[int, ...]:
        """The shape that the model is to get for a checked input of a client."""
        spec = self._inputs.get(tensor.name)
        shape = reshaped(tensor.shape, spec.shape, spec.own_shape) if spec is not None else None
        return tensor.shape if shape is None else shape

    def output_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a client is to get for an output of the model.

        Raises:
            Internal: If the model has answered what its configuration does not say.
        """
        spec = self._outputs.get(name)
        if spec is None:
            return shape
        seen = reshaped(shape, spec.own_shape, spec.shape)
        if seen is None:
            raise Internal(
                f"output '{name}' of model '{self._model}' has shape {_dims(shape)}, which does not fit the reshape of "
                f"{_dims(spec.own_shape)} in its configuration"
            )
        return seen


class _Lookups:
    """A signature made ready for checking: lookups by name instead of scans."""

    __slots__ = ("inputs", "is_reshaped", "lenient", "outputs", "required", "signature")

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in signature.inputs}
        self.outputs = frozenset(spec.name for spec in signature.outputs)
        self.required = frozenset(spec.name for spec in signature.inputs if not spec.optional)
        only = signature.inputs[0] if len(signature.inputs) == 1 else None
        self.lenient = only if only is not None and only.lenient else None
        self.is_reshaped = any(spec.inner is not None for spec in (*signature.inputs, *signature.outputs))


_lookups = lru_cache(maxsize=SHARED_SIGNATURES)(_Lookups)


class Contract:
    """What requests to a model are held to. Models with equal signatures share all of it but their name."""

    __slots__ = ("_lookups", "max_batch_size", "model", "reshapes")

    def __init__(self, model: str, signature: Signature, max_batch_size: int) -> None:
        self.model = model
        self.max_batch_size = max_batch_size
        self._lookups = _lookups(signature)
        self.reshapes = Reshapes(model, signature) if self._lookups.is_reshaped else None

    @property
    def signature(self) -> Signature:
        """The tensors as clients see them."""
        return self._lookups.signature

    def check(self, request: InferRequest) -> None:
        """Checks all of a request.

        Raises:
            InvalidArgument: Saying which tensor, what was expected and what came.
        """
        for _ in self.checking(request):
            pass

    def checking(self, request: InferRequest) -> Iterator[None]:
        """The same in steps of about a millisecond, since there may be millions of strings to look at.

        Raises:
            InvalidArgument: See ``check``.
        """
        try:
            if request.parameters:
                _check_parameters(request.parameters)
            self._check_outputs(request)
            self._check_input_names(request)
            if self.max_batch_size > 0:
                self._check_batch(request.inputs)
            for tensor in request.inputs:
                count = self._check_shape(tensor)
                if DATATYPES[tensor.datatype].itemsize:
                    self._check_size(tensor, count)
                else:
                    yield from self._check_strings(tensor, count)
        except InvalidArgument as error:
            raise InvalidArgument(f"[request id: {request.id or '<id_unknown>'}] {error.message}") from None

    def _check_outputs(self, request: InferRequest) -> None:
        for output in request.outputs:
            if output.name not in self._lookups.outputs:
                raise InvalidArgument(
                    f"unexpected inference output '{output.name}' for model '{self.model}', "
                    f"it has {_names(self._lookups.outputs)}"
                )

    def _check_input_names(self, request: InferRequest) -> None:
        known = self._lookups
        if known.lenient is not None and len(request.inputs) == 1:
            request.inputs[0].name = known.lenient.name
        names = [tensor.name for tensor in request.inputs]
        for name in names:
            if name not in known.inputs:
                raise InvalidArgument(
                    f"unexpected inference input '{name}' for model '{self.model}', it takes {_names(known.inputs)}"
                )
        given = set(names)
        if len(given) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgument(f"input '{twice}' already exists in request")
        missing = known.required - given
        if missing:
            expected = len(known.inputs)
            if len(known.required) != expected:
                count = f"expected number of inputs between {len(known.required)} and {expected} but got"
            else:
                count = f"expected {expected} inputs but got"
            raise InvalidArgument(
                f"{count} {len(names)} inputs for model '{self.model}'. Got input(s) [{_names(names)}], "
                f"but missing required input(s) [{_names(missing)}]. Please provide all required input(s)."
            )

    def _check_batch(self, inputs: Sequence[Tensor]) -> None:
        rows: int | None = None
        for tensor in inputs:
            if not tensor.shape:
                raise InvalidArgument(
                    f"input '{tensor.name}' has no shape but model requires batch dimension for '{self.model}'"
                )
            if rows is None:
                rows = tensor.shape[0]
            elif tensor.shape[0] != rows:
                raise InvalidArgument(
                    f"input '{tensor.name}' batch size does not match other inputs for '{self.model}': "
                    f"{tensor.shape[0]} and {rows}"
                )
            if rows > self.max_batch_size:
                expected = self._lookups.inputs[tensor.name].shape
                hint = (
                    f"; the shape {list(tensor.shape)} has no batch dimension, expected {list(expected)}: "
                    f"the first dimension counts rows, one of them has shape {[1, *tensor.shape]}"
                    if len(tensor.shape) == len(expected) - 1
                    else ""
                )
                raise InvalidArgument(
                    f"inference request batch-size must be <= {self.max_batch_size} for '{self.model}', "
                    f"got {rows}{hint}"
                )

    def _check_shape(self, tensor: Tensor) -> int:
        """Checks datatype and shape; returns how many elements that is."""
        spec = self._lookups.inputs[tensor.name]
        if tensor.datatype != spec.datatype and not (spec.lenient and {tensor.datatype, spec.datatype} <= _NUMBERS):
            raise InvalidArgument(
                f"inference input '{tensor.name}' data-type is '{tensor.datatype}', "
                f"but model '{self.model}' expects '{spec.datatype}'"
            )
        shape = tensor.shape
        if len(shape) != len(spec.shape) or any(
            want not in (-1, got) for want, got in zip(spec.shape, shape, strict=True)
        ):
            note = (
                f" NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be "
                f"prepended to each input shape. The model's max_batch_size is {self.max_batch_size}."
                if self.max_batch_size > 0
                else _forgotten_dimension(spec.shape, shape)
            )
            raise InvalidArgument(
                f"unexpected shape for input '{tensor.name}' for model '{self.model}'. "
                f"Expected {_dims(spec.shape)}, got {_dims(shape)}.{note}"
            )
        try:
            return element_count(shape)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"unexpected shape for input '{tensor.name}' for model '{self.model}': {error.message}"
            ) from None

    def _check_size(self, tensor: Tensor, count: int) -> None:
        expected = count * DATATYPES[tensor.datatype].itemsize
        size = memoryview(tensor.data).nbytes
        if size != expected:
            raise InvalidArgument(
                f"input byte size mismatch for input '{tensor.name}' for model '{self.model}'. "
                f"Expected {expected}, got {size}"
            )
        if tensor.datatype == "BOOL" and bytes(tensor.data).translate(None, b"\0\1"):
            raise InvalidArgument(
                f"input '{tensor.name}' for model '{self.model}' is BOOL, expected bytes that are 0 or 1, got others"
            )

    def _check_strings(self, tensor: Tensor, count: int) -> Iterator[None]:
        found = 0
        try:
            for elements in unpack_slices(tensor.data, count):
                if found:
                    yield
                found += len(elements)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"the {count} string elements expected for inference input '{tensor.name}' for model '{self.model}' "
                f"can't be read: {error.message}"
            ) from None
        if found != count:
            raise InvalidArgument(
                f"expected {count} string elements for inference input '{tensor.name}' for model '{self.model}', "
                f"got {found}"
            )


def rows_of(request: InferRequest, max_batch_size: int) -> int:
    """How many rows of a batch a checked request is: its first dimension if the model batches, else 1."""
    return request.inputs[0].shape[0] if max_batch_size > 0 and request.inputs else 1


def _check_parameters(parameters: Parameters) -> None:
    """They are for switches and small texts: each costs more on its way to the model than in the request."""
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidArgument(f"{len(parameters)} parameters are over the limit of {MAX_PARAMETERS} in one request")
    size = sum(len(name) + (len(value) if type(value) is str else 0) for name, value in parameters.items())
    if size > MAX_PARAMETER_CHARS:
        raise InvalidArgument(
            f"parameters of {size} characters are over the limit of {MAX_PARAMETER_CHARS} in one request: "
            "send large values as tensors"
        )


def _names(names: Sequence[str] | frozenset[str] | Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"'{name}'" for name in (names if isinstance(names, list | dict) else sorted(names)))


def _forgotten_dimension(expected: Sequence[int], shape: Sequence[int]) -> str:
    """Tells who has left out a first dimension that counts rows, the most common mistake; empty for other mistakes."""
    rows, row = tuple(expected[:1]), expected[1:]
    if rows not in ((1,), (-1,)) or len(row) != len(shape):
        return ""
    if any(want not in (-1, got) for want, got in zip(row, shape, strict=True)):
        return ""
    return f" The first dimension, of the batch, is missing: one row has shape {_dims((1, *shape))}."


def _dims(shape: Sequence[int]) -> str:
    return "[" + ",".join(str(dim) for dim in shape) + "]"

"""How models written for Triton ask other models: what ``InferenceRequest.exec`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy.typing as npt
from roost.core.errors import Code, FailedPrecondition, RoostError
from roost.core.frames import Call, Run, WireTensor
from roost.core.tensors import Parameters, from_array, to_array

DEADLINE_NS: ContextVar[int] = ContextVar("deadline_ns", default=0)
"""When what the present code computes is of no use any more; 0 for never. Calls have no more time."""

_DATATYPES = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
)

_way: Callable[[Call], Sequence[WireTensor]] | None = None


def connect(way: Callable[[Call], Sequence[WireTensor]]) -> None:
    """Says what asks other models from now on."""
    global _way
    _way = way


def ask(
    model: str,
    version: int,
    inputs: Iterable[tuple[str, int, npt.NDArray[Any]]],
    outputs: Sequence[str],
    parameters: Parameters,
) -> list[tuple[str, npt.NDArray[Any]]]:
    """Asks another model.

    Args:
        model: Its name.
        version: Its version; -1 for any.
        inputs: Name, number of the datatype in Triton, elements.
        outputs: Names of the outputs wanted; empty: all.
        parameters: For the other model.

    Returns:
        Its outputs by name.

    Raises:
        RoostError: Why there is no answer.
    """
    if _way is None:
        raise FailedPrecondition("other models can be asked once this one is loaded")
    tensors = [from_array(name, _DATATYPES[number - 1], array) for name, number, array in inputs]
    wire = [WireTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in tensors]
    run = Run(0, DEADLINE_NS.get(), wire, list(outputs), parameters)
    answers: Sequence[Any] = _way(Call(model, str(version) if version >= 0 else "", run))  # as good as tensors
    return [(tensor.name, to_array(tensor)) for tensor in answers]


TRITON_CODES: dict[Code, int] = {
    Code.NOT_FOUND: 2,
    Code.INVALID_ARGUMENT: 3,
    Code.UNAVAILABLE: 4,
    Code.UNIMPLEMENTED: 5,
    Code.ALREADY_EXISTS: 6,
    Code.CANCELLED: 7,
}
"""What Triton's errors call the codes; all others are INTERNAL."""


def triton_code(error: RoostError) -> int:
    """The code of an error as Triton's errors have it."""
    return TRITON_CODES.get(error.code, 1)

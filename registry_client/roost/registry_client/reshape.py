"""The rule of ``reshape``: how the shape that clients see and the shape that the model has fit together.

Both have the same number of variable dimensions, in the same order, and between them the same number of elements; so
the elements of a tensor are in the same order in either form, and only its shape is rewritten.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from roost.core.errors import InvalidArgument


def check_reshape(what: str, dims: Sequence[int], shape: Sequence[int]) -> None:
    """Checks a reshape of a configuration; both without the batch dimension.

    Args:
        what: How error texts name the tensor.
        dims: The shape that clients see.
        shape: The shape that the model has.

    Raises:
        InvalidArgument: If one can't be had from the other.
    """
    wrong = [dim for dim in shape if dim < -1 or dim == 0]
    if wrong:
        raise InvalidArgument(f"{what}: dims of its reshape must be positive or -1, not {wrong[0]}")
    if not dims:
        raise InvalidArgument(f"{what}: a reshape needs dims")
    if _segments(dims) != _segments(shape):
        raise InvalidArgument(
            f"{what}: reshape {list(shape)} does not fit dims {list(dims)}: they need the same variable dimensions "
            "with as many elements between them"
        )


def reshaped(shape: Sequence[int], given: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...] | None:
    """Rewrites a shape.

    Args:
        shape: A tensor's shape.
        given: The specification that it fulfils.
        wanted: The one that it is to fulfil.

    Returns:
        The new shape; None if the tensor's does not fulfil its specification.
    """
    if len(shape) != len(given) or any(want not in (-1, dim) for want, dim in zip(given, shape, strict=True)):
        return None
    variable = iter([dim for want, dim in zip(given, shape, strict=True) if want == -1])
    return tuple(next(variable, 1) if dim == -1 else dim for dim in wanted)


def _segments(dims: Sequence[int]) -> list[int]:
    """The elements before, between and behind the variable dimensions."""
    groups = itertools.groupby(dims, lambda dim: dim == -1)
    segments = [1]
    for is_variable, group in groups:
        if is_variable:
            segments.extend(1 for _ in group)
        else:
            segments[-1] = math.prod(group)
    return segments

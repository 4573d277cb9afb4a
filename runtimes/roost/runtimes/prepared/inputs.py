"""Inputs that a model and its prepared copy are both asked about."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from roost.core.tensors import TensorSpec
from roost.runtimes.proof.dims import NotProven
from roost.runtimes.proof.samples import INTEGER_LIMITS, MAX_ELEMENTS, Rows, random_array, warm_up

_SEED = 21
_SIZES = (1, 3, 16, 64, 224, 576)
_OPEN_TOGETHER = 3
"""So many open dimensions are tried with each other's sizes; of more, all are of the same size."""


def inputs_to_try(specs: Sequence[TensorSpec], samples: Sequence[Mapping[str, Any]], root: str) -> Iterator[Rows]:
    """Inputs that the model may take, likely ones first: its own samples, then random ones of many shapes.

    Args:
        specs: The inputs; open dimensions have no names, so any two of them may have to agree.
        samples: What ``model_warmup`` of its configuration gives.
        root: The model's folder, in whose folder ``warmup`` the samples' files are.
    """
    try:
        own = warm_up(specs, samples, root)
    except NotProven:
        own = None
    if own is not None:
        yield own.rows(len(next(iter(own.inputs.values()))))
    for limit in INTEGER_LIMITS:
        for sizes in _sizes(sum(dim < 0 for spec in specs for dim in spec.shape)):
            made = _make(specs, sizes, limit)
            if made is not None:
                yield made


def _sizes(count: int) -> Iterator[tuple[int, ...]]:
    """Sizes for so many open dimensions."""
    if not count:
        yield ()
        return
    for size in _SIZES:
        yield (3, *(size,) * (count - 1))
        yield (size,) * count
    if count <= _OPEN_TOGETHER:
        yield from itertools.product(_SIZES, repeat=count)


def _make(specs: Sequence[TensorSpec], sizes: tuple[int, ...], limit: int) -> Rows | None:
    generator, left = np.random.default_rng(_SEED), iter(sizes)
    inputs: Rows = {}
    for spec in specs:
        shape = tuple(next(left) if dim < 0 else dim for dim in spec.shape)
        if math.prod(shape) > MAX_ELEMENTS:
            return None
        inputs[spec.name] = random_array(generator, spec.datatype, shape, limit)
    return inputs

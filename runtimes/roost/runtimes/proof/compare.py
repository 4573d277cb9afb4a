"""How far the answers to a row may differ when other rows are run with it, and how far they do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.runtimes.proof.samples import Array, widened

TOLERANCE_EPS: Mapping[str, float] = {"FP64": 256.0, "FP32": 256.0, "FP16": 8.0, "BF16": 8.0}
"""Per datatype, in units of its machine epsilon relative to the largest element of the row's answer.

Runtimes sum in another order where a batch has another size. Halves are computed in FP32 and rounded once, so a few
units have to do for them.
"""

_EPS: Mapping[str, float] = {"FP64": 2.0**-52, "FP32": 2.0**-23, "FP16": 2.0**-10, "BF16": 2.0**-7}


def distance_eps(datatype: str, expected: Array, found: Array) -> float:
    """How far one row's answer is from what it should be, in units of the datatype's epsilon.

    Infinity where NaN or infinite elements are not in the same places, or elements that are not floating point differ.
    """
    if expected.shape != found.shape:
        return math.inf
    if datatype not in _EPS:
        return 0.0 if bool(np.array_equal(expected, found)) else math.inf
    if datatype == "BF16":
        expected, found = widened(expected), widened(found)
    left, right = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(right[finite]).all():
        return math.inf
    return _relative(left[finite], right[finite]) / _EPS[datatype]


def _relative(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    if not left.size:
        return 0.0
    scale = max(float(np.abs(left).max()), float(np.abs(right).max()))
    difference = float(np.abs(left - right).max())
    return difference / scale if scale else 0.0


def says_anything(datatype: str, answers: Any) -> bool:
    """Whether an output has a finite element, without which comparing it means nothing."""
    if datatype not in _EPS or not answers.size:
        return True
    values = widened(answers) if datatype == "BF16" else answers
    return bool(np.isfinite(values).any())

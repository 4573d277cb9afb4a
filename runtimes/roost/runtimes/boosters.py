"""What the adapters of XGBoost and LightGBM have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from roost.core.errors import InvalidArgument, ResourceExhausted, RoostError
from roost.runtimes.failures import without_paths
from roost.runtimes.protocol import LoadSpec

_LARGE_BYTES = 1 << 20
_NO_MEMORY = re.compile(r"bad_alloc|out of memory|failed to allocate|cannot allocate", re.IGNORECASE)
_STARTS: Mapping[bytes, str] = {
    b"tree\n": "a LightGBM model",
    b"PK\x03\x04": "an archive, as skops writes it",
    b"\x80": "a pickle",
    b"binf": "XGBoost's old binary format, which current versions do not read",
}


def both_classes(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Probabilities of all classes: of two, boosters give only the second one's."""
    return np.stack((1 - scores, scores), axis=1) if scores.ndim == 1 else scores


def what_else(head: bytes) -> str:
    """What a file is that begins so, if it is a model that people mix up with others; else empty."""
    return next((what for start, what in _STARTS.items() if head.startswith(start)), "")


def load_error(error: Exception, framework: str, spec: LoadSpec) -> RoostError:
    """Why a framework has refused a file."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    # XGBoost puts a stack trace behind what it says, and time and place before it.
    reason = without_paths(re.sub(r"^\[[^\]]*\] \S+?:\d+:? *", "", lines[0].strip()) if lines else "", spec.root)
    # A small file that asks for much memory is damaged.
    is_large = os.path.getsize(spec.path) >= _LARGE_BYTES
    if isinstance(error, MemoryError) or (is_large and _NO_MEMORY.search(reason)):
        return ResourceExhausted("not enough memory to load the model")
    return InvalidArgument(f"{framework} can't load the file: {reason or type(error).__name__}")

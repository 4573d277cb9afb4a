"""Which models there are prepared copies of, and what making and having them takes: that differs by runtime.

===============  ============================  ============================================================
runtime          models                        the copy
===============  ============================  ============================================================
``onnxruntime``  all                           the optimised graph, its weights packed and mapped
``tensorflow``   ``.keras`` files              the SavedModel that each load would export anew
``sklearn``      that are to be converted      the graph for ONNX Runtime that each load would make anew
===============  ============================  ============================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KERAS_SUFFIX = ".keras"
CONVERT = "convert_to_onnx"
"""The option with which the owner of a scikit-learn model asks for ONNX Runtime."""

PROCESS_BYTES = 160 << 20
SMALL_BYTES = 64 << 10
"""Smaller models of ONNX load fast, however long one had to wait for it on a busy machine; there may be very many."""

LARGE_BYTES = 2 << 20
"""Models of ONNX of such a size may take ``WORTH_PRIVATE_BYTES`` however fast they load."""

_ASKED = "true"
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Form:
    """What is to be known of a runtime's copies.

    Attributes:
        is_mapped: Whether instances map the copy's files; else they read them.
        process_bytes: The processes that try a model, without it.
        reserved_bytes: What these may reserve besides without using it: stacks of threads, mostly.
        least_slow_bytes: Smaller models are not tried, however long their load took.
        least_bytes: Smaller models are not tried if their load was quick.
        same_bytes: What two loads of the same model differ by anyway.
        trials: How often the model and its copy are loaded to see what that takes: fewer where loads take seconds.
    """

    is_mapped: bool
    process_bytes: int
    reserved_bytes: int
    least_slow_bytes: int
    least_bytes: int
    same_bytes: int
    trials: int


FORMS: Mapping[str, Form] = {
    "onnxruntime": Form(
        is_mapped=True,
        process_bytes=PROCESS_BYTES,
        reserved_bytes=0,
        least_slow_bytes=SMALL_BYTES,
        least_bytes=LARGE_BYTES,
        same_bytes=512 << 10,
        trials=3,
    ),
    # What takes long here does so for models of any size, and a copy saves no memory.
    "tensorflow": Form(
        is_mapped=False,
        process_bytes=320 << 20,  # 290 MB were measured
        reserved_bytes=4 << 30,
        least_slow_bytes=0,
        least_bytes=_NEVER,
        same_bytes=16 << 20,
        trials=2,
    ),
    "sklearn": Form(
        is_mapped=False,
        process_bytes=160 << 20,  # 120 MB were measured
        reserved_bytes=2 << 30,
        least_slow_bytes=0,
        least_bytes=_NEVER,
        same_bytes=16 << 20,
        trials=2,
    ),
}
"""The runtimes that make copies."""


def has_copies(backend: str, path: str, options: Mapping[str, str]) -> bool:
    """Whether there are copies of a model.

    Args:
        backend: Its runtime.
        path: Its file or folder.
        options: What its runtime is told.
    """
    match backend:
        case "tensorflow":
            return path.endswith(KERAS_SUFFIX)
        case "sklearn":
            return options.get(CONVERT) == _ASKED
        case _:
            return backend in FORMS


def maps_copies(backend: str) -> bool:
    """Whether instances that are loaded from a runtime's copies map their files."""
    form = FORMS.get(backend)
    return form is None or form.is_mapped

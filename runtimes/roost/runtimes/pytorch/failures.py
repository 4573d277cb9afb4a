"""What PyTorch says when something goes wrong, as errors that a client may see."""

from __future__ import annotations

import pickle
import re

import torch
from roost.core.errors import Internal, InvalidArgument, ResourceExhausted, RoostError
from roost.runtimes.failures import shortened, without_paths, without_source
from torch._export.verifier import SpecViolationError

TORCH_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    torch.jit.Error,
    SpecViolationError,
)
"""What PyTorch raises; its errors have no class of their own."""

_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|bad_alloc", re.IGNORECASE)
_STACK = re.compile(r"\n(?:Exception raised from|C\+\+ CapturedTraceback|frame #0)")
_RAISED = re.compile(r"(?:builtins|__torch__[\w.]*)\.\w+: ?(?P<reason>.*)", re.DOTALL)
_LAST_LINE = re.compile(r"\n\w*(?:Error|Exception): (?P<reason>[^\n].*)\Z", re.DOTALL)
_SHAPES = re.compile(
    r"broadcast|dimension|shape|size|rank|channels|\baxis\b|out of (?:bounds|range)|numel|number of elements|kernel",
    re.IGNORECASE,
)


def load_error(error: Exception, root: str) -> RoostError:
    """The error for a load that PyTorch has ended.

    Args:
        error: What it has raised.
        root: The model's folder, which the text must not show.
    """
    reason, _ = _reason_of(error)
    if _NO_MEMORY.search(reason) or isinstance(error, MemoryError):
        return ResourceExhausted("not enough memory to load the model")
    return InvalidArgument(f"PyTorch can't load the model: {without_paths(reason, root)}")


def run_error(error: Exception, root: str, *, is_dynamic: bool) -> RoostError:
    """The error for a run that has failed.

    Args:
        error: What was raised.
        root: The model's folder.
        is_dynamic: Whether the request chooses shapes; only then it can be to blame for those.
    """
    reason, is_raised = _reason_of(error)
    text = without_paths(reason, root)
    if _NO_MEMORY.search(reason):
        return ResourceExhausted("not enough memory to run the model")
    if is_raised or (is_dynamic and _SHAPES.search(reason)):
        return InvalidArgument(text)
    return Internal(f"the model failed: {text}")


def _reason_of(error: Exception) -> tuple[str, bool]:
    """What PyTorch says, without the places in sources, and whether the model itself has raised it."""
    text = shortened(_STACK.split(str(error), maxsplit=1)[0].strip()) or type(error).__name__
    last = text.rsplit("\n", 1)[-1]
    if "TorchScript" in text and (raised := _RAISED.match(last)):
        return raised["reason"] or last, True
    if found := _LAST_LINE.search(text):
        text = found["reason"]
    return without_source(text), False

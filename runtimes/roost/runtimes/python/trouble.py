"""What becomes of the exceptions of a model: errors that may be shown, and a traceback in the log."""

from __future__ import annotations

import traceback

from roost.core.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted, RoostError
from roost.runtimes.failures import without_paths
from roost.runtimes.python.saying import say


def load_error(error: BaseException, root: str, what: str) -> RoostError:
    """The error that a load ends with.

    Args:
        error: What was raised.
        root: The model's folder, which texts do not show.
        what: What raised it, such as ``model.py``.
    """
    if isinstance(error, RoostError):
        return error
    if isinstance(error, MemoryError):
        return ResourceExhausted("not enough memory to load the model")
    _log(error, "loading the model failed")
    if isinstance(error, ModuleNotFoundError) and error.name:
        return InvalidArgument(f"{what}: the module '{error.name}' is not installed in the model's environment")
    if isinstance(error, SyntaxError):
        place = f", line {error.lineno}" if error.lineno else ""
        return InvalidArgument(f"{what}{place}: {error.msg}")
    return InvalidArgument(f"{what}: {_text(error, root)}")


def run_error(error: BaseException, root: str) -> RoostError:
    """The error that a run ends with."""
    if isinstance(error, RoostError):
        return error
    if isinstance(error, MemoryError):
        return ResourceExhausted("not enough memory for the run")
    _log(error, "a run failed")
    return Internal(f"the model failed: {_text(error, root)}")


def cancelled() -> Cancelled:
    """The error of a run that nobody waits for."""
    return Cancelled("the run was cancelled")


def _text(error: BaseException, root: str) -> str:
    if isinstance(error, SystemExit):
        return "it called sys.exit"
    name = type(error).__name__
    try:
        text = without_paths(str(error), root)
    except Exception:  # of the model's own class
        return name
    return f"{name}: {text}" if text else name


def _log(error: BaseException, what: str) -> None:
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception:
        trace = type(error).__name__
    say("E", f"{what}\n{trace}")

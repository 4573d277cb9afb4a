"""Makes a SavedModel of a ``.keras`` file, in a process of its own: that takes the Python part of TensorFlow.

It runs what the file says, so it is only for models that may bring code.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from roost.core.errors import Cancelled, InvalidArgument
from roost.runtimes.child import die_with_parent, ignore_terminal
from roost.runtimes.failures import without_paths
from roost.runtimes.protocol import Cancellation

_MAX_REASON_BYTES = 4096


def export_keras(path: str, folder: str, cancellation: Cancellation) -> None:
    """Has a process write the SavedModel.

    Args:
        path: The ``.keras`` file.
        folder: An empty folder for the SavedModel.
        cancellation: Ends the process.

    Raises:
        InvalidArgument: If the file can't be read or exported.
        Cancelled: If that was no longer wanted.
    """
    command = [sys.executable, "-P", "-m", __name__, path, folder, str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        cancellation.on_cancel(process.kill)
        said, _ = process.communicate()
    if cancellation.cancelled:
        raise Cancelled("the load was cancelled")
    if process.returncode:
        reason = without_paths(said[:_MAX_REASON_BYTES].decode("utf-8", "replace"), os.path.dirname(path))
        raise InvalidArgument(f"it can't be exported: {reason or f'the process ended with {process.returncode}'}")


def main(argv: Sequence[str]) -> NoReturn:
    """Exports: a path, a folder and the parent's process id; says on standard output why it could not."""
    path, folder, parent = argv
    ignore_terminal()
    die_with_parent(int(parent))
    reasons = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)  # what the model prints must not get into the reason
    os.environ["KERAS_BACKEND"] = "tensorflow"
    status = 1
    try:
        saving = importlib.import_module("keras.saving")
        saving.load_model(path, compile=False, safe_mode=False).export(folder, format="tf_saved_model", verbose=False)
        status = 0
    except Exception as error:
        reasons.write(f"{type(error).__name__}: {error}")
        reasons.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])

"""How a failure of a model becomes an error frame: what the client may read goes there, the rest to the log."""

from __future__ import annotations

import logging
import os
import re
import uuid

from roost.core.errors import Code, RoostError
from roost.core.frames import error_frame

_log = logging.getLogger(__name__)

_MAX_REASON_CHARS = 1000
_ABSOLUTE_PATH = re.compile(r"""(?<![\w.])/[^\s"'<>|:,;()\[\]]+""")
_BUILD_ROOT = "onnxruntime_src"


def failure_frame(request: int, error: BaseException, what: str) -> bytes:
    """Makes the ERROR frame for an exception that a request ended with.

    Args:
        request: The request's id on the link.
        error: What was raised; anything but our own errors and MemoryError is a defect and is logged with an id.
        what: What failed, for the message, such as ``the run``.
    """
    if isinstance(error, RoostError):
        return error_frame(request, error.code, error.message)
    if isinstance(error, MemoryError):
        return error_frame(request, Code.RESOURCE_EXHAUSTED, f"not enough memory for {what}")
    error_id = uuid.uuid4().hex[:8]
    _log.error("%s failed unexpectedly (error %s)", what, error_id, exc_info=error)
    return error_frame(request, Code.INTERNAL, f"{what} failed unexpectedly (error {error_id} in the log)")


def without_paths(text: str, root: str) -> str:
    """A runtime's message without the machine's paths, on one line, of bounded length.

    Graph nodes are often named like paths (``/encoder/layer.0/MatMul``), and a reader needs those names; so besides
    the model's own folder only what begins with a top-level folder of this machine is cut down to its last part.
    """
    folders = {folder.rstrip("/") for folder in (root, os.path.realpath(root))} - {""}
    for folder in sorted(folders, key=len, reverse=True):  # one may be part of the other
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}(/|(?![\w.-]))", "", text)
    text = " ".join(_ABSOLUTE_PATH.sub(_shorten, text).split())
    return text if len(text) <= _MAX_REASON_CHARS else text[:_MAX_REASON_CHARS] + "..."


def _shorten(match: re.Match[str]) -> str:
    path = match.group()
    top = path.split("/", 2)[1]
    if top == _BUILD_ROOT or os.path.isdir(f"/{top}"):
        return path.rstrip("/").rsplit("/", 1)[1]
    return path

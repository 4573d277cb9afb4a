"""How a failure of a model becomes an error frame: what the client may read goes there, the rest to the log."""

from __future__ import annotations

import logging
import os
import re
import uuid

from roost.core.errors import Code, RoostError
from roost.core.exhaustion import is_exhausted, what_is_missing
from roost.core.frames import error_frame

_log = logging.getLogger(__name__)

_MAX_REASON_CHARS = 1000
_MAX_TEXT_CHARS = 4096
"""Of a longer text beginning and end are looked at: it may be a model's, and made so that looking takes for ever."""

_ABSOLUTE_PATH = re.compile(r"""(?<![\w.])/[^\s"'<>|:,;()\[\]]+""")
_BUILD_ROOT = "onnxruntime_src"
_LOCATION = re.compile(r"(?<![\w+-])(?P<folders>/(?:[\w.+-]+/)*)?[\w+-]+\.(?:cc|cpp|cu|cuh|h|hpp):\d+\s+")
_FUNCTION_NAME = re.compile(r"(?:[\w~]+::)*(?:operator\(\)|~?\w+)\s+")
_SIGNATURE_END = re.compile(r"(?:\s*(?:const|noexcept|&&?)(?![\w:]))*\s*")
_TEMPLATE_ARGUMENTS = re.compile(r"\[(?:with )?\w+ = [^\]]*\]\s*")
_CONDITION = re.compile(r".{1,300}? was (?:false|true)\. (?=\S)")


def failure_frame(request: int, error: BaseException, what: str) -> bytes:
    """Makes the ERROR frame for an exception that a request ended with.

    Args:
        request: The request's id on the link.
        error: What was raised; anything but our own errors and want of memory, descriptors or threads is a defect and
            is logged with an id.
        what: What failed, for the message, such as ``the run``.
    """
    if isinstance(error, RoostError):
        return error_frame(request, error.code, error.message)
    if isinstance(error, MemoryError):
        return error_frame(request, Code.RESOURCE_EXHAUSTED, f"not enough memory for {what}")
    if is_exhausted(error):
        return error_frame(request, Code.RESOURCE_EXHAUSTED, f"not enough {what_is_missing(error)} for {what}")
    error_id = uuid.uuid4().hex[:8]
    _log.error("%s failed unexpectedly (error %s)", what, error_id, exc_info=error)
    return error_frame(request, Code.INTERNAL, f"{what} failed unexpectedly (error {error_id} in the log)")


def without_paths(text: str, root: str) -> str:
    """A runtime's message without the machine's paths, on one line, of bounded length.

    Graph nodes are often named like paths (``/encoder/layer.0/MatMul``), and a reader needs those names; so besides
    the model's own folder only what begins with a top-level folder of this machine is cut down to its last part.
    """
    text = shortened(text)
    folders = {folder.rstrip("/") for folder in (root, os.path.realpath(root))} - {""}
    for folder in sorted(folders, key=len, reverse=True):  # one may be part of the other
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}(/|(?![\w.-]))", "", text)
    text = " ".join(_ABSOLUTE_PATH.sub(_shorten, text).split())
    return text if len(text) <= _MAX_REASON_CHARS else text[:_MAX_REASON_CHARS] + "..."


def shortened(text: str) -> str:
    """Beginning and end of a text that is too long to look through."""
    half = _MAX_TEXT_CHARS // 2
    return text if len(text) <= _MAX_TEXT_CHARS else f"{text[:half]} ... {text[-half:]}"


def without_source(text: str) -> str:
    """A message without the places in C++ sources that runtimes put before it, and the checks that failed there.

    ``.../safeint.h:17 static void f<T>::g() Integer overflow`` becomes ``Integer overflow``. With a whole path comes
    the function's whole signature, with a bare file name only the function's name.
    """
    text = shortened(text)
    parts, position = [], 0
    while location := _LOCATION.search(text, position):
        parts.append(text[position : location.start()])
        position = _after_function(text, location.end(), is_signature=location["folders"] is not None)
        if condition := _CONDITION.match(text, position):
            position = condition.end()
    return " ".join([*parts, text[position:]]) if parts else text


def _after_function(text: str, start: int, *, is_signature: bool) -> int:
    """Where the message begins behind a function that may begin at ``start``."""
    if not is_signature:
        name = _FUNCTION_NAME.match(text, start)
        return name.end() if name else start
    end = _parameters_end(text, start)
    for pattern in (_SIGNATURE_END, _TEMPLATE_ARGUMENTS):
        if found := pattern.match(text, end):
            end = found.end()
    return end


def _parameters_end(text: str, start: int) -> int:
    """Where the parameter list of a signature ends; ``start`` if there is none."""
    depth = 0
    for index in range(start, len(text)):
        char = text[index]
        if char in "<([{":
            depth += 1
        elif char in ")]}" or (char == ">" and text[index - 1] != "-"):
            depth -= 1
        # Parentheses are also part of names: (anonymous namespace)::f(int), f(int)::<lambda()>, operator()(int).
        if char == ")" and depth == 0 and not text.startswith(("::", "(", " const::"), index + 1):
            return index + 1
        if depth < 0:
            break
    return start


def _shorten(match: re.Match[str]) -> str:
    path = match.group()
    top = path.split("/", 2)[1]
    if top == _BUILD_ROOT or os.path.isdir(f"/{top}"):
        return path.rstrip("/").rsplit("/", 1)[1]
    return path

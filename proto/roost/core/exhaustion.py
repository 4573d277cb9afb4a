"""What a process or the machine has run out of for a while, which says nothing of what was to be done with it."""

from __future__ import annotations

import errno

_NO_MEMORY = frozenset({errno.ENOMEM})
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
_NO_THREAD = "can't start new thread"  # for which Python has no class
EXHAUSTED = _NO_MEMORY | _NO_DESCRIPTORS


def is_exhausted(error: BaseException) -> bool:
    """Whether the system has refused something for want of file descriptors, memory or threads."""
    return (isinstance(error, OSError) and error.errno in EXHAUSTED) or _is_want_of_threads(error)


def what_is_missing(error: BaseException) -> str:
    """What there was not enough of, for a message: ``not enough ... for``."""
    if _is_want_of_threads(error):
        return "threads"
    return "file descriptors" if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS else "memory"


def _is_want_of_threads(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error) == _NO_THREAD

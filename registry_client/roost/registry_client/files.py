"""Reading from a repository without surprises: regular files only, and nothing that can block for ever."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from roost.core.errors import FailedPrecondition, ResourceExhausted, RoostError
from roost.core.exhaustion import is_exhausted


def shown(name: str) -> str:
    """A file name as error texts may carry it: valid UTF-8, printable, not too long."""
    try:
        text = os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair: no name on any disk, but clients send it
        text = name.encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 200 else text[:200] + "..."


def reason(error: OSError) -> str:
    """What the system says of a failure, without the path that ``str(error)`` has in it."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


def unreadable(what: str, error: OSError) -> RoostError:
    """The error for what can't be read: that descriptors or memory are short is no fault of the files."""
    kind = ResourceExhausted if is_exhausted(error) else FailedPrecondition
    return kind(f"{what} can't be read: {reason(error)}")


def is_plain_file_name(name: str) -> bool:
    """Whether a name from a configuration can only mean a file, and no hidden one, of the folder it is joined to."""
    return bool(name) and "/" not in name and not name.startswith(".") and name.isprintable() and len(name) <= 255


@contextmanager
def open_regular(path: str, name: str) -> Iterator[tuple[int, os.stat_result]]:
    """Opens a regular file for reading and yields its descriptor and status.

    A FIFO without a writer would block ``open`` for ever and a device may do anything when read, so the
    descriptor is opened without blocking and refused unless a regular file is behind it.

    Args:
        path: Where the file is.
        name: What error texts call it.

    Raises:
        FailedPrecondition: If it can't be opened or is not a regular file.
        ResourceExhausted: If there is no descriptor for it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise unreadable(f"'{shown(name)}'", error) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FailedPrecondition(f"'{shown(name)}' is not a regular file")
        yield descriptor, status
    finally:
        os.close(descriptor)


def read_small_file(path: str, name: str, limit_bytes: int) -> bytes:
    """Reads a whole regular file that must not be larger than ``limit_bytes``.

    Raises:
        FailedPrecondition: If it can't be read, is not a regular file, or is too large.
        ResourceExhausted: If there is no descriptor for it.
    """
    with open_regular(path, name) as (descriptor, _):
        parts: list[bytes] = []
        left = limit_bytes + 1
        while left > 0:
            try:
                part = os.read(descriptor, min(left, 1 << 20))
            except OSError as error:
                raise unreadable(f"'{shown(name)}'", error) from None
            if not part:
                return b"".join(parts)
            parts.append(part)
            left -= len(part)
    raise FailedPrecondition(f"'{shown(name)}' is larger than the limit of {limit_bytes} bytes")

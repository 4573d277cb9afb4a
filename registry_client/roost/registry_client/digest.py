"""The digest of a version's files, by which everything learned about them is remembered.

A file's own digest is cached by (path, inode, size, modification time), so a file that did not change is
read once in its life. Before a freshly written file is read, the clock tick in which it was written must
be over: otherwise it could be changed again within the same tick, without the cache noticing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from roost.core.errors import FailedPrecondition
from roost.registry_client.files import open_regular, shown, unreadable

CONFIG_FILE = "config.pbtxt"
SETTINGS_FILE = "model-settings.json"
CONFIG_FILES = frozenset({CONFIG_FILE, SETTINGS_FILE})
MAX_FILES = 10_000
MAX_DEPTH = 16
CHUNK_BYTES = 1 << 20

# File systems of Linux stamp files with the kernel's coarse clock, which moves at least every 10 ms.
_TICK_NS = 20_000_000
_DOMAIN = b"roost artifact 1\n"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_LENGTH = struct.Struct("<Q")


class DigestCache(Protocol):
    """Remembers digests of single files; both methods may block."""

    def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
        """The digest stored for exactly this state of the file, or None."""
        ...

    def put_file_digest(self, path: str, inode: int, size: int, mtime_ns: int, digest: str) -> None:
        """Stores the digest for this state of the file."""
        ...


class FileStamp(NamedTuple):
    """What tells one state of a file from another without reading it; ``name`` is relative to the root."""

    name: str
    inode: int
    size: int
    mtime_ns: int


Stamp = tuple[FileStamp, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """The files of one version, as a runtime reads them.

    Attributes:
        path: The model file.
        root: The folder that it and its external data live in.
        digest: SHA-256 (hex) over names and contents of all files below ``root`` that belong to the version.
        size_bytes: Sum of the files' sizes.
        stamp: Cheap identity: a changed stamp means changed files.
    """

    path: str
    root: str
    digest: str
    size_bytes: int
    stamp: Stamp


def stamp_files(root: str) -> Stamp:
    """Lists all files below a folder, sorted by name, without opening them.

    Hidden files and folders and the folder's own configuration are left out. Links are followed.

    Raises:
        FailedPrecondition: If something is not a regular file or does not resolve, or if the folder is too
            deep, too full or contains itself.
        ResourceExhausted: If there is no descriptor for a folder.
    """
    files: list[FileStamp] = []
    for position, item in enumerate(_walk(root, "", frozenset())):
        if position >= MAX_FILES:
            raise FailedPrecondition(f"more than {MAX_FILES} files and folders in one version")
        if item is not None:
            files.append(item)
    return tuple(sorted(files, key=lambda file: os.fsencode(file.name)))


def digest_files(root: str, stamp: Stamp, cache: DigestCache) -> str:
    """Computes the digest of the files of a stamp: over their sorted names, sizes and own digests.

    Raises:
        FailedPrecondition: If a file can't be read or is not what the stamp says, any more.
        ResourceExhausted: If there is no descriptor for one.
    """
    total = hashlib.sha256(_DOMAIN)
    for file in stamp:
        name = os.fsencode(file.name)
        total.update(_LENGTH.pack(len(name)) + name + _LENGTH.pack(file.size))
        total.update(bytes.fromhex(_file_digest(root, file, cache)))
    if stamp_files(root) != stamp:
        raise FailedPrecondition("the files changed while they were read; try again")
    return total.hexdigest()


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[FileStamp | None]:
    """Yields each file, and None for each folder, so that the caller can count both.

    ``above`` are the folders on the way here: one of them again means a link in a circle.
    """
    status = _status(folder, prefix or ".")
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise FailedPrecondition(f"folder '{shown(prefix)}' links to a folder that contains it")
    if len(above) >= MAX_DEPTH:
        raise FailedPrecondition(f"folder '{shown(prefix)}' is deeper than {MAX_DEPTH} levels")
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise unreadable(f"folder '{shown(prefix or '.')}'", error) from None
    for name in names:
        if name.startswith(".") or (not prefix and name in CONFIG_FILES):
            continue
        path = os.path.join(folder, name)
        relative = f"{prefix}/{name}" if prefix else name
        status = _status(path, relative)
        if stat.S_ISDIR(status.st_mode):
            yield None
            yield from _walk(path, relative, above | {identity})
        elif stat.S_ISREG(status.st_mode):
            yield FileStamp(relative, status.st_ino, status.st_size, status.st_mtime_ns)
        else:
            raise FailedPrecondition(f"'{shown(relative)}' is not a regular file")


def _status(path: str, name: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise unreadable(f"'{shown(name)}'", error) from None


def _file_digest(root: str, file: FileStamp, cache: DigestCache) -> str:
    path = os.path.join(root, file.name)
    # Stores keep text as UTF-8, file names may be any bytes.
    key = os.fsencode(path).decode("utf-8", "backslashreplace")
    known = cache.get_file_digest(key, file.inode, file.size, file.mtime_ns)
    if known is not None and _DIGEST.match(known):
        return known
    _await_tick(file.mtime_ns)
    digest = _hash_file(path, file)
    cache.put_file_digest(key, file.inode, file.size, file.mtime_ns, digest)
    return digest


def _hash_file(path: str, file: FileStamp) -> str:
    result = hashlib.sha256()
    buffer = bytearray(min(CHUNK_BYTES, max(file.size, 1)))
    view = memoryview(buffer)
    read = 0
    with open_regular(path, file.name) as (descriptor, before):
        try:
            # One byte more than expected shows that a file grows, and ends the reading of one that grows for ever.
            while read <= file.size and (count := os.readv(descriptor, [buffer])):
                result.update(view[:count])
                read += count
            after = os.fstat(descriptor)
        except OSError as error:
            raise unreadable(f"'{shown(file.name)}'", error) from None
    states = {(file.inode, file.size, file.mtime_ns), _state(before), _state(after)}
    if len(states) > 1 or read != file.size:
        raise FailedPrecondition(f"'{shown(file.name)}' changed while it was read; try again")
    return result.hexdigest()


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _await_tick(mtime_ns: int) -> None:
    left_ns = mtime_ns + _TICK_NS - time.time_ns()
    # More than a tick ahead is a wrong clock, not a fresh file.
    if 0 < left_ns <= _TICK_NS:
        time.sleep(left_ns / 1e9)

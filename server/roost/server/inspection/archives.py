"""What is wrong with an archive: links, paths that lead out of it, far more in it than it weighs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, NamedTuple, cast

from roost.core.errors import InvalidArgument
from roost.runtimes.archive_limits import FREE_BYTES, MAX_ENTRIES, MAX_RATIO, check_sizes

MAX_READ_BYTES = 256 << 20

ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What reading a damaged zip archive may raise."""

_SHOWN_CHARACTERS = 80
_MAX_HEADER_BYTES = 1 << 20


class Entry(NamedTuple):
    """A file or folder in an archive."""

    name: str
    size_bytes: int
    is_plain: bool


class ZipArchive:
    """A zip archive whose entries lie in one folder, as PyTorch writes them.

    Args:
        archive: The file, open.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}

    def get_all_records(self) -> list[str]:
        """The names of all entries, without their folder."""
        return list(self._entries)

    def get_record_size(self, name: str) -> int:
        """How many bytes an entry holds, as the archive says it.

        Raises:
            RuntimeError: If there is none.
        """
        return self._entry(name).file_size

    def get_record(self, name: str) -> bytes:
        """What an entry holds.

        Raises:
            RuntimeError: If there is none.
            ValueError: If it is too large, damaged or packed in a way of its own.
        """
        info = self._entry(name)
        if info.file_size > MAX_READ_BYTES:
            raise ValueError(f"its entry '{_shown(name)}' is too large")
        try:
            return self._archive.read(info)
        except ZIP_ERRORS as error:
            raise ValueError(f"its entry '{_shown(name)}' can't be read: {error}") from None

    def _entry(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._entries[name]
        except KeyError:
            raise RuntimeError(f"it has no entry '{_shown(name)}'") from None


def problems_of_zip(archive: zipfile.ZipFile, size_bytes: int) -> Iterator[str]:
    """What is wrong with a zip archive of a size."""
    entries = []
    for info in archive.infolist():
        mode = info.external_attr >> 16
        is_plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        entries.append(Entry(info.filename, info.file_size, is_plain))
    yield from problems_of(entries, size_bytes)


@contextmanager
def open_tar(path: str) -> Iterator[tarfile.TarFile]:
    """Opens a tar archive, packed or not, to be read through.

    Raises:
        tarfile.TarError: If it is none.
    """
    with (
        open(path, "rb") as file,
        _unpacked(file) as unpacked,
        tarfile.open(fileobj=cast(IO[bytes], _InPieces(unpacked)), mode="r:") as archive,
    ):
        yield archive


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    """What is in a file, which may be packed."""
    head = file.read(6)
    file.seek(0)
    # By how it begins: tried on anything else, each way of unpacking may go through all of a file that never ends.
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    return lzma.LZMAFile(file) if head.startswith(b"\xfd7zXZ") else file


class _InPieces(io.RawIOBase):
    """A file of which nobody takes much at once: of a header, ``tarfile`` takes as much as it says that it has."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        """Reads so many bytes.

        Raises:
            tarfile.ReadError: If they are too many.
        """
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("it has a header that is too large")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """See ``io.IOBase``."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See ``io.IOBase``."""
        return self._file.tell()


def problems_of_tar(archive: tarfile.TarFile, size_bytes: int) -> Iterator[str]:
    """What is wrong with a tar archive of a size; it is read through for that, and nothing is unpacked."""
    entries, total_bytes = [], 0
    for info in archive:  # whoever reads the next entry has to unpack this one
        entries.append(Entry(info.name, info.size, info.isreg() or info.isdir()))
        total_bytes += info.size
        if len(entries) > MAX_ENTRIES or total_bytes > max(FREE_BYTES, MAX_RATIO * size_bytes):
            break
    yield from problems_of(entries, size_bytes)


def problems_of(entries: list[Entry], size_bytes: int) -> Iterator[str]:
    """What is wrong with entries of an archive of a size."""
    try:
        check_sizes((entry.size_bytes for entry in entries), size_bytes)
    except InvalidArgument as error:
        yield error.message
    names = [entry.name for entry in entries]
    outside = [name for name in names if _leads_out(name)]
    if outside:
        yield f"the archive has an entry that leads out of it: '{_shown(outside[0])}'"
    others = [entry.name for entry in entries if not entry.is_plain]
    if others:
        yield f"the archive has an entry that is a link or a device: '{_shown(others[0])}'"
    if len(set(names)) < len(names):
        yield "the archive has two entries of the same name"


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or name[1:2] == ":"


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)[:_SHOWN_CHARACTERS]

"""Regions of POSIX shared memory that clients register: tensors are read from and written to them by name.

The bytes are copied with reads and writes of the file, never mapped: whoever owns the memory may shrink it at any time,
which would end a process that has it mapped. Regions are no boundary between clients: each of them can read and write
what any other has registered.
"""

from __future__ import annotations

import logging
import os
import resource
import stat
from pathlib import Path
from typing import NoReturn

from roost.core.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RoostError,
    Unimplemented,
)
from roost.core.requests import RegionSlice
from roost.core.tensors import Buffer
from roost.server.data_plane_protocol import RegionStatus

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
MAX_REGIONS = 4096
MAX_NAME_CHARS = 255
_MAX_KEY_BYTES = 255
# Memory of servers: Triton's Python backend, and whatever Roost itself may come to keep there.
_RESERVED = ("triton_python_backend_shm_region_", "roost")


class Region:
    """A registered region. Its file stays open as long as anyone refers to it, registered or not.

    Copies may be made in any thread; they block as long as copying memory takes.
    """

    __slots__ = ("_descriptor", "status")

    def __init__(self, status: RegionStatus, descriptor: int) -> None:
        self.status = status
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def object_bytes(self) -> int:
        """The size of the whole object that the region is in, now."""
        return os.fstat(self._descriptor).st_size

    def check(self, part: RegionSlice) -> None:
        """Checks that a part lies inside the region.

        Raises:
            InvalidArgument: If it does not.
        """
        name, size_bytes = self.status.name, self.status.byte_size
        if not 0 <= part.offset < size_bytes:
            raise InvalidArgument(f"Invalid offset for shared memory region: '{name}'")
        if part.byte_size < 0 or part.offset + part.byte_size > size_bytes:
            raise InvalidArgument(f"Invalid offset + byte size for shared memory region: '{name}'")

    def read(self, part: RegionSlice, memory: memoryview) -> None:
        """Copies a part that was checked to memory of its size.

        Raises:
            InvalidArgument: If the region has become too small, or can't be read.
        """
        position = self.status.offset + part.offset
        while memory.nbytes:  # more than once only beyond 2 GiB
            try:
                count = os.preadv(self._descriptor, [memory], position)
            except OSError as error:
                self._fail("read", error)
            if not count:
                self._refuse_truncated()
            position += count
            memory = memory[count:]

    def write(self, part: RegionSlice, data: Buffer) -> None:
        """Copies bytes, no more than its size, to the beginning of a part that was checked.

        Raises:
            InvalidArgument: If the memory has become too small, or can't be written.
        """
        view = memoryview(data).cast("B")
        position = self.status.offset + part.offset
        try:
            # A write beyond the end would make the client's object larger.
            if self.object_bytes() < position + view.nbytes:
                self._refuse_truncated()
            while view.nbytes:
                written = os.pwrite(self._descriptor, view, position)
                position += written
                view = view[written:]
        except OSError as error:
            self._fail("written", error)

    def _refuse_truncated(self) -> NoReturn:
        raise InvalidArgument(f"shared memory region '{self.status.name}' was truncated: it ends before its data")

    def _fail(self, what: str, error: OSError) -> NoReturn:
        log.info("shared memory region %r can't be %s: %s", self.status.name, what, error.strerror)
        raise InvalidArgument(f"shared memory region '{self.status.name}' can't be {what}") from None


class ClientMemory:
    """The regions that clients have registered. Implements ``data_plane_protocol.SharedMemory``.

    Args:
        offered: Whether clients may register regions at all.
        folder: Where the system keeps POSIX shared memory.
        max_regions: How many there may be, since each keeps a file open.
    """

    def __init__(self, *, offered: bool, folder: Path = FOLDER, max_regions: int | None = None) -> None:
        self.offered = offered
        self._folder = folder
        self._max_regions = _region_limit() if max_regions is None else max_regions
        self._regions: dict[str, Region] = {}

    def status(self, name: str = "") -> list[RegionStatus]:
        """See ``SharedMemory``."""
        if name:
            return [self.region(name).status]
        return [self._regions[key].status for key in sorted(self._regions)]

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """See ``SharedMemory``."""
        self._require_offered()
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise InvalidArgument(f"the name of a shared memory region has 1 to {MAX_NAME_CHARS} characters")
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        file_name = _file_name(name, key)
        if byte_size <= 0:
            raise InvalidArgument(f"shared memory region '{name}' needs a byte_size of more than 0")
        if offset < 0:
            raise InvalidArgument(f"Invalid offset for shared memory region: '{name}'")
        if len(self._regions) >= self._max_regions:
            raise ResourceExhausted(f"there are {self._max_regions} shared memory regions, as many as there may be")
        region = Region(RegionStatus(name, key, offset, byte_size), self._open(name, file_name))
        if offset + byte_size > region.object_bytes():
            raise InvalidArgument(
                f"failed to register shared memory region '{name}': "
                "Invalid offset + byte size, it ends after the end of the shared memory object"
            )
        self._regions[name] = region

    def unregister(self, name: str = "") -> None:
        """See ``SharedMemory``; who uses a region at this time keeps it until they are done."""
        self._require_offered()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def region(self, name: str) -> Region:
        """A region to copy from or to.

        Raises:
            NotFound: If there is none of that name.
        """
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{name}'")
        return region

    def _require_offered(self) -> None:
        if not self.offered:
            raise Unimplemented(
                "shared memory is not offered to clients: start the server with --allow-client-shm on a machine "
                "whose clients you trust"
            )

    def _open(self, name: str, file_name: str) -> int:
        """Opens a shared-memory object.

        Why one can't be opened goes to the log alone: clients could find out what else there is on this machine.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                descriptor = os.open(file_name, flags, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            log.info("shared memory region %r: %r can't be opened: %s", name, file_name, error.strerror)
            raise _not_opened(name) from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            log.info("shared memory region %r: %r is not shared memory", name, file_name)
            raise _not_opened(name)
        return descriptor


class NoGpuMemory:
    """CUDA memory of clients on a server that has no GPU. Implements ``data_plane_protocol.CudaSharedMemory``."""

    def status(self, name: str = "") -> list[RegionStatus]:
        """See ``CudaSharedMemory``."""
        if name:
            raise NotFound(f"Unable to find cuda shared memory region: '{name}'")
        return []

    def register(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """See ``CudaSharedMemory``."""
        raise InvalidArgument(f"failed to register CUDA shared memory region '{name}': the server has no GPU")

    def unregister(self, name: str = "") -> None:
        """See ``CudaSharedMemory``; there is nothing to forget."""


def _file_name(name: str, key: str) -> str:
    """The name of the file that the system keeps an object in.

    Raises:
        InvalidArgument: If the key is no name of such an object, or one that is not for clients.
    """
    if not key:
        raise InvalidArgument(f"shared memory region '{name}' needs a key: the name of a shared memory object")
    file_name = key.removeprefix("/")
    if file_name in ("", ".", "..") or "/" in file_name or "\0" in file_name or not _fits(file_name):
        raise InvalidArgument(f"the key of shared memory region '{name}' is not the name of a shared memory object")
    for prefix in _RESERVED:
        if file_name.startswith(prefix):
            raise InvalidArgument(
                f"the key of shared memory region '{name}' starts with the reserved prefix '{prefix}'"
            )
    return file_name


def _fits(file_name: str) -> bool:
    try:
        return len(file_name.encode()) <= _MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False


def _not_opened(name: str) -> RoostError:
    return NotFound(f"Unable to open shared memory region: '{name}'")


def _region_limit() -> int:
    """Most files that the process may open are for connections."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_REGIONS if files == resource.RLIM_INFINITY else min(MAX_REGIONS, files // 4)

"""Steps on the disk that the cache is made of: each is whole or did not happen, whatever ends the process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """What tells this run of the system from all others; the same until the machine is started again."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


def private_folder(path: Path) -> None:
    """Makes a folder that is its owner's alone, or checks that one is.

    Raises:
        OSError: If it can't be made, or belongs to somebody else or lets others write.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(1, "the folder belongs to another user or lets others write", str(path))


def sync(path: Path) -> None:
    """Has a file's contents, or a folder's names, written to the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, mode: int = 0o400) -> None:
    """Writes a file under another name, has it on the disk and gives it its name."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_whole(path: Path) -> None:
    """Removes a folder: nobody finds it half removed under its name. One that has gone is fine."""
    gone = path.with_name(f"gone-{secrets.token_hex(8)}")
    try:
        path.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and in the folders in it; none if it has gone."""
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)


def file_sha256(path: Path) -> str:
    """The checksum of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for and holds a lock that all processes share; it ends with its process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Locks a file or folder that exists and returns the descriptor that holds the lock; None if somebody else does.

    Raises:
        FileNotFoundError: If it has gone, perhaps just now.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_named(descriptor, path):
            raise FileNotFoundError(2, "it has gone", str(path))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_named(descriptor: int, path: Path) -> bool:
    """Whether what is open still has that name."""
    held = os.fstat(descriptor)
    try:
        named = path.stat()
    except OSError:
        return False
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)

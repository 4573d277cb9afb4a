"""The folder of prepared copies, which servers and ``roost prepare`` use at the same time.

Each copy is a folder named by its key, which appears whole or not at all. Any of it may be wiped or damaged at any
moment: what can't be read is no copy, and whoever needs one loads the model itself. ::

    <folder>/<key>/manifest.json   what is known of a model, with checksums; its time is that of the last use
             <key>/...             the files of its copy, if it has one; some are in folders
             <key>/checked         the boot in which the checksums were last found right
             making-<key>/         a copy in the making; locked as long as somebody works on it
             users/                one locked file for each server that runs: one of another boot is left by a crash
             suspect               the boot before which the machine crashed
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from roost.core.exhaustion import is_exhausted
from roost.runtimes.prepared.folders import (
    boot_id,
    file_sha256,
    files_below,
    is_named,
    locked,
    private_folder,
    remove_whole,
    sync,
    try_lock,
    write_whole,
)
from roost.runtimes.prepared.manifest import MANIFEST, MAX_BYTES, FileRecord, Manifest, parse_manifest

_log = logging.getLogger(__name__)

CHECKED = "checked"
_SUSPECT = "suspect"
_USERS = "users"
_LOCK = "lock"
_MAKING = "making-"
_GONE = "gone-"
_KEY = re.compile(r"[0-9a-f]{64}\Z")
_BLOCK_BYTES = 4096


class Busy(Exception):
    """Another process is at work on the same copy."""


class TooLarge(Exception):
    """A copy is larger than the cache may be."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that can be used now.

    Attributes:
        key: Its key.
        path: The file that the runtime is given.
        root: The folder that all its files are in.
        manifest: What is known of it.
    """

    key: str
    path: str
    root: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class _Kept:
    key: str
    size_bytes: int
    used_at: float


class CopyCache:
    """See the module. All methods may block on the disk, and any thread may call them.

    Args:
        folder: Where it is; made if it is missing.
        limit_bytes: What all copies together may take.

    Raises:
        OSError: If the folder can't be made, or is not its user's alone.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder.absolute()
        self.limit_bytes = limit_bytes
        self._boot = boot_id()
        private_folder(self.folder)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Says that a server runs, so that the next one knows whether this one, or the machine, crashed."""
        users = self.folder / _USERS
        private_folder(users)
        self._look_for_crash(users)
        mine = users / secrets.token_hex(8)
        write_whole(mine, self._boot.encode())
        try:
            held = try_lock(mine)
        except FileNotFoundError:  # a server that starts at the same moment has taken it for a leftover
            held = None
        try:
            yield
        finally:
            if held is not None:
                os.close(held)
            with contextlib.suppress(OSError):
                mine.unlink(missing_ok=True)

    def find(self, key: str) -> Copy | None:
        """The copy with a key, if it is there, whole by the sizes of its files, and not suspect; counts as a use."""
        manifest = self.look_up(key)
        if manifest is None or manifest.reason:
            return None
        home = self.folder / key
        try:
            for name, record in manifest.files.items():
                status = (home / name).lstat()
                if status.st_size != record.size_bytes or not stat.S_ISREG(status.st_mode):
                    raise ValueError(f"'{name}' has another size")
            if self._is_suspect() and not self._is_checked(key):
                return None
            os.utime(home / MANIFEST)
        except (OSError, ValueError) as error:
            self._drop(key, error)
            return None
        return Copy(key, str(home / manifest.entry), str(home), manifest)

    def look_up(self, key: str) -> Manifest | None:
        """What is known of a model, a copy or the reason why it has none; None if it was not tried, or is damaged."""
        try:
            return self._manifest(key)
        except (OSError, ValueError) as error:
            self._drop(key, error)
            return None

    @contextlib.contextmanager
    def making(self, key: str) -> Iterator[Path]:
        """An empty folder for a new copy, this process's alone until the end; then it is removed, unless kept.

        Raises:
            Busy: If another process has it.
            OSError: If it can't be made.
        """
        private_folder(self.folder)  # it may have been wiped
        home, held = self._lock_making(key)
        try:
            yield home
        finally:
            if is_named(held, home):  # else it was kept, and another process may have begun anew
                remove_whole(home)
            os.close(held)

    def keep(self, key: str, made: Path, manifest: Manifest) -> None:
        """Gives what ``making`` made, with a manifest, its place; removes what was used longest ago to make room.

        Raises:
            TooLarge: If it alone is more than the limit.
            OSError: If the disk is full or broken; nothing is kept.
        """
        if manifest.size_bytes > self.limit_bytes:
            raise TooLarge
        for name in manifest.files:
            (made / name).chmod(0o400)
            sync(made / name)
        write_whole(made / MANIFEST, manifest.dump())
        write_whole(made / CHECKED, self._boot.encode())
        for folder in {made, *(parent for name in manifest.files for parent in (made / name).parents)}:
            if folder.is_relative_to(made):
                sync(folder)
        with locked(self.folder / _LOCK):
            remove_whole(self.folder / key)
            made.rename(self.folder / key)
        sync(self.folder)
        self.trim(key)

    def records(self, made: Path) -> dict[str, FileRecord]:
        """Sizes and checksums of all files of a folder."""
        return {
            path.relative_to(made).as_posix(): FileRecord(path.stat().st_size, file_sha256(path))
            for path in sorted(files_below(made))
        }

    def trim(self, keep: str = "") -> int:
        """Removes what was used longest ago until the rest fits, and what dead processes left; returns how many went.

        Copies that are loaded stay in memory: files without a name live as long as somebody maps them.
        """
        removed = 0
        with locked(self.folder / _LOCK):
            self._sweep()
            kept = sorted(self._kept(), key=lambda entry: entry.used_at)
            total_bytes = sum(entry.size_bytes for entry in kept)
            for entry in kept:
                if total_bytes <= self.limit_bytes:
                    break
                if entry.key != keep:
                    remove_whole(self.folder / entry.key)
                    total_bytes -= entry.size_bytes
                    removed += 1
        return removed

    def sweep(self) -> None:
        """Removes what processes that died left half made or half removed.

        Raises:
            OSError: If the folder can't be used.
        """
        with locked(self.folder / _LOCK):
            self._sweep()

    def used_bytes(self) -> int:
        """What all copies take on the disk."""
        return sum(entry.size_bytes for entry in self._kept())

    def unchecked(self) -> Sequence[str]:
        """The keys of the copies whose checksums were not verified since the machine was started, last used first."""
        kept = sorted(self._kept(), key=lambda entry: -entry.used_at)
        return [entry.key for entry in kept if not self._is_checked(entry.key)]

    def check(self, key: str) -> bool:
        """Verifies the checksums of a copy, which is removed if they are wrong; False if so, or if it is gone.

        What the disk can't read any more is wrong as well: whoever maps it would be ended by that.

        Raises:
            OSError: If it can't be verified now, for want of descriptors or memory.
        """
        home = self.folder / key
        try:
            manifest = self._manifest(key)
            if manifest is None:
                return False
            for name, record in manifest.files.items():
                if file_sha256(home / name) != record.sha256:
                    raise ValueError(f"'{name}' is damaged")
        except FileNotFoundError:  # removed meanwhile
            return False
        except (OSError, ValueError) as error:
            if is_exhausted(error):
                raise
            self._drop(key, error)
            return False
        with contextlib.suppress(OSError):  # then it is verified once more than needed
            write_whole(home / CHECKED, self._boot.encode())
        return True

    def forget(self, key: str) -> None:
        """Removes a copy that turned out to be of no use."""
        with contextlib.suppress(OSError):
            remove_whole(self.folder / key)

    def _manifest(self, key: str) -> Manifest | None:
        try:
            with (self.folder / key / MANIFEST).open("rb") as file:
                return parse_manifest(file.read(MAX_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _drop(self, key: str, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if is_exhausted(error):  # which says nothing of the copy
            _log.warning("the prepared copy %.12s can't be looked at now: %s", key, reason)
            return
        _log.warning("the prepared copy %.12s is removed: %s", key, reason)
        self.forget(key)

    def _is_checked(self, key: str) -> bool:
        try:
            return self._says(self.folder / key / CHECKED)
        except OSError:  # then it is verified once more than needed
            return False

    def _is_suspect(self) -> bool:
        return self._says(self.folder / _SUSPECT)

    def _says(self, path: Path) -> bool:
        """Whether a file names this boot; OSError if that can't be said for want of descriptors or memory."""
        try:
            with path.open("rb") as file:
                return file.read(len(self._boot) + 1) == self._boot.encode()
        except OSError as error:
            if is_exhausted(error):
                raise
            return False

    def _look_for_crash(self, users: Path) -> None:
        """A user of another boot who did not leave was there when the machine went down."""
        for user in users.iterdir():
            try:
                held = try_lock(user)
            except FileNotFoundError:
                continue
            if held is None:
                continue
            try:
                if not self._says(user):
                    _log.warning("the machine crashed: prepared copies are verified before they are used")
                    write_whole(self.folder / _SUSPECT, self._boot.encode())
                user.unlink(missing_ok=True)
            finally:
                os.close(held)

    def _lock_making(self, key: str) -> tuple[Path, int]:
        home = self.folder / f"{_MAKING}{key}"
        for _ in range(3):
            with contextlib.suppress(FileExistsError):
                home.mkdir(mode=0o700)
            try:
                held = try_lock(home)
            except FileNotFoundError:
                continue
            if held is None:
                break
            if not any(home.iterdir()):
                return home, held
            remove_whole(home)  # its maker died
            os.close(held)
        raise Busy

    def _kept(self) -> Iterator[_Kept]:
        try:
            names = os.listdir(self.folder)
        except OSError:
            return
        for name in names:
            if not _KEY.match(name):
                continue
            try:
                files = [path.lstat() for path in files_below(self.folder / name)]
                used_at = (self.folder / name / MANIFEST).lstat().st_mtime
            except OSError:
                continue
            size_bytes = sum(-(-file.st_size // _BLOCK_BYTES) * _BLOCK_BYTES for file in files)
            yield _Kept(name, size_bytes, used_at)

    def _sweep(self) -> None:
        for path in self.folder.iterdir():
            if path.name.startswith(_GONE):
                remove_whole(path)
            elif path.name.startswith(_MAKING):
                with contextlib.suppress(FileNotFoundError):
                    held = try_lock(path)
                    if held is not None:
                        remove_whole(path)
                        os.close(held)
            elif _KEY.match(path.name) and not (path / MANIFEST).exists():
                remove_whole(path)

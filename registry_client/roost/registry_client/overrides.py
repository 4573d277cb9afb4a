"""Files and configurations that load calls bring: checked, written to disk, and removed when nobody needs them.

A model is always loaded from a path, never from bytes, and what a load call brings is data, never code. Nothing of it
survives a restart.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from roost.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from roost.registry_client.backends import backend_of_file
from roost.registry_client.digest import CONFIG_FILES, MAX_DEPTH
from roost.registry_client.files import is_plain_file_name, reason, shown
from roost.registry_client.model_folder import ModelFolder, is_version

FILE_PREFIX = "file:"
MAX_PATH_CHARACTERS = 256
MAX_FILES = 1000
MAX_TOTAL_BYTES = 1 << 30

_BYTES_PER_FILE = 4096  # an empty file takes a block, too
_LENGTH = struct.Struct("<Q")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a load call brings in place of what is on disk.

    Attributes:
        config: A ModelConfig in JSON.
        files: Contents by path, relative to the model's folder; empty: those on disk.
    """

    config: str
    files: Mapping[str, bytes]

    def digest(self) -> str:
        """SHA-256 (hex) over all of it."""
        result = hashlib.sha256()
        for name, content in [("", self.config.encode()), *sorted(self.files.items())]:
            path = name.encode()
            result.update(_LENGTH.pack(len(path)) + path + _LENGTH.pack(len(content)))
            result.update(content)
        return result.hexdigest()


def read_overrides(name: str, parameters: Mapping[str, bool | int | str | bytes]) -> Overrides | None:
    """Picks the overrides from the parameters of a load call; None if there are none.

    Raises:
        InvalidArgument: If they are not what they should be; the text names the parameter.
    """
    config = parameters.get("config")
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        if key.startswith(FILE_PREFIX):
            path = key.removeprefix(FILE_PREFIX)
            if not isinstance(value, bytes):
                raise InvalidArgument(f"load parameter '{shown(key)}' must be the content of a file")
            files[path] = value
    if config is None and not files:
        return None
    if config is None:
        raise InvalidArgument(
            f"failed to load '{name}', failed to poll from model repository: files in a load call need a 'config' "
            "beside them"
        )
    if not isinstance(config, str):
        raise InvalidArgument("load parameter 'config' must be a text, a model configuration in JSON")
    _check_paths(files)
    try:
        config.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("load parameter 'config' is not valid Unicode") from None
    return Overrides(config, files)


class OverrideFolders:
    """A private folder with one folder for each load call that brought files. Its methods block; threads may share it.

    Args:
        path: Where; whatever is there is removed.
        limit_bytes: What all files together may take.
        model_format: What ``modelFormat`` of a KServe resource calls the models; empty if nobody said.
    """

    def __init__(self, path: Path, limit_bytes: int = MAX_TOTAL_BYTES, model_format: str = "") -> None:
        self._path = path
        self._model_format = model_format
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._sizes: dict[Path, int] = {}
        self._numbers = itertools.count(1)
        self.clear()

    def clear(self) -> None:
        """Removes everything."""
        with self._lock:
            shutil.rmtree(self._path, ignore_errors=True)
            self._sizes.clear()

    def write(self, name: str, files: Mapping[str, bytes]) -> ModelFolder:
        """Writes a model's files, all or none.

        Raises:
            ResourceExhausted: If they do not fit.
            FailedPrecondition: If they can't be written.
        """
        size_bytes = sum(len(content) + _BYTES_PER_FILE for content in files.values())
        folder = self._take(size_bytes)
        try:
            folder.mkdir(mode=0o700, parents=True)
            for path, content in files.items():
                target = folder / path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(target, content)
        except OSError as error:
            self._remove(folder)
            if error.errno in _FULL:
                raise ResourceExhausted(f"no space on the disk for the files of model '{name}'") from None
            raise FailedPrecondition(f"the files of model '{name}' can't be written: {reason(error)}") from None
        except BaseException:
            self._remove(folder)
            raise
        return ModelFolder(name, folder, self._model_format)

    def remove(self, folder: ModelFolder) -> None:
        """Removes a folder; one that is gone, or that no load call brought, is fine."""
        if folder.path.parent == self._path:
            self._remove(folder.path)

    def _take(self, size_bytes: int) -> Path:
        with self._lock:
            left = self._limit_bytes - sum(self._sizes.values())
            if size_bytes > left:
                raise ResourceExhausted(
                    f"files of load calls may take {self._limit_bytes} bytes in all; {max(0, left)} are left"
                )
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(self._path, 0o700)
            folder = self._path / str(next(self._numbers))
            self._sizes[folder] = size_bytes
            return folder

    def _remove(self, path: Path) -> None:
        with self._lock:
            shutil.rmtree(path, ignore_errors=True)
            self._sizes.pop(path, None)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _check_paths(files: Iterable[str]) -> None:
    paths = sorted(files)
    if len(paths) > MAX_FILES:
        raise InvalidArgument(f"{len(paths)} files are over the limit of {MAX_FILES} in one load call")
    for path in paths:
        wrong = _wrong_with(path)
        if wrong:
            raise InvalidArgument(f"load parameter '{shown(FILE_PREFIX + path)}': {wrong}")
    if paths and not any("/" in path for path in paths):
        raise InvalidArgument("the files of a load call need a version: at least one 'file:<version>/<path>'")
    known = set(paths)
    for path in paths:
        parts = path.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in known:
                raise InvalidArgument(f"load parameter '{shown(FILE_PREFIX + path)}': it is below another file")


def _wrong_with(path: str) -> str:
    """What is wrong with a path; empty if nothing is."""
    if len(path) > MAX_PATH_CHARACTERS:
        return f"the path is longer than {MAX_PATH_CHARACTERS} characters"
    first, *others = path.split("/")
    if any(not is_plain_file_name(part) or len(part.encode("utf-8", "replace")) > 255 for part in (first, *others)):
        return "the path must be relative, without '..' and without hidden or empty names"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "the path is not valid Unicode"
    if others:
        if len(others) >= MAX_DEPTH:
            return f"the path is deeper than {MAX_DEPTH} levels"
        return "" if is_version(first) else "the first part of the path must be a version, a positive integer"
    if first in CONFIG_FILES:
        return "the configuration goes into the parameter 'config'"
    if is_version(first) or backend_of_file(first):
        return "a model's files go below a version: 'file:<version>/<path>'"
    return ""

"""One model's folder in a repository: its configuration, its versions and their files. All methods block."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from roost.core.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from roost.core.exhaustion import is_exhausted
from roost.core.names import version_order
from roost.registry_client.backends import (
    SAVED_MODEL,
    backend_of_file,
    backend_of_files,
    backend_of_format,
)
from roost.registry_client.digest import (
    CONFIG_FILE,
    CONFIG_FILES,
    SETTINGS_FILE,
    Artifact,
    DigestCache,
    FileStamp,
    Stamp,
    digest_files,
    stamp_files,
)
from roost.registry_client.files import is_plain_file_name, read_small_file, shown, unreadable
from roost.registry_client.foreign import foreign_format
from roost.registry_client.model_config import MAX_CONFIG_BYTES, ModelDescription, parse_config_text
from roost.registry_client.model_settings import parse_settings

FolderStamp: TypeAlias = tuple[FileStamp, ...]
"""The state of a model's folder itself."""

_VERSION = re.compile(r"[1-9][0-9]{0,18}\Z")
_MAX_VERSION = 2**63 - 1
_MAX_LABELS_BYTES = 16 << 20
_INITIAL_STATE = "initial_state"
_MAX_STATE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model's folder, as it is on the disk at each call.

    Attributes:
        name: The model's name.
        path: The folder.
        model_format: What ``modelFormat`` of a KServe resource calls the model; empty if nobody said.
    """

    name: str
    path: Path
    model_format: str = ""

    def whole_stamp(self) -> tuple[FolderStamp, Stamp]:
        """The state of the folder and of everything in it that is not hidden, without reading a file.

        Raises:
            NotFound: If the folder is gone.
            FailedPrecondition: If something in it can't be looked at.
        """
        return self.folder_stamp(), stamp_files(str(self.path))

    def versions_of(self, description: ModelDescription) -> list[str]:
        """The versions of a model with that description, in ascending order.

        An ensemble has no files, so it may do without version folders, too: then it is version 1.

        Raises:
            NotFound: If the folder is gone.
        """
        if description.place is not None:
            return [description.place.version]
        return self.versions() or (["1"] if description.ensemble is not None else [])

    def versions(self) -> list[str]:
        """Lists the version folders in ascending order; without any, a model file in the folder is version 1.

        Raises:
            NotFound: If the folder is gone.
        """
        versions, files = self._list()
        if not versions and any(map(backend_of_file, files)):
            return ["1"]
        return versions

    def foreign_format(self) -> str:
        """What a file is, in a folder without versions, if it is a model that no runtime reads; empty if none is.

        Raises:
            NotFound: If the folder is gone.
        """
        versions, files = self._list()
        return "" if versions else foreign_format(files)

    def detect_backend(self) -> str:
        """The backend of a configuration that names none: that of its format, else the one that the files hint at.

        Empty if there is no hint.

        Raises:
            NotFound: If the folder is gone.
            ResourceExhausted: If there is no descriptor to look with.
        """
        if expected := backend_of_format(self.model_format):
            return expected
        versions, files = self._list()
        if versions:
            try:
                files = os.listdir(f"{self.path}/{versions[-1]}")
            except OSError as error:
                if is_exhausted(error):
                    raise unreadable(f"version {versions[-1]} of model '{self.name}'", error) from None
                return ""  # what is wrong with the version is said when it is loaded
        return backend_of_files(files)

    def load_config(self) -> ModelDescription:
        """Reads ``config.pbtxt`` if there is one, and describes the model.

        Raises:
            InvalidArgument: If the file can't be read or understood, or asks for what can't be done.
            NotFound: If the folder is gone.
            FailedPrecondition: If the folder can't be read.
            ResourceExhausted: If there is no descriptor to read with.
        """
        detected = self.detect_backend()
        if os.path.lexists(f"{self.path}/{CONFIG_FILE}"):
            return parse_config_text(self._read_text(CONFIG_FILE), self.name, detected_backend=detected)
        if os.path.lexists(f"{self.path}/{SETTINGS_FILE}"):
            text, (versions, _) = self._read_text(SETTINGS_FILE), self._list()
            return parse_settings(text, self.name, detected_backend=detected, version_folders=bool(versions))
        return parse_config_text("", self.name, detected_backend=detected)

    def mentions(self, text: bytes) -> bool:
        """Whether the configuration file has this in it; one that can't be read has nothing in it."""
        for file_name in (CONFIG_FILE, SETTINGS_FILE):
            path = f"{self.path}/{file_name}"
            if os.path.lexists(path):
                try:
                    return text in read_small_file(path, file_name, MAX_CONFIG_BYTES)
                except (FailedPrecondition, ResourceExhausted):
                    return False
        return False

    def _read_text(self, file_name: str) -> str:
        try:
            data = read_small_file(f"{self.path}/{file_name}", file_name, MAX_CONFIG_BYTES)
        except FailedPrecondition as error:
            raise InvalidArgument(error.message) from None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise InvalidArgument(f"{file_name} line {line}: not UTF-8 text") from None

    def folder_stamp(self, before: FolderStamp = ()) -> FolderStamp:
        """The state of the folder and of its configuration, for one to three looks at the disk.

        A version that comes or goes changes it; a change inside of a version's folder does not.

        Args:
            before: An earlier state, which saves looks: a folder that is as it was has no new files.

        Raises:
            NotFound: If the folder is gone.
        """
        path = str(self.path)
        folder = _stamp_of("", path)
        if folder is None:
            raise NotFound(f"model '{self.name}' is not in the model repository any more")
        names = [file.name for file in before[1:]] if before[:1] == (folder,) else sorted(CONFIG_FILES)
        files = [_stamp_of(name, f"{path}/{name}") for name in names]
        return (folder, *(file for file in files if file is not None))

    def read_labels(self, file_name: str) -> tuple[str, ...]:
        """Reads a file with the label of class 0 in its first line, that of class 1 in its second, and so on.

        Args:
            file_name: Its plain name; label files belong to the model's folder, not to a version's.

        Raises:
            InvalidArgument: If there is no such file, or it is no text in UTF-8, or too large.
        """
        if not is_plain_file_name(file_name):
            raise InvalidArgument(f"label file '{shown(file_name)}' must be the plain name of a file of the model")
        try:
            data = read_small_file(f"{self.path}/{file_name}", file_name, _MAX_LABELS_BYTES)
        except FailedPrecondition as error:
            raise InvalidArgument(f"labels of model '{self.name}': {error.message}") from None
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InvalidArgument(f"label file '{shown(file_name)}' is not UTF-8 text") from None
        lines = text.replace("\r\n", "\n").split("\n")
        return tuple(lines[:-1] if lines[-1] == "" else lines)

    def read_initial_state(self, file_name: str) -> bytes:
        """Reads what a sequence of requests begins with, from the folder ``initial_state`` of the model.

        Args:
            file_name: Its plain name.

        Raises:
            InvalidArgument: If there is no such file, or it is too large.
        """
        if not is_plain_file_name(file_name):
            raise InvalidArgument(f"initial state '{shown(file_name)}' must be the plain name of a file")
        try:
            return read_small_file(f"{self.path}/{_INITIAL_STATE}/{file_name}", file_name, _MAX_STATE_BYTES)
        except FailedPrecondition as error:
            raise InvalidArgument(f"initial state of model '{self.name}': {error.message}") from None

    def artifact(self, version: str, description: ModelDescription, cache: DigestCache) -> Artifact:
        """Finds a version's files and computes their digest; files that are in the cache are not read.

        Raises:
            NotFound: If there is no such version.
            FailedPrecondition: If its files can't be used; the text says why.
        """
        root = self._root(version, description)
        stamp = stamp_files(root)
        path = self._model_file(root, version, description, stamp)
        digest = digest_files(root, stamp, cache)
        return Artifact(path, root, digest, sum(file.size for file in stamp), stamp)

    def find(self, version: str, description: ModelDescription) -> tuple[str, str]:
        """Where a version's model file or folder is, and the folder of all its files; no file is read.

        Raises:
            NotFound: If there is no such version.
            FailedPrecondition: If its files can't be used; the text says why.
        """
        root = self._root(version, description)
        return self._model_file(root, version, description, stamp_files(root)), root

    def stamp(self, version: str, description: ModelDescription) -> Stamp:
        """The stamp that ``artifact`` would have, without reading a file.

        Raises:
            NotFound: If there is no such version.
            FailedPrecondition: If its files can't be used; the text says why.
        """
        root = self._root(version, description)
        stamp = stamp_files(root)
        self._model_file(root, version, description, stamp)
        return stamp

    def _list(self) -> tuple[list[str], list[str]]:
        """Version folders in ascending order, and the names of everything else that is not hidden."""
        versions: list[str] = []
        others: list[str] = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if is_version(entry.name) and is_folder(entry):
                        versions.append(entry.name)
                    elif not entry.name.startswith("."):
                        others.append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"model '{self.name}' is not in the model repository any more") from None
        except OSError as error:
            raise unreadable(f"the folder of model '{self.name}'", error) from None
        return sorted(versions, key=version_order), others

    def _root(self, version: str, description: ModelDescription) -> str:
        place = description.place
        if place is not None:
            if version == place.version:
                return str(self.path / place.folder)
        elif is_version(version):
            versions, files = self._list()
            if version in versions:
                return str(self.path / version)
            if not versions and version == "1" and (description.ensemble or any(map(backend_of_file, files))):
                return str(self.path)
        raise NotFound(f"model '{self.name}' has no version '{shown(version)}'")

    def _model_file(self, root: str, version: str, description: ModelDescription, stamp: Stamp) -> str:
        if description.ensemble is not None:
            return root
        names = {file.name for file in stamp}
        for file_name in description.model_files:
            found = _find(file_name, names)
            if found is not None:
                return os.path.join(root, found) if found else root
        wanted = "' or '".join(description.model_files)
        hint = self._hint(names, description)
        raise FailedPrecondition(f"version {version} of model '{self.name}' has no file '{wanted}'{hint}")

    def _hint(self, names: set[str], description: ModelDescription) -> str:
        backend, config = description.backend, description.config
        others = sorted(name for name in names if backend_of_file(name) == backend)
        if others:
            return f"; found '{shown(others[0])}': rename it or set default_model_filename"
        of_others = sorted(name for name in names if backend_of_file(name))
        if of_others:
            found, other = shown(of_others[0]), backend_of_file(of_others[0])
            is_configured = config.backend or config.platform or backend_of_file(config.default_model_filename)
            of_format = not is_configured and backend_of_format(self.model_format)
            who = "--model-format" if of_format else "the configuration"
            return f"; found '{found}', which is for backend '{other}': {who} says '{backend}'"
        foreign = foreign_format({name.split("/", 1)[0] for name in names})
        return f"; {foreign}" if foreign else ""


def _find(file_name: str, names: set[str]) -> str | None:
    """Where a model's file or folder is, relative to the root; empty for the root itself, None for nowhere."""
    if file_name == SAVED_MODEL:
        return "" if SAVED_MODEL in names else None
    # A model with external data may also be a folder of the file's name with the file in it.
    for candidate in (file_name, f"{file_name}/{file_name}"):
        if candidate in names:
            return candidate
    return file_name if f"{file_name}/{SAVED_MODEL}" in names else None


def is_version(name: str) -> bool:
    """Whether a folder of this name holds a version: a positive integer of 64 bits without leading zeros."""
    return _VERSION.match(name) is not None and int(name) <= _MAX_VERSION


def _stamp_of(name: str, path: str) -> FileStamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return FileStamp(name, status.st_ino, status.st_size, status.st_mtime_ns)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one that we may look at."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or one that leads where we may not look
        return False

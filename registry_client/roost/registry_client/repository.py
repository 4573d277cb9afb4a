"""Model repositories on a local file system, in the layout that Triton made common.

::

    <repository>/<model>/config.pbtxt            optional; or MLServer's model-settings.json
    <repository>/<model>/<version>/model.onnx    versions are positive integers
    <repository>/<model>/model.onnx              no version folders: this is version 1

A repository is listed with one directory read, whatever is in it; a model's folder (``model_folder``) is looked at when
the model is needed. All methods block.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from roost.core.errors import FailedPrecondition, NotFound
from roost.core.names import is_name
from roost.registry_client.files import shown, unreadable
from roost.registry_client.model_folder import ModelFolder, is_folder

_log = logging.getLogger(__name__)

_MAX_NAMES_LOGGED = 100


class LocalRepository:
    """A folder of model folders.

    Args:
        path: The folder; a relative one is resolved now.
        model_format: What ``modelFormat`` of a KServe resource calls its models; empty if nobody said.

    Raises:
        FailedPrecondition: If it is not an existing folder.
    """

    def __init__(self, path: Path, model_format: str = "") -> None:
        self.path = Path(os.path.abspath(path))
        self._model_format = model_format
        self._logged: set[str] = set()
        self._lock = threading.Lock()
        if not self.path.is_dir():
            what = "is not a folder" if self.path.exists() else "does not exist"
            raise FailedPrecondition(f"model repository '{shown(self.path.name)}' {what}")

    def scan(self) -> list[str]:
        """Lists the models, sorted; nothing in their folders is looked at.

        Folders whose names can't be model names are left out and logged once.

        Raises:
            FailedPrecondition: If the repository can't be read.
        """
        names: list[str] = []
        refused: list[str] = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and is_folder(entry):
                        (names if is_name(entry.name) else refused).append(entry.name)
        except OSError as error:
            raise unreadable(f"model repository '{shown(self.path.name)}'", error) from None
        self._log_refused(refused)
        return sorted(names)

    def open_model(self, name: str) -> ModelFolder:
        """Returns a model's folder.

        Raises:
            NotFound: If there is none. A name that could lead out of the repository never reaches the disk.
        """
        if is_name(name):
            folder = self.folder_of(name)
            if os.path.isdir(folder.path):
                return folder
        raise NotFound(f"model '{shown(name)}' is not in the model repository")

    def folder_of(self, name: str) -> ModelFolder:
        """The folder of a model that ``scan`` has found, which may be gone meanwhile."""
        return ModelFolder(name, self.path / name, self._model_format)

    def _log_refused(self, names: list[str]) -> None:
        with self._lock:
            for name in sorted(names):
                if name in self._logged or len(self._logged) >= _MAX_NAMES_LOGGED:
                    continue
                self._logged.add(name)
                _log.warning("folder %r is no model: the name is not valid", shown(name))

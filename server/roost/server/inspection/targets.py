"""What a path is that somebody wants to have looked at: a model's folder, a version of it, or a file alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roost.core.errors import RoostError
from roost.core.names import is_name
from roost.registry_client.backends import SAVED_MODEL
from roost.registry_client.digest import CONFIG_FILES
from roost.registry_client.files import reason, shown
from roost.registry_client.model_folder import ModelFolder, is_version
from roost.server.arguments import ConfigError

_MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be looked at.

    Attributes:
        path: The path as it was given, made absolute.
        folder: The model's folder; None if it is a file alone.
        version: The version that is meant; empty for those that are served.
    """

    path: Path
    folder: ModelFolder | None = None
    version: str = ""

    @property
    def repository(self) -> Path:
        """The folder that a server would have for its repository."""
        return (self.folder.path if self.folder is not None else self.path).parent


def target_of(text: str) -> Target:
    """Says what a path is.

    Raises:
        ConfigError: If there is nothing, or it holds several models.
    """
    path = Path(text).absolute()
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ConfigError(f"there is no {shown(text)}") from None
    except OSError as error:
        raise ConfigError(f"{shown(text)} can't be read: {reason(error)}") from None
    if not stat.S_ISDIR(status.st_mode):
        return Target(path)
    if _is_model(path):
        return Target(path, _model_of(path))
    if is_version(path.name):
        return Target(path, _model_of(path.parent), path.name)
    models = sorted(child.name for child in _folders(path) if is_name(child.name) and _is_model(child))
    if models:
        more = f" and {len(models) - _MAX_NAMED:,} more" if len(models) > _MAX_NAMED else ""
        raise ConfigError(
            f"{text} is a repository of models, {', '.join(models[:_MAX_NAMED])}{more}: name one of their folders"
        )
    return Target(path, _model_of(path))


def _model_of(path: Path) -> ModelFolder:
    """A folder whose name may be no text at all, in which case it is that of no model."""
    return ModelFolder(shown(path.name), path)


def _is_model(path: Path) -> bool:
    """Whether a folder is a model's: it has a configuration, versions, or a file that some runtime reads."""
    if any((path / name).exists() for name in (*CONFIG_FILES, SAVED_MODEL)):
        return True
    try:
        # A version's folder has model files as well; the model is then the folder above.
        return not is_version(path.name) and bool(ModelFolder(path.name, path).versions())
    except RoostError:
        return False


def _folders(path: Path) -> Iterator[Path]:
    try:
        for child in path.iterdir():
            if child.is_dir() and not child.name.startswith("."):
                yield child
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None

"""Why a model is for the runtime that it is for, and what that runtime needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata

from roost.registry_client.backends import backend_of_file, backend_of_format
from roost.registry_client.digest import CONFIG_FILE, SETTINGS_FILE
from roost.registry_client.files import shown
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.model_folder import ModelFolder
from roost.runtimes.adapters import ADAPTERS, installed_runtimes

_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "lightgbm": ("lightgbm",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "sklearn": ("scikit-learn",),
    "tensorflow": ("tensorflow-cpu", "tensorflow", "tensorflow-gpu"),
    "torch": ("torch",),
    "xgboost": ("xgboost", "xgboost-cpu"),
}
"""What a module may have been installed with."""


def config_file_of(folder: ModelFolder) -> str:
    """The file of a model's configuration; empty if there is none."""
    for name in (CONFIG_FILE, SETTINGS_FILE):
        if os.path.lexists(folder.path / name):
            return name
    return ""


def reason_for(description: ModelDescription, config_file: str, file_name: str, model_format: str) -> str:
    """Why it is this runtime: the first of the things that are asked about that says something.

    Args:
        description: What was made of the model.
        config_file: Its configuration.
        file_name: The file that says so, if one does.
        model_format: What ``--model-format`` says, if it does.
    """
    config = description.config
    if config.backend and config_file == SETTINGS_FILE:
        return f"{config_file} names an implementation of it"
    if config.backend:
        return f'{config_file} says backend: "{shown(config.backend)}"'
    if config.platform:
        return f'{config_file} says platform: "{shown(config.platform)}"'
    name = config.default_model_filename
    if backend_of_file(name) == description.backend:
        return f"{config_file} names the file '{shown(name)}'"
    if backend_of_format(model_format) == description.backend:
        return f"--model-format is '{model_format}'"
    if file_name:
        return f"there is '{shown(file_name)}'"
    return "nothing says which, and this is the default"


def framework_of(backend: str) -> str:
    """What a runtime needs, and its version if it is installed."""
    module = ADAPTERS[backend].framework
    if not module or not installed_runtimes([backend]):
        return module
    for distribution in _DISTRIBUTIONS.get(module, (module,)):
        try:
            return f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    return module

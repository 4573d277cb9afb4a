"""Finds the class in a ``model.py``, and says how it is called."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
import types
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from roost.core.errors import InvalidArgument
from roost.core.tensors import Signature
from roost.runtimes.python.job import Job
from roost.runtimes.python.model import Model
from roost.runtimes.python.trouble import load_error

TRITON_CLASS = "TritonPythonModel"
PREFIX = "roost."  # of options that are no parameters of the configuration
INSTANCE_KIND = "roost.instance_kind"


class Served(Protocol):
    """A model whose file was imported."""

    is_async: bool
    signature: Signature
    """Known once it is loaded."""

    def load(self) -> Awaitable[Any] | None:
        """Has the model load; what it raises is the model's."""

    def run(self, job: Job) -> None:
        """Answers a run, unless it is async; what it raises is the model's."""

    async def run_async(self, job: Job) -> None:
        """Answers a run, if it is async; what it raises is the model's."""

    def unload(self) -> Awaitable[Any] | None:
        """Has the model end."""


@dataclass(frozen=True, slots=True)
class Order:
    """A model that is to be served.

    Attributes:
        path: Its file.
        root: The folder of its version.
        options: What its configuration says.
        threads: How many threads it may use.
    """

    path: str
    root: str
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1

    @property
    def name(self) -> str:
        """The model's name."""
        return self.options.get("roost.model_name") or Path(self.model_folder).name

    @property
    def version(self) -> str:
        """Its version."""
        return self.options.get("roost.model_version") or "1"

    @property
    def model_folder(self) -> str:
        """The folder that the versions are in; that of the files, where there are no versions."""
        folder, last = os.path.split(self.root)
        return folder if last.isdigit() else self.root

    @property
    def parameters(self) -> dict[str, str]:
        """Those of its configuration."""
        return {key: value for key, value in self.options.items() if not key.startswith(PREFIX)}

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration in Triton's JSON, in which numbers are numbers.

        Raises:
            InvalidArgument: If it can't be read.
        """
        try:
            config = json.loads(self.options.get("roost.model_config", "{}"))
            for item in (*config.get("input", ()), *config.get("output", ())):
                _numbers(item, "dims")
                _numbers(item.get("reshape") or {}, "shape")
        except (ValueError, TypeError, AttributeError):
            raise InvalidArgument("the model's configuration can't be read") from None
        name = config.get("name") or self.name
        return {"max_batch_size": 0, "input": [], "output": [], "parameters": {}, **config, "name": name}


def _numbers(item: dict[str, Any], key: str) -> None:
    if key in item:
        item[key] = [int(value) for value in item[key]]


def open_model(order: Order) -> Served:
    """Imports a model's file.

    Raises:
        RoostError: If that fails, or there is no model in it; texts show no paths.
    """
    # Not at the top: each brings what models of the other kind do without.
    from roost.runtimes.python import triton_utils

    triton_utils.describe_model(order.root)
    sys.modules["triton_python_backend_utils"] = triton_utils
    sys.modules["c_python_backend_utils"] = triton_utils
    file = os.path.basename(order.path)
    try:
        module = _import(order)
    except BaseException as error:  # also its sys.exit
        raise load_error(error, order.root, file) from None
    if hasattr(module, TRITON_CLASS):
        from roost.runtimes.python.triton import TritonModel

        return TritonModel(getattr(module, TRITON_CLASS), order)
    from roost.runtimes.python.plain import PlainModel

    return PlainModel(_class_of(module, file), order)


def _import(order: Order) -> types.ModuleType:
    """Imports the file as a module of a package that is its folder, so that it can import what lies beside it."""
    for folder in (order.model_folder, order.root):
        sys.path.insert(0, folder)
    package = types.ModuleType(_package_of(order))
    package.__path__ = [order.root]
    sys.modules[package.__name__] = package
    name = f"{package.__name__}.{Path(order.path).stem}"
    spec = importlib.util.spec_from_file_location(name, order.path)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"'{os.path.basename(order.path)}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _package_of(order: Order) -> str:
    """As Triton calls it where it can: the version, under which processes that the model starts find it as well."""
    last = os.path.basename(order.root)
    return last if last.isdigit() else "roost_model"


def _class_of(module: types.ModuleType, file: str) -> type[Model]:
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Model) and value.__module__ == module.__name__
    ]
    leaves = [cls for cls in classes if not any(other is not cls and issubclass(other, cls) for other in classes)]
    if len(leaves) == 1:
        return leaves[0]
    if leaves:
        names = ", ".join(sorted(cls.__name__ for cls in leaves))
        raise InvalidArgument(f"{file} has several models: {names}")
    raise InvalidArgument(f"{file} has neither a class derived from roost.runtimes.Model nor a {TRITON_CLASS}")

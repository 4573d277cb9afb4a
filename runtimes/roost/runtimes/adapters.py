"""The registered runtimes: a name, the class that adapts it, imported when a worker wants it, and a kind of worker."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from typing import NamedTuple

from roost.runtimes.protocol import Runtime

_log = logging.getLogger(__name__)

DEFAULT_KIND = "onnx"
"""The kind of the workers that a server always has; those of others are started when a model needs them."""


GPU_SUFFIX = "-gpu"
"""Of the kinds of workers that use a GPU: with the same runtimes as those of the kind without it."""


class Adapter(NamedTuple):
    """Where a runtime's adapter is, and what it needs.

    Attributes:
        module: Its module, which imports the framework.
        cls: Its class, a ``Runtime``.
        framework: The top-level module that it needs from elsewhere; empty for none.
        kind: Workers of this kind have it. Frameworks that live well together in one process share a kind.
        extra: What of the package installs the framework: ``pip install 'roost[extra]'``.
    """

    module: str
    cls: str
    framework: str = ""
    kind: str = DEFAULT_KIND
    extra: str = ""


ADAPTERS = {
    "onnxruntime": Adapter("roost.runtimes.onnx", "OnnxRuntime", "onnxruntime", extra="onnx"),
    "pytorch": Adapter("roost.runtimes.pytorch.runtime", "PytorchRuntime", "torch", "torch", "torch"),
    "tensorflow": Adapter(
        "roost.runtimes.tensorflow.adapter", "TensorflowRuntime", "tensorflow", "tensorflow", "tensorflow"
    ),
    "sklearn": Adapter("roost.runtimes.sklearn", "SklearnRuntime", "sklearn", "sklearn", "sklearn"),
    "xgboost": Adapter("roost.runtimes.xgboost", "XgboostRuntime", "xgboost", "sklearn", "sklearn"),
    "lightgbm": Adapter("roost.runtimes.lightgbm", "LightgbmRuntime", "lightgbm", "sklearn", "sklearn"),
    "python": Adapter("roost.runtimes.python.adapter", "PythonRuntime", kind="python"),
    "dummy": Adapter("roost.runtimes.dummy", "DummyRuntime"),
}
"""All runtimes by the name of their backend."""

KINDS = tuple(dict.fromkeys(adapter.kind for adapter in ADAPTERS.values()))
"""The kinds of workers that there are, the default one first."""


def kind_of(backend: str) -> str:
    """The kind of the workers that have a backend's runtime."""
    return ADAPTERS[backend].kind


def runtime_names(kind: str, enable_dummy: bool = False) -> list[str]:
    """The runtimes that workers of a kind offer if they can; that for tests only if it is wanted."""
    kind = kind.removesuffix(GPU_SUFFIX)
    names = [name for name, adapter in ADAPTERS.items() if adapter.kind == kind]
    return [name for name in names if name != "dummy" or enable_dummy]


def installed_runtimes(
    names: Iterable[str], find: Callable[[str], ModuleSpec | None] = importlib.util.find_spec
) -> list[str]:
    """Those of these runtimes whose framework is installed; none is imported, which takes time and memory.

    Args:
        names: Keys of ``ADAPTERS``.
        find: Looks for a top-level module.
    """
    return [name for name in names if not ADAPTERS[name].framework or _is_module(find(ADAPTERS[name].framework))]


def _is_module(spec: ModuleSpec | None) -> bool:
    # A folder that an uninstalled package has left behind is found too, as a namespace without an origin.
    return spec is not None and spec.origin is not None


def import_runtimes(names: Iterable[str]) -> dict[str, Runtime]:
    """Imports the adapters of these names; those whose framework is not installed are left out, with a log line."""
    runtimes: dict[str, Runtime] = {}
    for name in names:
        adapter = ADAPTERS[name]
        try:
            runtimes[name] = getattr(importlib.import_module(adapter.module), adapter.cls)()
        except ImportError as error:
            _log.warning("runtime %s is not available: %s", name, error)
    return runtimes

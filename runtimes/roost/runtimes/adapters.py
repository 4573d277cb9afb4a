"""The registered runtimes: a name and the class that adapts it, imported when a worker wants it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from typing import NamedTuple

from roost.runtimes.protocol import Runtime

_log = logging.getLogger(__name__)


class Adapter(NamedTuple):
    """Where a runtime's adapter is, and which top-level module it needs from elsewhere; none: empty."""

    module: str
    cls: str
    framework: str = ""


ADAPTERS = {
    "onnxruntime": Adapter("roost.runtimes.onnx", "OnnxRuntime", "onnxruntime"),
    "dummy": Adapter("roost.runtimes.dummy", "DummyRuntime"),
}


def runtime_names(enable_dummy: bool) -> list[str]:
    """The runtimes that workers offer if they can: all registered ones, that for tests only if it is wanted."""
    return [name for name in ADAPTERS if name != "dummy" or enable_dummy]


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

"""The registered runtimes: a name and the class that adapts it, imported when a worker wants it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable

from roost.runtimes.protocol import Runtime

_log = logging.getLogger(__name__)

ADAPTERS = {
    "onnxruntime": ("roost.runtimes.onnx", "OnnxRuntime"),
    "dummy": ("roost.runtimes.dummy", "DummyRuntime"),
}


def import_runtimes(names: Iterable[str]) -> dict[str, Runtime]:
    """Imports the adapters of these names; those whose framework is not installed are left out, with a log line."""
    runtimes: dict[str, Runtime] = {}
    for name in names:
        module, cls = ADAPTERS[name]
        try:
            runtimes[name] = getattr(importlib.import_module(module), cls)()
        except ImportError as error:
            _log.warning("runtime %s is not available: %s", name, error)
    return runtimes

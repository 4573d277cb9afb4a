"""Whether an installed framework was built for GPUs, without importing it; a worker sees whether it can use one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path

from roost.runtimes.adapters import ADAPTERS, GPU_SUFFIX, KINDS, installed_runtimes, runtime_names

_FILES = {
    "onnxruntime": "capi/libonnxruntime_providers_cuda.so",
    "pytorch": "lib/libtorch_cuda.so",
}
"""What only builds for GPUs have, in the folder of the framework's package."""

_TEXTS = {"tensorflow": ("python/platform/build_info.py", "'is_cuda_build', True")}
"""What a file of the package says only there."""

_ANY = frozenset({"python", "dummy"})
"""What their models do with a GPU is up to them."""


def built_for_gpus(name: str, find: Callable[[str], ModuleSpec | None] = importlib.util.find_spec) -> bool:
    """Whether a runtime's framework was built for GPUs.

    Args:
        name: A key of ``ADAPTERS``, whose framework is installed.
        find: Looks for a top-level module.
    """
    if name in _ANY:
        return True
    spec = find(ADAPTERS[name].framework)
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent
    if name in _FILES:
        return (folder / _FILES[name]).exists()
    if name not in _TEXTS:
        return False
    file, text = _TEXTS[name]
    try:
        return text in (folder / file).read_text(encoding="utf-8")
    except OSError:
        return False


def gpu_kinds(kinds: Iterable[str] = KINDS, built: Callable[[str], bool] = built_for_gpus) -> list[str]:
    """The kinds, of these, whose workers can do something with a GPU, as the kinds of those that do are called."""
    return [kind + GPU_SUFFIX for kind in kinds if any(built(name) for name in installed_runtimes(runtime_names(kind)))]

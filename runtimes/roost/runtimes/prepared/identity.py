"""Which prepared copy belongs to a model here: the key changes with all that a copy depends on."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

FORMAT = 1
"""Of what is in a copy's folder, and of how it is made."""


class _Maker(NamedTuple):
    """What copies of a runtime's models are made with.

    Attributes:
        module: The module of the library that says which build it is.
        libraries: That library, in the module's folder; empty where versions say enough.
        provider: What it computes on.
        packages: Modules that have to be installed besides, and their distributions, whose versions matter.
    """

    module: str
    libraries: str
    provider: str
    packages: Mapping[str, tuple[str, ...]] = {}


_ORT = ("onnxruntime", "capi/onnxruntime_pybind11_state*.so", "CPUExecutionProvider")
_MAKERS: Mapping[str, _Maker] = {
    "onnxruntime": _Maker(*_ORT),
    "tensorflow": _Maker(
        "tensorflow", "", "", {"tensorflow": ("tensorflow-cpu", "tensorflow", "tensorflow-gpu"), "keras": ("keras",)}
    ),
    "sklearn": _Maker(
        *_ORT,
        {"sklearn": ("scikit-learn",), "skops": ("skops",), "skl2onnx": ("skl2onnx",), "onnx": ("onnx",)},
    ),
}

PREPARED_BACKENDS = frozenset(_MAKERS)
"""Runtimes that make copies where they are installed."""

_NOT_IN_COPY = frozenset(
    {"intra_op_thread_count", "inter_op_thread_count", "execution_mode", "roost.model_name", "roost.model_version"}
)
_CPU_FIELDS = frozenset({"vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features"})


def can_prepare(backend: str) -> bool:
    """Whether there are prepared copies for models of this runtime, and the runtime is installed."""
    return bool(_build(backend))


def copy_key(digest: str, backend: str, options: Mapping[str, str]) -> str:
    """The key (hex) of a model's copy; reads small files the first time it is called for a runtime.

    Args:
        digest: The digest of all the model's files.
        backend: A runtime that there are copies for.
        options: Options of the load; those that a copy does not depend on mean nothing.
    """
    parts = {
        "format": FORMAT,
        "digest": digest,
        "backend": backend,
        "build": _build(backend),
        "cpu": _cpu(),
        "options": copied_options(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def copied_options(options: Mapping[str, str]) -> dict[str, str]:
    """Of the options of a load those that a copy depends on."""
    return {name: value for name, value in options.items() if name not in _NOT_IN_COPY}


@lru_cache
def _build(backend: str) -> str:
    """Which build of a runtime is installed, and what it computes on; empty without one that makes copies.

    The runtime is not imported: that takes more memory than all the rest of the process that asks.
    """
    maker = _MAKERS.get(backend)
    if maker is None:
        return ""
    spec = importlib.util.find_spec(maker.module)
    if spec is None or spec.origin is None:
        return ""
    folder = Path(spec.origin).parent
    libraries = sorted(folder.glob(maker.libraries)) if maker.libraries else []
    versions = list(_versions(maker.packages))
    if (maker.libraries and not libraries) or len(versions) < len(maker.packages):
        return ""
    total = hashlib.sha256(maker.provider.encode())
    for library in libraries:
        total.update(_sha256_of(library, folder.parent))
    if versions:
        total.update(json.dumps(versions).encode())
    return total.hexdigest()


def _versions(packages: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Each module that is installed, and its version."""
    for module, distributions in packages.items():
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            yield module, next(filter(None, map(_version, distributions)), "unknown")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _sha256_of(library: Path, packages: Path) -> bytes:
    """The checksum of a library, taken from the installer's record of it if it still is as large as that says.

    Reading 30 MB takes 20 to 80 ms, and the first request to a server would have to wait for that.

    Args:
        library: The file.
        packages: The folder that its package was installed into.
    """
    name, size = library.relative_to(packages).as_posix(), str(library.stat().st_size)
    for record in packages.glob(f"{name.partition('/')[0]}*.dist-info/RECORD"):
        with record.open(newline="", encoding="utf-8") as rows:
            for row in csv.reader(rows):
                if len(row) == 3 and (row[0], row[2]) == (name, size) and row[1].startswith("sha256="):
                    return base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "=")
    with library.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@lru_cache
def _cpu() -> str:
    """What the processor can do; weights are packed for that."""
    total = hashlib.sha256(platform.machine().encode())
    described: dict[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in _CPU_FIELDS:
                described.setdefault(name.strip(), " ".join(sorted(value.split())))
    total.update(json.dumps(described, sort_keys=True).encode())
    return total.hexdigest()

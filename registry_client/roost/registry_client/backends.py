"""Which runtimes there are, and what a configuration or a file name says about which one a model needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from posixpath import splitext

from roost.core.errors import InvalidArgument
from roost.core.names import shorten

KNOWN_BACKENDS: Mapping[str, str] = {"onnxruntime": "model.onnx", "dummy": "model.dummy"}
"""Default name of the model file by backend."""

PLATFORMS: Mapping[str, str] = {"onnxruntime": "onnxruntime_onnx"}
"""The older ``platform`` word for a backend, where one exists."""

DEFAULT_BACKEND = "onnxruntime"

CODE_BACKENDS: frozenset[str] = frozenset()
"""Backends whose models are programs; what a load call brings is data and never goes to one of them."""

STATELESS_BACKENDS: frozenset[str] = frozenset({"onnxruntime"})
"""Backends whose models keep nothing from one request to the next: to run one twice changes nothing."""

_FOR_TESTS = "dummy"  # known, but nobody is told

_BACKEND_OF_PLATFORM = {platform: backend for backend, platform in PLATFORMS.items()}
_BACKEND_OF_SUFFIX = {splitext(file)[1]: backend for backend, file in KNOWN_BACKENDS.items()}


OTHER_FORMATS: Mapping[str, str] = {
    "model.plan": "TensorRT",
    "model.savedmodel": "TensorFlow",
    "model.graphdef": "TensorFlow",
    "model.pt": "PyTorch",
    "model.pt2": "PyTorch",
    "model.xml": "OpenVINO",
    "model.py": "Python",
    "model.joblib": "scikit-learn",
    "model.pkl": "scikit-learn",
    "model.bst": "XGBoost or LightGBM",
    "model.json": "XGBoost",
}
"""What model files and folders are that no runtime here can load, by their usual names."""


def known_backends() -> str:
    """The backends that there are, as error texts list them."""
    return ", ".join(sorted(KNOWN_BACKENDS.keys() - {_FOR_TESTS}))


def backend_of_file(file_name: str) -> str:
    """The backend that reads a file of this name; empty if none does."""
    return _BACKEND_OF_SUFFIX.get(splitext(file_name)[1], "")


def backend_of_files(file_names: Iterable[str]) -> str:
    """The backend that reads the first file that one does, default names before others; empty if none does."""
    found = sorted((name for name in file_names if backend_of_file(name)), key=lambda n: (n not in _DEFAULTS, n))
    return backend_of_file(found[0]) if found else ""


_DEFAULTS = frozenset(KNOWN_BACKENDS.values())


def resolve_backend(backend: str, platform: str, file_name: str, detected: str = "") -> str:
    """Decides which backend a model needs.

    Args:
        backend: ``backend`` of the configuration, may be empty.
        platform: ``platform`` of the configuration, may be empty.
        file_name: ``default_model_filename`` of the configuration, may be empty.
        detected: What the files of the model hint at, may be empty.

    Raises:
        InvalidArgument: If backend or platform are unknown, or contradict each other.
    """
    if backend and backend not in KNOWN_BACKENDS:
        raise InvalidArgument(f"backend '{shorten(backend)}' is not supported; known backends: {known_backends()}")
    if not platform:
        return backend or backend_of_file(file_name) or detected or DEFAULT_BACKEND
    # Some repositories write the backend's name as the platform.
    of_platform = _BACKEND_OF_PLATFORM.get(platform, platform if platform in KNOWN_BACKENDS else "")
    if not of_platform:
        platforms = ", ".join(sorted(_BACKEND_OF_PLATFORM))
        raise InvalidArgument(f"platform '{shorten(platform)}' is not supported; known platforms: {platforms}")
    if backend and backend != of_platform:
        raise InvalidArgument(f"backend '{backend}' contradicts platform '{shorten(platform)}'")
    return of_platform

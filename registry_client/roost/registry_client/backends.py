"""Which runtimes there are, and what a configuration or a file name says about which one a model needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from posixpath import splitext

from roost.core.errors import InvalidArgument
from roost.core.names import shorten


@dataclass(frozen=True, slots=True)
class Backend:
    """What is known of a runtime without asking it.

    Attributes:
        name: As configurations write it, and the worker's table of runtimes.
        files: Usual names of a model's file or folder; where nothing else says so, the first of them that is there.
        suffixes: Of other names that say which runtime reads the file.
        platforms: Older words for it in configurations; the first is the one that is shown.
        formats: What ``modelFormat`` of a KServe resource calls the models that it loads.
        parameters: Of a configuration, those that it takes into account; None for all.
        is_code: Its models are programs; they need ``--allow-code``, and load calls never bring one.
        is_stateless: Its models keep nothing from one request to the next that anybody could rely on, and do nothing
            but compute: to run one twice changes nothing.
        may_decouple: Its models may give more or fewer responses than one.
        has_threads: How many threads a run uses may be another number for each of its models.
        is_composed: There is no runtime for it: its models are made of others.
    """

    name: str
    files: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    parameters: frozenset[str] | None = frozenset()
    is_code: bool = False
    is_stateless: bool = True
    may_decouple: bool = False
    has_threads: bool = True
    is_composed: bool = False


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "onnxruntime",
            ("model.onnx",),
            suffixes=(".onnx",),
            platforms=("onnxruntime_onnx",),
            formats=("onnx",),
            parameters=frozenset({"intra_op_thread_count", "inter_op_thread_count", "execution_mode"}),
        ),
        Backend(
            "pytorch",
            ("model.pt", "model.pt2"),
            suffixes=(".pt", ".pt2"),
            platforms=("pytorch_libtorch",),
            formats=("pytorch",),
        ),
        Backend(
            "tensorflow",
            ("model.savedmodel", "saved_model.pb", "model.keras"),
            suffixes=(".savedmodel", ".keras"),
            platforms=("tensorflow_savedmodel",),
            formats=("tensorflow", "keras"),
            parameters=frozenset({"TF_SIGNATURE_DEF", "TF_GRAPH_TAG"}),
            has_threads=False,
        ),
        Backend(
            "sklearn",
            ("model.skops", "model.joblib", "model.pkl", "model.pickle"),
            suffixes=(".skops", ".joblib", ".pkl", ".pickle"),
            formats=("sklearn",),
            parameters=frozenset({"convert_to_onnx", "trusted_types"}),
        ),
        Backend("xgboost", ("model.json", "model.ubj", "model.bst"), suffixes=(".ubj", ".bst"), formats=("xgboost",)),
        Backend("lightgbm", ("model.txt", "model.bst"), formats=("lightgbm",)),
        Backend("python", ("model.py",), parameters=None, is_code=True, is_stateless=False, may_decouple=True),
        Backend("ensemble", (), platforms=("ensemble",), may_decouple=True, is_composed=True),
        Backend("dummy", ("model.dummy",), suffixes=(".dummy",), is_stateless=False, may_decouple=True),
    )
}
"""All of them; where several read files of a folder, the first goes before the others."""

DEFAULT_BACKEND = "onnxruntime"

SAVED_MODEL = "saved_model.pb"
"""A file that does not make a model, but the folder that it is in."""

_FOR_TESTS = "dummy"  # known, but nobody is told

_BACKEND_OF_PLATFORM = {platform: backend.name for backend in BACKENDS.values() for platform in backend.platforms}
_BACKEND_OF_FORMAT = {format_: backend.name for backend in BACKENDS.values() for format_ in backend.formats}
_LAYOUT = "triton"  # says how files are laid out, and not what they are
MODEL_FORMATS = (*sorted(_BACKEND_OF_FORMAT), _LAYOUT)
"""What ``modelFormat`` may say."""

_BACKENDS_OF_NAME: dict[str, str] = {}
_BACKENDS_OF_SUFFIX: dict[str, str] = {}
for _backend in BACKENDS.values():
    for _name in _backend.files:
        _BACKENDS_OF_NAME.setdefault(_name, _backend.name)
    for _name in _backend.suffixes:
        _BACKENDS_OF_SUFFIX.setdefault(_name, _backend.name)
_ORDER = {name: position for position, name in enumerate(BACKENDS)}


def known_backends() -> str:
    """The backends that there are, as error texts list them."""
    return ", ".join(sorted(name for name, known in BACKENDS.items() if name != _FOR_TESTS and not known.is_composed))


def platform_of(backend: str) -> str:
    """What the older ``platform`` of a configuration calls a backend; empty if it has no word for it."""
    platforms = BACKENDS[backend].platforms
    return platforms[0] if platforms else ""


def backend_of_format(name: str) -> str:
    """The backend of a ``modelFormat``; empty for one that does not tell."""
    return _BACKEND_OF_FORMAT.get(name, "")


def backend_of_file(file_name: str) -> str:
    """The backend that reads a file of this name; empty if none does."""
    return _BACKENDS_OF_NAME.get(file_name) or _BACKENDS_OF_SUFFIX.get(splitext(file_name)[1], "")


def backend_of_files(file_names: Iterable[str]) -> str:
    """The backend that reads one of these files; empty if none does.

    Usual names go before others, and backends in the order of the table: what lies beside a model may be anything.
    """
    found = [(name not in _BACKENDS_OF_NAME, _ORDER[b], b) for name in file_names if (b := backend_of_file(name))]
    return min(found)[2] if found else ""


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
    if backend and backend not in BACKENDS:
        raise InvalidArgument(f"backend '{shorten(backend)}' is not supported; known backends: {known_backends()}")
    if not platform:
        return backend or backend_of_file(file_name) or detected or DEFAULT_BACKEND
    # Some repositories write the backend's name as the platform.
    of_platform = _BACKEND_OF_PLATFORM.get(platform, platform if platform in BACKENDS else "")
    if not of_platform:
        platforms = ", ".join(sorted(_BACKEND_OF_PLATFORM))
        raise InvalidArgument(f"platform '{shorten(platform)}' is not supported; known platforms: {platforms}")
    if backend and backend != of_platform:
        raise InvalidArgument(f"backend '{backend}' contradicts platform '{shorten(platform)}'")
    return of_platform

"""``model-settings.json``, in which MLServer's users describe a model: read where there is no ``config.pbtxt``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from posixpath import splitext
from typing import Any, cast

from roost.core.errors import InvalidArgument
from roost.core.names import is_name
from roost.core.tensors import DATATYPES, MAX_RANK
from roost.proto import model_config_pb2 as mc
from roost.registry_client.backends import BACKENDS, backend_of_file, known_backends
from roost.registry_client.description import ModelDescription, Place, describe, tidy
from roost.registry_client.digest import SETTINGS_FILE
from roost.registry_client.files import is_plain_file_name

IMPLEMENTATIONS: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "roost.onnx": "onnxruntime",
    **{f"roost.{name}": name for name, backend in BACKENDS.items() if not backend.is_composed},
    "mlserver_onnx.ONNXModel": "onnxruntime",
    "mlserver_onnx.OnnxModel": "onnxruntime",
    "mlserver_sklearn.SKLearnModel": "sklearn",
    "mlserver_xgboost.XGBoostModel": "xgboost",
    "mlserver_lightgbm.LightGBMModel": "lightgbm",
    "mlserver_catboost.CatboostModel": "catboost",
    "mlserver_mlflow.MLflowRuntime": "mlflow",
    "mlserver_huggingface.HuggingFaceRuntime": "huggingface",
    "mlserver_alibi_explain.AlibiExplainRuntime": "alibi-explain",
    "mlserver_alibi_detect.AlibiDetectRuntime": "alibi-detect",
    "mlserver_mllib.MLlibModel": "spark-mllib",
}
"""The runtime that serves a model of each of MLServer's implementations; not all of them are there."""

MAX_BATCH_SIZE = 2**31 - 1
MAX_BATCH_TIME_S = 3600.0
MAX_TENSORS = 10_000
MAX_URI_CHARACTERS = 256

_MODEL_SUFFIXES = frozenset({".json", ".txt", ".model"})
"""Of names that say nothing of the runtime, but are no folder's."""

_KEYS = ("name", "implementation", "parameters", "inputs", "outputs", "max_batch_size", "max_batch_time")
_PARAMETERS = ("uri", "version")
_TENSOR_KEYS = ("name", "datatype", "shape")


def parse_settings(
    text: str, name: str, *, detected_backend: str = "", version_folders: bool = False
) -> ModelDescription:
    """Reads the text of a ``model-settings.json``.

    Shapes include the batch dimension, as they do in MLServer; with a ``max_batch_size`` over 1 it must be -1.

    Args:
        text: A JSON object.
        name: The model's name, which a name in the text must equal.
        detected_backend: The backend that the model's files hint at, for texts that name no implementation.
        version_folders: Whether the model's folder has version folders; without ``parameters.uri`` they are served.

    Raises:
        InvalidArgument: If it can't be understood or asks for what can't be done; the text names the key.
    """
    try:
        return _parse(text, name, detected_backend, version_folders)
    except InvalidArgument as error:
        message = error.message.removeprefix(f"{SETTINGS_FILE}: ")
        raise InvalidArgument(f"{SETTINGS_FILE}: {tidy(message)}") from None


def _parse(text: str, name: str, detected: str, version_folders: bool) -> ModelDescription:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(str(error)) from None
    if not isinstance(settings, dict):
        raise InvalidArgument("not a JSON object")
    parameters = _of(settings, "parameters", dict, {})
    config = mc.ModelConfig(name=_text(settings, "name"))
    implementation = _text(settings, "implementation")
    if implementation:
        config.backend = _backend(implementation)
    _read_batching(settings, config)
    for key, side in (("inputs", config.input), ("outputs", config.output)):
        _read_tensors(settings, key, side, config.max_batch_size > 0)
    folder, config.default_model_filename = _split_uri(_text(parameters, "uri", "parameters."))
    description = describe(config, name, SETTINGS_FILE, detected)
    ignored = [key for key in settings if key not in _KEYS]
    ignored += [f"parameters.{key}" for key in parameters if key not in _PARAMETERS]
    return replace(
        description,
        without_effect=tuple(tidy(f"{SETTINGS_FILE}: {key}") for key in sorted(ignored)),
        place=_place(parameters, folder, version_folders),
    )


def _place(parameters: Mapping[str, Any], folder: str, version_folders: bool) -> Place | None:
    version = _text(parameters, "version", "parameters.")
    if version and not is_name(version):
        raise InvalidArgument(f"parameters.version: '{version}' is not a name of letters, digits, '.', '_' and '-'")
    if version_folders and not _text(parameters, "uri", "parameters."):
        return None
    return Place(version or "1", folder)


def _backend(implementation: str) -> str:
    # Classes may be named by the module that defines them, mlserver_sklearn.sklearn.SKLearnModel.
    package, _, rest = implementation.partition(".")
    backend = IMPLEMENTATIONS.get(implementation) or IMPLEMENTATIONS.get(f"{package}.{rest.rpartition('.')[2]}")
    if backend is None:
        raise InvalidArgument(
            f"implementation: '{implementation}' is not known; custom Python implementations can't be served, the "
            f"runtimes are: {known_backends()}"
        )
    if backend not in BACKENDS:
        raise InvalidArgument(
            f"implementation: '{implementation}' needs the runtime '{backend}', which this server does not have; the "
            f"runtimes are: {known_backends()}"
        )
    return backend


def _split_uri(uri: str) -> tuple[str, str]:
    """The folder and the name of the file; a path to what is no model file is a folder, with a file of default name."""
    if len(uri) > MAX_URI_CHARACTERS:
        raise InvalidArgument(f"parameters.uri: longer than {MAX_URI_CHARACTERS} characters")
    parts = [part for part in uri.split("/") if part != "."]
    if parts and parts[-1] == "":
        parts.pop()
    # Schemes have an empty part behind the colon, absolute paths an empty one in front.
    if any(not is_plain_file_name(part) for part in parts):
        raise InvalidArgument(f"parameters.uri: '{uri}' is not a relative path of a file in the model's folder")
    if parts and (backend_of_file(parts[-1]) or splitext(parts[-1])[1] in _MODEL_SUFFIXES):
        return "/".join(parts[:-1]), parts[-1]
    return "/".join(parts), ""


def _read_batching(settings: Mapping[str, Any], config: mc.ModelConfig) -> None:
    size = _of(settings, "max_batch_size", int, 0)
    if not 0 <= size <= MAX_BATCH_SIZE:
        raise InvalidArgument(f"max_batch_size: {size} is not from 0 to {MAX_BATCH_SIZE}")
    delay_s = _of(settings, "max_batch_time", (int, float), 0.0)
    if not 0 <= delay_s <= MAX_BATCH_TIME_S or math.isnan(delay_s):
        raise InvalidArgument(f"max_batch_time: {delay_s} is not from 0 to {MAX_BATCH_TIME_S:g} seconds")
    if size > 1:  # 0 and 1 mean that nothing is batched
        config.max_batch_size = size
        if delay_s:
            config.dynamic_batching.max_queue_delay_microseconds = round(delay_s * 1e6)


def _read_tensors(settings: Mapping[str, Any], key: str, side: Any, batched: bool) -> None:
    rows = _of(settings, key, list, [])
    if len(rows) > MAX_TENSORS:
        raise InvalidArgument(f"{key}: more than {MAX_TENSORS}")
    for position, row in enumerate(rows):
        place = f"{key}[{position}]"
        if not isinstance(row, dict):
            raise InvalidArgument(f"{place}: not an object")
        missing = [field for field in _TENSOR_KEYS if field not in row]
        if missing:
            raise InvalidArgument(f"{place}: '{missing[0]}' is missing")
        datatype = _text(row, "datatype", place + ".")
        if datatype not in DATATYPES:
            raise InvalidArgument(f"{place}.datatype: '{datatype}' is not one of {', '.join(DATATYPES)}")
        data_type = cast("mc.DataType", mc.DataType.Value(DATATYPES[datatype].config_name))
        side.add(name=_text(row, "name", place + "."), data_type=data_type, dims=_dims(row, place, batched))


def _dims(row: Mapping[str, Any], place: str, batched: bool) -> list[int]:
    shape: list[int] = _of(row, "shape", list, [], place + ".")
    if len(shape) > MAX_RANK:
        raise InvalidArgument(f"{place}.shape: {len(shape)} dimensions are over the limit of {MAX_RANK}")
    if not all(isinstance(dim, int) and not isinstance(dim, bool) and dim != 0 and -1 <= dim < 2**63 for dim in shape):
        raise InvalidArgument(f"{place}.shape: dimensions must be positive integers or -1")
    if not batched:
        return shape
    if shape[:1] != [-1]:
        raise InvalidArgument(f"{place}.shape: the first dimension must be -1 where max_batch_size is over 1")
    return shape[1:]


def _text(fields: Mapping[str, Any], key: str, prefix: str = "") -> str:
    text: str = _of(fields, key, str, "", prefix)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{prefix}{key}: not valid Unicode") from None
    return text


def _of(fields: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any, prefix: str = "") -> Any:
    """A value of the kind that it must have; null is no value."""
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {dict: "an object", list: "a list", str: "a text", int: "an integer"}
        raise InvalidArgument(f"{prefix}{key}: not {names[kind] if isinstance(kind, type) else 'a number'}")
    return value

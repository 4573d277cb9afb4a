"""What models written for Triton import as ``triton_python_backend_utils``: the same names, made anew.

Tensors are on the CPU. Metrics are counted in the model's process and shown nowhere; loading, unloading and looking at
other models does not work, asking them does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.core.tensors import DATATYPES, pack_bytes, unpack_bytes
from roost.runtimes.python.saying import say
from roost.runtimes.python.triton_config import ModelConfig
from roost.runtimes.python.triton_values import (
    NO_CALLS,
    TRITONSERVER_MEMORY_CPU,
    TRITONSERVER_MEMORY_GPU,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceRequest,
    InferenceResponse,
    PreferredMemory,
    Tensor,
    TritonError,
    TritonModelException,
    numpy_to_triton_type,
    triton_to_numpy_type,
)

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "InferenceRequest",
    "InferenceResponse",
    "Logger",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

_model_folder = ""


def describe_model(folder: str) -> None:
    """Says which model this process has, for ``get_model_dir``."""
    global _model_folder
    _model_folder = folder


class Logger:
    """Writes to the model's log."""

    INFO, WARNING, ERROR, VERBOSE = "I", "W", "E", "D"

    class LogLevel:
        """The levels under their other name."""

        INFO, WARNING, ERROR, VERBOSE = "I", "W", "E", "D"

    @staticmethod
    def log(message: str, level: str = INFO) -> None:
        """Writes a line of a level."""
        say(level, message)

    @staticmethod
    def log_info(message: str) -> None:
        """Writes a line for those who look on."""
        say("I", message)

    @staticmethod
    def log_warn(message: str) -> None:
        """Writes a warning."""
        say("W", message)

    @staticmethod
    def log_error(message: str) -> None:
        """Writes an error."""
        say("E", message)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Writes a line for those who search."""
        say("D", message)


class Metric:
    """A number that the model keeps."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels, self._value = dict(labels or {}), 0.0

    def increment(self, value: float) -> None:
        """Adds to it."""
        self._value += value

    def set(self, value: float) -> None:
        """Sets it."""
        self._value = value

    def observe(self, value: float) -> None:
        """Adds to it."""
        self._value += value

    def value(self) -> float:
        """What it is."""
        return self._value


class MetricFamily:
    """Numbers that the model keeps; nobody else sees them."""

    COUNTER, GAUGE, HISTOGRAM = 0, 1, 2

    def __init__(self, name: str, description: str, kind: int = COUNTER) -> None:
        self.name, self.description, self.kind = name, description, kind

    def Metric(self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] = ()) -> Metric:
        """One of them."""
        return Metric(labels)


def get_model_dir() -> str:
    """The folder of the version's files."""
    return _model_folder


def load_model(model_name: str, files: Mapping[str, bytes] | None = None, config: str = "") -> None:
    """Would load another model.

    Raises:
        TritonModelException: Always.
    """
    raise TritonModelException("loading other models is not supported by this server")


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Would unload another model.

    Raises:
        TritonModelException: Always.
    """
    raise TritonModelException("unloading other models is not supported by this server")


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Would say whether another model is ready.

    Raises:
        TritonModelException: Always.
    """
    raise TritonModelException(NO_CALLS)


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """The input of that name; None if there is none."""
    return _by_name(inference_request.inputs(), name)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The output of that name; None if there is none."""
    return _by_name(inference_response.output_tensors(), name)


def _by_name(tensors: Iterable[Tensor], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the configuration says of an input; None if nothing."""
    return next((item for item in model_config.get("input", ()) if item["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the configuration says of an output; None if nothing."""
    return next((item for item in model_config.get("output", ()) if item["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether the model may give more or fewer responses than one."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type of a word of the configuration, such as ``TYPE_FP32``."""
    known = next((item for item in DATATYPES.values() if item.config_name == triton_type_string), None)
    if known is None:
        raise TritonModelException(f"'{triton_type_string}' is no datatype")
    return np.object_ if known.dtype is None else known.dtype.type


def serialize_byte_tensor(input_tensor: npt.NDArray[Any]) -> bytes | None:
    """Elements, each behind its length of four bytes; None for none."""
    if input_tensor.size == 0:
        return None
    flat = input_tensor.reshape(-1).tolist()
    return pack_bytes(item if isinstance(item, bytes) else str(item).encode() for item in flat)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> npt.NDArray[Any]:
    """The elements of what ``serialize_byte_tensor`` makes, as a flat array of ``bytes``."""
    elements = unpack_bytes(memoryview(encoded_tensor))
    array = np.empty(len(elements), object)
    array[:] = elements
    return array

"""Tensors, requests, responses and errors as models written for Triton know them; see ``triton_utils``."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from roost.core.errors import RoostError
from roost.runtimes.python.triton_calls import ask, triton_code

if TYPE_CHECKING:
    from roost.runtimes.python.triton import Sender

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2
TRITONSERVER_MEMORY_CPU = 0
TRITONSERVER_MEMORY_GPU = 2

# Triton numbers its datatypes as they are numbered here, in the order of its configuration's words.
_NUMPY_OF_TYPE: dict[int, Any] = {
    1: np.bool_,
    2: np.uint8,
    3: np.uint16,
    4: np.uint32,
    5: np.uint64,
    6: np.int8,
    7: np.int16,
    8: np.int32,
    9: np.int64,
    10: np.float16,
    11: np.float32,
    12: np.float64,
    13: np.object_,
}
_BYTES_TYPE = 13
_TYPE_OF_KIND = {np.dtype(scalar): number for number, scalar in _NUMPY_OF_TYPE.items()}
NO_CALLS: Final = "a model can't look at the state of others here"


def triton_to_numpy_type(data_type: int) -> Any:
    """The numpy type of a datatype's number; None if numpy has none."""
    return _NUMPY_OF_TYPE.get(data_type)


def numpy_to_triton_type(data_type: npt.DTypeLike) -> int:
    """The number of a numpy type's datatype.

    Raises:
        TritonModelException: If there is none.
    """
    dtype = np.dtype(data_type)
    if dtype.kind == "S":
        return _BYTES_TYPE
    try:
        return _TYPE_OF_KIND[dtype]
    except KeyError:
        raise TritonModelException(f"{dtype} is not supported") from None


class TritonModelException(Exception):
    """What went wrong, for the client."""

    def message(self) -> str:
        """Its text."""
        return str(self)


class TritonError:
    """The error of one request.

    Args:
        message: What went wrong, for the client.
        code: One of this class's codes.
    """

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    def __init__(self, message: str, code: int = UNKNOWN) -> None:
        self._message = message
        self._code = code

    def message(self) -> str:
        """Its text."""
        return self._message

    def code(self) -> int:
        """Its code."""
        return self._code

    def __str__(self) -> str:
        return self._message


class Tensor:
    """A named array.

    Args:
        name: The input's or output's name.
        numpy_array: Its elements; strings are objects, ``bytes`` or ``str``.
    """

    def __init__(self, name: str, numpy_array: npt.NDArray[Any]) -> None:
        if not isinstance(numpy_array, np.ndarray) or numpy_array.dtype.kind in "UV":
            raise TritonModelException(
                f"tensor '{name}': an array of {getattr(numpy_array, 'dtype', type(numpy_array).__name__)} is not "
                "supported; strings are arrays of np.object_"
            )
        self._name = name
        self._array = numpy_array

    def name(self) -> str:
        """Its name."""
        return self._name

    def as_numpy(self) -> npt.NDArray[Any]:
        """Its elements."""
        return self._array

    def triton_dtype(self) -> int:
        """The number of its datatype."""
        return numpy_to_triton_type(self._array.dtype)

    def shape(self) -> list[int]:
        """Its dimensions."""
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        """Always true."""
        return True

    def to_dlpack(self) -> Any:
        """A capsule that other libraries make a tensor of without a copy."""
        return self.__dlpack__()

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """Makes a tensor of another library's, without a copy."""
        return Tensor(name, np.from_dlpack(tensor))

    def __dlpack__(self, **options: Any) -> Any:
        return _writeable(self._array).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device


def _writeable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array if array.flags.writeable else array.copy()  # numpy hands out no others


class PreferredMemory:
    """Where a model would like its tensors; they are on the CPU."""

    def __init__(self, preferred_memory_type: int = TRITONSERVER_MEMORY_CPU, preferred_device_id: int = 0) -> None:
        self.type, self.device_id = preferred_memory_type, preferred_device_id


class InferenceResponse:
    """The answer to one request.

    Args:
        output_tensors: Its outputs.
        error: Why there are none.
        parameters: What else is said; not sent.
    """

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._tensors = list(output_tensors)
        if not all(isinstance(tensor, Tensor) for tensor in self._tensors):
            raise TritonModelException("output_tensors must be a list of Tensor")
        self._error = error
        self._parameters = dict(parameters or {})

    def output_tensors(self) -> list[Tensor]:
        """Its outputs."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether it is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error."""
        return self._error

    def parameters(self) -> str:
        """What else is said, in JSON."""
        return json.dumps(self._parameters)


class InferenceRequest:
    """One request; those that ``execute`` gets can be answered through their sender."""

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Iterable[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: Any = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._request_id, self._correlation_id = request_id, correlation_id
        self._inputs, self._outputs = list(inputs), list(requested_output_names)
        self._model_name, self._model_version = model_name, model_version
        self._flags, self._timeout = flags, timeout
        self._preferred_memory, self._trace = preferred_memory or PreferredMemory(), trace
        self._parameters = dict(parameters or {})
        self._sender: Sender | None = None

    def inputs(self) -> list[Tensor]:
        """Its inputs."""
        return self._inputs

    def request_id(self) -> str:
        """The client's id for it; empty if it has none, or was batched with others."""
        return self._request_id

    def correlation_id(self) -> int | str:
        """The sequence that it belongs to; 0 for none."""
        return self._correlation_id

    def requested_output_names(self) -> list[str]:
        """The outputs that are wanted."""
        return self._outputs

    def model_name(self) -> str:
        """The model that is asked."""
        return self._model_name

    def model_version(self) -> int:
        """Its version; -1 for any."""
        return self._model_version

    def flags(self) -> int:
        """Whether it begins or ends a sequence."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Sets that."""
        self._flags = flags

    def timeout(self) -> int:
        """Its timeout in microseconds; 0 for none."""
        return self._timeout

    def preferred_memory(self) -> PreferredMemory:
        """Where its outputs are wanted."""
        return self._preferred_memory

    def trace(self) -> Any:
        """Nothing: there are no traces."""
        return self._trace

    def parameters(self) -> str:
        """Its parameters, an object in JSON."""
        return json.dumps(self._parameters)

    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._sender is not None and self._sender.is_cancelled()

    def get_response_sender(self) -> Sender:
        """What answers it later, or several times.

        Raises:
            TritonModelException: If it is a request of the model itself.
        """
        if self._sender is None:
            raise TritonModelException("only requests that the model was asked have a response sender")
        self._sender.taken = True
        return self._sender

    def set_release_flags(self, flags: int) -> None:
        """Would have it put back.

        Raises:
            TritonModelException: If that is wanted.
        """
        if flags & TRITONSERVER_REQUEST_RELEASE_RESCHEDULE:
            raise TritonModelException("rescheduling requests is not supported by this server")

    def exec(self, decoupled: bool = False) -> InferenceResponse:
        """Asks the model that it is for, and waits for the answer, which may be an error.

        Raises:
            TritonModelException: If a decoupled model is to be asked.
        """
        if decoupled:
            raise TritonModelException("decoupled models can't be asked by other models yet")
        inputs = [(tensor.name(), tensor.triton_dtype(), tensor.as_numpy()) for tensor in self._inputs]
        try:
            found = ask(self._model_name, self._model_version, inputs, self._outputs, self._own_parameters())
        except RoostError as error:
            return InferenceResponse(error=TritonError(error.message, triton_code(error)))
        return InferenceResponse([Tensor(name, array) for name, array in found])

    async def async_exec(self, decoupled: bool = False) -> InferenceResponse:
        """The same while others get their turn.

        Raises:
            TritonModelException: If a decoupled model is to be asked.
        """
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        return await loop.run_in_executor(None, context.run, self.exec, decoupled)

    def _own_parameters(self) -> dict[str, Any]:
        if not self._correlation_id:
            return self._parameters
        start = bool(self._flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
        end = bool(self._flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
        sequence = {"sequence_id": self._correlation_id, "sequence_start": start, "sequence_end": end}
        return {**self._parameters, **sequence}

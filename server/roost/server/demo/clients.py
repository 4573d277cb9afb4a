"""The same question over REST and over gRPC, asked through tritonclient and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from roost.server.demo.errors import DemoError
from roost.server.demo.server_process import Ports

# Generous, since the first request of a model waits for its load.
_TIMEOUT_S = 60.0
_DATATYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request is in a sequence, whose state the server keeps."""

    sequence: int
    is_first: bool
    is_last: bool


class DemoClient(Protocol):
    """A client of one transport; ``latencies_ms`` gets an entry per request."""

    transport: str
    latencies_ms: list[float]

    def server(self) -> tuple[str, str]:
        """Name and version of the server."""

    def infer(
        self, model: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], place: Place | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Runs a model.

        Raises:
            DemoError: If the server refuses or can't be reached.
        """

    def close(self) -> None:
        """Closes the connection."""


class TritonDemoClient:
    """tritonclient's http and grpc modules look alike: what differs is in the module that is passed in."""

    def __init__(
        self, transport: str, module: Any, url: str, connect: Mapping[str, Any], call: Mapping[str, Any]
    ) -> None:
        self.transport = transport
        self.latencies_ms: list[float] = []
        self._module = module
        self._client = module.InferenceServerClient(url, **connect)
        self._call = call

    def server(self) -> tuple[str, str]:
        """Name and version of the server."""
        with self._one_line_errors():
            metadata = self._client.get_server_metadata()
        if isinstance(metadata, dict):
            return metadata["name"], metadata["version"]
        return metadata.name, metadata.version

    def infer(
        self, model: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], place: Place | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Runs a model with tensors as raw bytes, and notes how long the answer took.

        Raises:
            DemoError: If the server refuses or can't be reached.
        """
        tensors = [self._input(name, array) for name, array in inputs.items()]
        wanted = [self._module.InferRequestedOutput(name) for name in outputs]
        call = {**self._call, **_arguments(place)}
        with self._one_line_errors():
            started = time.perf_counter()
            result = self._client.infer(model, tensors, outputs=wanted, **call)
            self.latencies_ms.append((time.perf_counter() - started) * 1e3)
        return {name: self._output(result, model, name) for name in outputs}

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _input(self, name: str, array: npt.NDArray[Any]) -> Any:
        tensor = self._module.InferInput(name, list(array.shape), _DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array)
        return tensor

    def _output(self, result: Any, model: str, name: str) -> npt.NDArray[Any]:
        array = result.as_numpy(name)
        if array is None:
            raise DemoError(f"{model} answered over {self.transport} without the output {name!r}")
        return np.asarray(array)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            raise DemoError(f"the server answered over {self.transport}: {error.message()}") from error
        except OSError as error:
            raise DemoError(f"the server can't be reached over {self.transport}: {error}") from error


def _arguments(place: Place | None) -> dict[str, Any]:
    """What tritonclient's calls are told of it."""
    if place is None:
        return {}
    return {"sequence_id": place.sequence, "sequence_start": place.is_first, "sequence_end": place.is_last}


def open_clients(ports: Ports) -> tuple[DemoClient, DemoClient]:
    """A REST and a gRPC client for the server on these ports.

    Raises:
        DemoError: If tritonclient is not installed.
    """
    try:
        from tritonclient import grpc, http
    except ImportError as error:
        raise DemoError(
            f"the demo asks through tritonclient; install it: pip install 'roost[demo]' ({error})"
        ) from error
    rest = TritonDemoClient(
        "REST", http, ports.http_address, {"connection_timeout": _TIMEOUT_S, "network_timeout": _TIMEOUT_S}, {}
    )
    return rest, TritonDemoClient("gRPC", grpc, ports.grpc_address, {}, {"client_timeout": _TIMEOUT_S})

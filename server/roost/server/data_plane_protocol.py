"""What the transports see of the data plane: one set of calls on plain values, whichever protocol carried them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.requests import InferRequest, InferResponse
from roost.proto import model_config_pb2 as mc

RepositoryParameters: TypeAlias = Mapping[str, bool | int | str | bytes]


class Budget(Protocol):
    """Bytes of request bodies that may be in the server at once."""

    def acquire(self, size_bytes: int) -> None:
        """Takes the bytes at once.

        Raises:
            ResourceExhausted: If they do not fit; nothing waits.
        """

    def release(self, size_bytes: int) -> None:
        """Gives back what was taken."""


class DataPlane(Protocol):
    """Everything that REST and gRPC can ask for.

    Every call may raise any ``RoostError``; cancelling an awaited call cancels the request behind it.
    """

    @property
    def bodies(self) -> Budget:
        """The byte budget that every transport takes its request bodies from."""

    @property
    def request_timeout_s(self) -> float:
        """How long a request may take at most."""

    def server_live(self) -> bool:
        """Whether the process serves or is about to."""

    def server_ready(self) -> bool:
        """Whether requests are welcome: at least one worker is up and the server is not draining."""

    def server_metadata(self) -> ServerMetadata:
        """Name, version and extensions of the server."""

    async def model_ready(self, name: str, version: str = "") -> bool:
        """Whether the model may be asked for; False for an unknown one."""

    async def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Versions, platform and tensors of the model."""

    async def model_config(self, name: str, version: str = "") -> mc.ModelConfig:
        """The model's effective configuration."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Runs one request."""

    async def repository_index(self, ready: bool = False) -> list[IndexEntry]:
        """The models of the repositories, only the ready ones if so asked."""

    async def load_model(self, name: str, parameters: RepositoryParameters) -> None:
        """Makes a model available and creates one instance of it."""

    async def unload_model(self, name: str, parameters: RepositoryParameters) -> None:
        """Makes a model unavailable."""

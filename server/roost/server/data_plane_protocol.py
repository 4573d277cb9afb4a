"""What the transports see of the data plane: one set of calls on plain values, whichever protocol carried them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from roost.core.errors import Limit
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.requests import Done, InferRequest, InferResponse, Ticket
from roost.core.statistics import ModelStatistics
from roost.proto import model_config_pb2 as mc

RepositoryParameters: TypeAlias = Mapping[str, bool | int | str | bytes]
# Trace settings are texts, but for trace_level, which is a list of them.
TraceSettings: TypeAlias = Mapping[str, str | tuple[str, ...]]
LogSettings: TypeAlias = Mapping[str, bool | int | str]


class Budget(Protocol):
    """Bytes of request bodies that may be in the server at once."""

    def acquire(self, size_bytes: int) -> None:
        """Takes the bytes at once.

        Raises:
            ResourceExhausted: If they do not fit; nothing waits.
        """

    def release(self, size_bytes: int) -> None:
        """Gives back what was taken."""


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """A shared-memory region that a client registered; offset and size in bytes."""

    name: str
    key: str
    offset: int
    byte_size: int


class SharedMemory(Protocol):
    """The regions of system shared memory that clients have registered.

    All of its methods raise ``Unimplemented`` if the server does not offer shared memory, but for ``status``.
    """

    def status(self, name: str = "") -> list[RegionStatus]:
        """One region, or all of them.

        Raises:
            NotFound: If there is no region of that name.
        """

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Makes a region known.

        Args:
            name: What requests call it.
            key: The name of the POSIX shared-memory object.
            offset: Where in the object it begins.
            byte_size: Its size.

        Raises:
            AlreadyExists: If the name is taken.
            InvalidArgument: If key, offset or size are wrong.
            NotFound: If there is no such object.
        """

    def unregister(self, name: str = "") -> None:
        """Forgets one region, or all of them; one that is not known is fine."""


class CudaSharedMemory(Protocol):
    """The regions of CUDA memory that clients have registered."""

    def status(self, name: str = "") -> list[RegionStatus]:
        """One region, or all of them.

        Raises:
            NotFound: If there is no region of that name.
        """

    def register(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """Makes a region known.

        Raises:
            InvalidArgument: If there is no such GPU.
        """

    def unregister(self, name: str = "") -> None:
        """Forgets one region, or all of them; one that is not known is fine."""


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

    def begin(self, request: InferRequest, done: Done) -> Ticket | None:
        """Takes a request that needs nothing but its run, of a model that is known and loaded; costs no task.

        Counted and logged as by ``infer``, which is for everything else.

        Args:
            request: What to run.
            done: Called with the outcome, exactly once and never from within this call; not after a cancel.

        Returns:
            What cancels the request; None if the request needs more and nothing was done: ``infer`` answers it then.

        Raises:
            RoostError: What ``infer`` would raise at once.
        """

    async def infer(self, request: InferRequest) -> InferResponse:
        """Runs one request.

        Raises:
            Unimplemented: If the model is decoupled, so that it may answer more or less than once.
        """

    def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Runs one request of any model and yields what it answers.

        The last item has ``final`` set; where a decoupled model ends without an answer it has no outputs. Whoever
        does not take all items must close the generator, which cancels the request. The model waits while nobody
        takes what it has answered.
        """

    async def model_names(self) -> list[str]:
        """The names of all models that may be asked for, sorted."""

    async def model_statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """Statistics of one version, of all versions of a model, or of all models that were used.

        Raises:
            NotFound: If there is no such model or version.
        """

    def refused(self, limit: Limit | None) -> None:
        """Counts a request that the transport turns away before ``infer``, which counts its own.

        Args:
            limit: The limit that was in the way; None for other failures, which are not counted.
        """

    async def trace_settings(self, model: str = "") -> TraceSettings:
        """The trace settings of the server, or those in effect for a model.

        Raises:
            NotFound: If there is no such model.
        """

    async def update_trace_settings(
        self, updates: Mapping[str, tuple[str, ...] | None], model: str = ""
    ) -> TraceSettings:
        """Changes trace settings and returns all; a setting that is None goes back to what it was at first.

        Raises:
            NotFound: If there is no such model.
            InvalidArgument: If a value makes no sense.
            FailedPrecondition: If it asks for tracing, which does not exist yet.
            Unimplemented: If it names a file.
        """

    def log_settings(self) -> LogSettings:
        """The settings of the log."""

    def update_log_settings(self, updates: LogSettings) -> LogSettings:
        """Changes settings of the log and returns all; unknown ones are ignored.

        Raises:
            InvalidArgument: If a value makes no sense.
            Unimplemented: If it names a file.
        """

    @property
    def shared_memory(self) -> SharedMemory:
        """The clients' regions of system shared memory."""

    @property
    def cuda_shared_memory(self) -> CudaSharedMemory:
        """The clients' regions of CUDA memory."""

    async def repository_index(self, ready: bool = False, name: str = "") -> list[IndexEntry]:
        """The models of the repositories, only the ready ones if so asked, or one model alone."""

    async def load_model(self, name: str, parameters: RepositoryParameters) -> None:
        """Makes a model available and creates one instance of each of its versions.

        Args:
            name: The model.
            parameters: ``config``, a ModelConfig in JSON that replaces the one on disk, and with it ``file:PATH``,
                files in place of those on disk.
        """

    async def unload_model(self, name: str, parameters: RepositoryParameters) -> None:
        """Makes a model unavailable.

        Args:
            name: The model.
            parameters: ``unload_dependents``: whether the models of an ensemble's steps go with it that were loaded for
                it alone.
        """

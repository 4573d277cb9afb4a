"""What every transport calls: the data plane, and the place where requests are counted, limited and logged."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from roost.core.errors import Code, InvalidArgument, Limit, NotFound, RoostError, Unavailable
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.names import check_name
from roost.core.requests import Done, InferRequest, InferResponse, Ticket
from roost.core.statistics import ModelStatistics
from roost.core.version import __version__
from roost.proto import model_config_pb2 as mc
from roost.router.activity_view import Activity, Question
from roost.router.admission import ByteBudget
from roost.router.inference import outcome_of
from roost.router.records import RequestRecord
from roost.router.router import Router
from roost.router.view import MeshView
from roost.server.client_memory import ClientMemory, NoGpuMemory
from roost.server.data_plane_protocol import LogSettings, RepositoryParameters, TraceSettings
from roost.server.log_settings import LogBook
from roost.server.offload import Offload
from roost.server.region_io import InRegions, RegionIO, uses_regions
from roost.server.trace import TraceBook

access_log = logging.getLogger("roost.access")

# In the order in which Triton lists them, which is that of its documentation.
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)


class RouterDataPlane:
    """The data plane in front of a router. Implements ``data_plane_protocol.DataPlane``.

    Args:
        router: Answers.
        server_name: What the server calls itself.
        request_timeout_s: How long a request may take at most.
        body_budget_bytes: What request bodies may hold together.
        log_requests: Whether each inference request gets a line in the log.
        shared_memory: The regions of clients.
        log_book: The settings of the log.
    """

    def __init__(
        self,
        router: Router,
        *,
        server_name: str,
        request_timeout_s: float,
        body_budget_bytes: int,
        log_requests: bool,
        shared_memory: ClientMemory,
        log_book: LogBook,
    ) -> None:
        self._router = router
        self._server_name = server_name
        router.stats.on_end = _log_access if log_requests else None
        self._log_book = log_book
        self._trace_book = TraceBook()
        self._copies = Offload("region-copies")
        self._accepting = False
        self.request_timeout_s = request_timeout_s
        self.bodies = ByteBudget(body_budget_bytes)
        self.shared_memory = shared_memory
        self.cuda_shared_memory = NoGpuMemory()

    def open(self) -> None:
        """From now on the server is ready, as far as it depends on this."""
        self._accepting = True

    def drain(self) -> None:
        """From now on the server is not ready; requests that still come are answered."""
        self._accepting = False

    async def close(self) -> None:
        """Ends its threads; nobody may call it any more."""
        await self._copies.close()

    def server_live(self) -> bool:
        """See ``DataPlane``."""
        return True

    def server_ready(self) -> bool:
        """See ``DataPlane``."""
        return self._accepting and self._router.ready

    def server_metadata(self) -> ServerMetadata:
        """See ``DataPlane``."""
        left_out = () if self.shared_memory.offered else ("system_shared_memory",)
        extensions = tuple(name for name in EXTENSIONS if name not in left_out)
        return ServerMetadata(self._server_name, __version__, extensions)

    async def model_ready(self, name: str, version: str = "") -> bool:
        """See ``DataPlane``."""
        return await self._router.model_ready(name, version)

    async def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """See ``DataPlane``."""
        return await self._router.model_metadata(name, version)

    async def model_config(self, name: str, version: str = "") -> mc.ModelConfig:
        """See ``DataPlane``."""
        return await self._router.model_config(name, version)

    def begin(self, request: InferRequest, done: Done) -> Ticket | None:
        """See ``DataPlane``."""
        try:
            ticket = self._router.begin(request, done)
            return self._begin_in_regions(request, done) if ticket is None and uses_regions(request) else ticket
        except BaseException as error:
            self._count(request, error)
            _drop_frames(error)
            raise

    async def infer(self, request: InferRequest) -> InferResponse:
        """See ``DataPlane``."""
        response = await outcome_of(partial(self.begin, request))
        return response if response is not None else await self._infer(request)

    async def _infer(self, request: InferRequest) -> InferResponse:
        """What ``begin`` does not take."""
        try:
            if uses_regions(request):
                response = await self._infer_in_regions(request)
            else:
                response = await self._router.infer(request)
        except BaseException as error:
            self._count(request, error)
            _drop_frames(error)
            raise
        self._count(request, None)
        return response

    async def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """See ``DataPlane``; counted once, as a success if the last answer was there."""
        run = self._stream_in_regions if uses_regions(request) else self._router.infer_stream
        ended = False
        try:
            async with aclosing(run(request)) as responses:
                async for response in responses:
                    ended = response.final
                    yield response
        except BaseException as error:
            closed = not isinstance(error, Exception)
            self._count(request, None if ended and closed else error)
            _drop_frames(error)
            raise
        self._count(request, None)

    def _regions(self, request: InferRequest) -> RegionIO:
        stage = partial(self._router.stage, request.model_name, request.model_version)
        return RegionIO(self.shared_memory, self.bodies, self._copies, request, stage)

    def _begin_in_regions(self, request: InferRequest, done: Done) -> Ticket | None:
        regions = self._regions(request)
        ticket = None
        try:
            if regions.is_small:
                regions.read_at_once()
                run = InRegions(regions, done, partial(self._count, request))
                run.ticket = self._router.begin(request, run.ended, in_regions=True)
                ticket = run if run.ticket is not None else None
        finally:
            if ticket is None:
                regions.close()
        return ticket

    async def _infer_in_regions(self, request: InferRequest) -> InferResponse:
        regions = self._regions(request)
        try:
            await regions.read()
            response = await self._router.infer(request)
            await regions.write(response)
            return response
        finally:
            regions.close()

    async def _stream_in_regions(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        regions = self._regions(request)
        try:
            await regions.read()
            async with aclosing(self._router.infer_stream(request)) as responses:
                async for response in responses:
                    await regions.write(response)
                    yield response
        finally:
            regions.close()

    async def model_names(self) -> list[str]:
        """See ``DataPlane``."""
        return self._router.names()

    async def model_statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """See ``DataPlane``."""
        return await self._router.statistics(name, version)

    def refused(self, limit: Limit | None) -> None:
        """See ``DataPlane``."""
        if limit is not None:
            self._router.stats.refusals[limit] += 1

    async def trace_settings(self, model: str = "") -> TraceSettings:
        """See ``DataPlane``."""
        if model:
            await self._require_known(model)
        return self._trace_book.of(model)

    async def update_trace_settings(
        self, updates: Mapping[str, tuple[str, ...] | None], model: str = ""
    ) -> TraceSettings:
        """See ``DataPlane``."""
        if model:
            self._trace_book.keep(await self._require_known(model))
        return self._trace_book.update(updates, model)

    def log_settings(self) -> LogSettings:
        """See ``DataPlane``."""
        return self._log_book.settings()

    def update_log_settings(self, updates: LogSettings) -> LogSettings:
        """See ``DataPlane``."""
        return self._log_book.update(updates)

    async def repository_index(self, ready: bool = False, name: str = "") -> list[IndexEntry]:
        """See ``DataPlane``."""
        return await self._router.index(ready, name)

    async def load_model(self, name: str, parameters: RepositoryParameters) -> None:
        """See ``DataPlane``."""
        for key in parameters:
            if key != "config" and not key.startswith("file:"):
                raise InvalidArgument(f"unrecognized load parameter '{key}'.")
        self._refuse_while_draining()
        await self._router.load(check_name(name), parameters)

    async def unload_model(self, name: str, parameters: RepositoryParameters) -> None:
        """See ``DataPlane``."""
        for key in parameters:
            if key != "unload_dependents":
                raise InvalidArgument(f"unrecognized unload parameter '{key}'.")
        dependents = parameters.get("unload_dependents", False)
        if not isinstance(dependents, bool):
            raise InvalidArgument("unload parameter 'unload_dependents' is true or false")
        await self._router.unload(check_name(name), dependents=dependents)

    def view(self, *, instances: bool = True) -> MeshView:
        """What the mesh looks like now, with or without instances."""
        return replace(
            self._router.view(instances=instances),
            ready=self.server_ready(),
            body_bytes=self.bodies.used_bytes,
            body_limit_bytes=self.bodies.limit_bytes,
        )

    async def activity(self, question: Question) -> Activity:
        """What happens in the mesh now, as far as it was asked for."""
        return replace(await self._router.activity(question), ready=self.server_ready())

    def _refuse_while_draining(self) -> None:
        if not self._accepting:
            raise Unavailable("the server is stopping", retry_after_s=1.0, limit=Limit.DRAINING)

    async def _require_known(self, model: str) -> list[str]:
        """All models that may be asked for.

        Raises:
            NotFound: If this one is not among them.
        """
        names = await self.model_names()
        if model not in names:
            raise NotFound(f"Request for unknown model : {model}")
        return names

    def _count(self, request: InferRequest, failure: BaseException | None) -> None:
        if failure is not None and not isinstance(failure, RoostError):
            # What is no Exception ends a task or a generator: nobody waits for the answer any more.
            self._router.stats.finished(request, Code.INTERNAL if isinstance(failure, Exception) else Code.CANCELLED)
        else:
            self._router.stats.finished(request, failure)


def _log_access(request: InferRequest, record: RequestRecord) -> None:
    access_log.info(
        "%s %s %s %.2f ms",
        request.model_name,
        record.version or "-",
        record.code or "OK",
        record.total_s * 1e3,
        extra={"caller": request.context.caller, "request_id": request.id},
    )


def _drop_frames(error: BaseException) -> None:
    """Takes the traceback off an expected error; nobody prints it.

    Futures keep errors, and the frames of a traceback keep futures: a failed request would keep its tensors until the
    garbage collector comes by.
    """
    if isinstance(error, RoostError):
        error.__traceback__ = None

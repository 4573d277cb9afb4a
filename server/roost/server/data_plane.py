"""What every transport calls: the data plane, and the place where requests are counted, limited and logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from roost.core.errors import Code, InvalidArgument, RoostError, Unavailable, Unimplemented
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.names import check_name
from roost.core.requests import InferRequest, InferResponse
from roost.core.version import __version__
from roost.proto import model_config_pb2 as mc
from roost.router.admission import ByteBudget
from roost.router.router import Router
from roost.router.stats import RequestRecord
from roost.router.view import MeshView

access_log = logging.getLogger("roost.access")

EXTENSIONS = ("model_repository", "model_configuration", "binary_tensor_data", "parameters")


class RouterDataPlane:
    """The data plane in front of a router. Implements ``data_plane_protocol.DataPlane``.

    Args:
        router: Answers.
        server_name: What the server calls itself.
        request_timeout_s: How long a request may take at most.
        body_budget_bytes: What request bodies may hold together.
        log_requests: Whether each inference request gets a line in the log.
    """

    def __init__(
        self, router: Router, *, server_name: str, request_timeout_s: float, body_budget_bytes: int, log_requests: bool
    ) -> None:
        self._router = router
        self._server_name = server_name
        self._log_requests = log_requests
        self._accepting = False
        self.request_timeout_s = request_timeout_s
        self.bodies = ByteBudget(body_budget_bytes)

    def open(self) -> None:
        """From now on the server is ready, as far as it depends on this."""
        self._accepting = True

    def drain(self) -> None:
        """From now on the server is not ready; requests that still come are answered."""
        self._accepting = False

    def server_live(self) -> bool:
        """See ``DataPlane``."""
        return True

    def server_ready(self) -> bool:
        """See ``DataPlane``."""
        return self._accepting and self._router.ready

    def server_metadata(self) -> ServerMetadata:
        """See ``DataPlane``."""
        return ServerMetadata(self._server_name, __version__, EXTENSIONS)

    async def model_ready(self, name: str, version: str = "") -> bool:
        """See ``DataPlane``."""
        return await self._router.model_ready(name, version)

    async def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """See ``DataPlane``."""
        return await self._router.model_metadata(name, version)

    async def model_config(self, name: str, version: str = "") -> mc.ModelConfig:
        """See ``DataPlane``."""
        return await self._router.model_config(name, version)

    async def infer(self, request: InferRequest) -> InferResponse:
        """See ``DataPlane``."""
        code: Code | None = Code.CANCELLED
        try:
            response = await self._router.infer(request)
            code = None
            return response
        except RoostError as error:
            code = error.code
            raise
        except Exception:
            code = Code.INTERNAL
            raise
        finally:
            self._count(request, code)

    async def repository_index(self, ready: bool = False) -> list[IndexEntry]:
        """See ``DataPlane``."""
        return await self._router.index(ready)

    async def load_model(self, name: str, parameters: Mapping[str, bool | int | str | bytes]) -> None:
        """See ``DataPlane``; overrides of configuration and files are not taken yet."""
        for key in parameters:
            if key == "config" or key.startswith("file:"):
                raise Unimplemented(f"load parameter '{key}' is not implemented by this server")
            raise InvalidArgument(f"unrecognized load parameter '{key}'.")
        self._refuse_while_draining()
        await self._router.load(check_name(name))

    async def unload_model(self, name: str, parameters: Mapping[str, bool | int | str | bytes]) -> None:
        """See ``DataPlane``."""
        for key in parameters:
            if key != "unload_dependents":
                raise InvalidArgument(f"unrecognized unload parameter '{key}'.")
        await self._router.unload(check_name(name))

    def view(self) -> MeshView:
        """What the mesh looks like now."""
        return replace(
            self._router.view(),
            ready=self.server_ready(),
            body_bytes=self.bodies.used_bytes,
            body_limit_bytes=self.bodies.limit_bytes,
        )

    def _refuse_while_draining(self) -> None:
        if not self._accepting:
            raise Unavailable("the server is stopping", retry_after_s=1.0)

    def _count(self, request: InferRequest, code: Code | None) -> None:
        context = request.context
        name, version = context.served_by
        total_s = time.monotonic() - context.received
        waited_s = context.run_started - context.queued if context.run_started else 0.0
        record = RequestRecord(
            name,
            version,
            code,
            total_s,
            max(0.0, waited_s - context.load_wait_s),
            context.load_wait_s,
            context.run_ended - context.run_started,
        )
        self._router.stats.record(record)
        if self._log_requests:
            access_log.info(
                "%s %s %s %.2f ms",
                request.model_name,
                version or "-",
                code or "OK",
                total_s * 1e3,
                extra={"caller": context.caller, "request_id": request.id},
            )

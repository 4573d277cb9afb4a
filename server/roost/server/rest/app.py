"""The REST transport put together: routes, and the boundary at which every failure becomes an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from roost.core.errors import RoostError
from roost.server.data_plane_protocol import DataPlane
from roost.server.rest.body import BodyReader
from roost.server.rest.delivery import send_small
from roost.server.rest.errors import ClientGone, Refusal, error_response, response_of
from roost.server.rest.handlers import MetadataHandlers
from roost.server.rest.infer import InferHandler
from roost.server.rest.limits import RestLimits
from roost.server.rest.offload import Offload
from roost.server.rest.paths import MODEL_PATHS
from roost.server.rest.protocol import RestRunner
from roost.server.rest.repository import RepositoryHandlers

__all__ = ["RestLimits", "RestRunner", "build_rest_app"]


def build_rest_app(data_plane: DataPlane, limits: RestLimits) -> web.Application:
    """Makes the application; ``RestRunner`` serves it."""
    app = web.Application(middlewares=[_boundary(limits.write_timeout_s)])
    offload = Offload()
    reader = BodyReader(limits.max_body_bytes, data_plane.request_timeout_s, offload)
    infer = InferHandler(data_plane, limits, reader, offload)
    metadata = MetadataHandlers(data_plane)
    repository = RepositoryHandlers(data_plane, reader, offload)
    for path in MODEL_PATHS:
        _post(app, f"{path}/infer", infer.infer)
    for path in MODEL_PATHS:
        _get(app, path, metadata.model_metadata)
        _get(app, f"{path}/ready", metadata.model_ready)
        _get(app, f"{path}/config", metadata.model_config)
    _get(app, "/v2", metadata.server_metadata)
    _get(app, "/v2/health/live", metadata.live)
    _get(app, "/v2/health/ready", metadata.ready)
    for path in ("/v2/repository", "/v2/repository/{repository}"):
        _post(app, f"{path}/index", repository.index)
        _post(app, f"{path}/models/{{model}}/load", repository.load)
        _post(app, f"{path}/models/{{model}}/unload", repository.unload)

    async def stop_threads(_: web.Application) -> AsyncIterator[None]:
        yield
        await offload.close()

    app.cleanup_ctx.append(stop_threads)
    return app


def _get(app: web.Application, path: str, handler: Handler) -> None:
    app.router.add_get(path, handler, allow_head=False)


def _post(app: web.Application, path: str, handler: Handler) -> None:
    app.router.add_post(path, handler, expect_handler=_leave_expect)


async def _leave_expect(_: web.Request) -> None:
    """A client that waits for "100 Continue" hears from the body reader, once its body is paid for."""


def _boundary(write_timeout_s: float) -> Middleware:
    @web.middleware
    async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turns whatever a handler raises into an answer, and sees to it that answers leave in time."""
        try:
            response = await handler(request)
        except ClientGone:
            response = error_response(499, "the client went away")
            response.force_close()
        except (RoostError, Refusal, web.HTTPException) as error:
            response = response_of(error)
        except Exception as error:
            response = _give_up(request, error)
        if not request.content.is_eof() and response.status >= 400:
            # What is left of the body would be taken for the next request.
            response.force_close()
        if isinstance(response, web.Response) and not response.prepared:
            return await send_small(request, response, write_timeout_s)
        return response

    return boundary


def _give_up(request: web.Request, error: Exception) -> web.StreamResponse:
    response = response_of(error)
    if request.writer.output_size > 0 and request.transport is not None:
        # The answer was under way: the client must not take what it got for all of it.
        request.transport.abort()
        response.force_close()
    return response

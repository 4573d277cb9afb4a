"""The REST transport put together: routes, and the boundary at which every failure becomes an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from roost.core.errors import RoostError
from roost.router.graphs import Graph
from roost.server.data_plane_protocol import DataPlane
from roost.server.offload import Offload
from roost.server.openapi import add_openapi_route
from roost.server.rest.body import BodyReader
from roost.server.rest.delivery import send_small
from roost.server.rest.documents import MAX_DOCUMENT_BYTES, DocumentReader
from roost.server.rest.errors import ClientGone, Refusal, error_response, response_of
from roost.server.rest.exchange import Exchange
from roost.server.rest.generate import GenerateHandler
from roost.server.rest.graphs import GraphHandlers, add_graph_routes
from roost.server.rest.handlers import MetadataHandlers
from roost.server.rest.infer import InferHandler
from roost.server.rest.lean import LEAN_PATH, LeanPath
from roost.server.rest.limits import RestLimits
from roost.server.rest.paths import MODEL_PATHS
from roost.server.rest.repository import RepositoryHandlers
from roost.server.rest.routes import Routes
from roost.server.rest.runner import RestRunner
from roost.server.rest.settings import SettingsHandlers
from roost.server.rest.shared_memory import SharedMemoryHandlers
from roost.server.rest.statistics import StatisticsHandlers
from roost.server.rest.v1 import V1Handlers, add_v1_routes
from roost.server.transport_options import TransportOptions

__all__ = ["RestLimits", "RestRunner", "build_rest_app", "lean_requests"]

_NO_OPTIONS = TransportOptions()
_NO_GRAPHS: Mapping[str, Graph] = {}


def build_rest_app(
    data_plane: DataPlane,
    limits: RestLimits,
    options: TransportOptions = _NO_OPTIONS,
    graphs: Mapping[str, Graph] = _NO_GRAPHS,
) -> web.Application:
    """Makes the application; ``RestRunner`` serves it."""
    app = web.Application(middlewares=[_boundary(limits.write_timeout_s, options.compat_triton)])
    offload = Offload("rest-codec")
    reader = BodyReader(limits.max_body_bytes, data_plane.request_timeout_s, offload, data_plane.refused)
    routes = Routes(app, options.restrictions)
    exchange = Exchange(data_plane, reader, offload, options.forward_headers, limits.write_timeout_s)
    _add_inference(routes, InferHandler(exchange), GenerateHandler(exchange))
    if "inference" not in options.restrictions.rules:
        app[LEAN_PATH] = LeanPath(data_plane, limits, options)
    add_v1_routes(routes, V1Handlers(exchange))
    add_graph_routes(routes, GraphHandlers(exchange, graphs))
    _add_metadata(routes, MetadataHandlers(data_plane))
    _add_statistics(routes, StatisticsHandlers(data_plane, offload, limits.write_timeout_s))
    small = min(limits.max_body_bytes, MAX_DOCUMENT_BYTES)
    small_reader = BodyReader(small, data_plane.request_timeout_s, offload, data_plane.refused)
    documents = DocumentReader(data_plane.bodies, small_reader)
    _add_repository(routes, RepositoryHandlers(data_plane, documents, reader, offload))
    _add_settings(routes, SettingsHandlers(data_plane, documents))
    _add_shared_memory(routes, SharedMemoryHandlers(data_plane, documents))
    add_openapi_route(app)

    async def stop_threads(_: web.Application) -> AsyncIterator[None]:
        yield
        await offload.close()

    app.cleanup_ctx.append(stop_threads)
    return app


def lean_requests(app: web.Application) -> int:
    """How many requests took the lean path."""
    return app[LEAN_PATH].served if LEAN_PATH in app else 0


def _add_inference(routes: Routes, infer: InferHandler, generate: GenerateHandler) -> None:
    # First, because paths are looked at in this order.
    for path in MODEL_PATHS:
        routes.add("inference", f"{path}/infer", post=infer.infer)
    for path in MODEL_PATHS:
        routes.add("inference", f"{path}/generate", post=generate.generate)
        routes.add("inference", f"{path}/generate_stream", post=generate.generate_stream)


def _add_metadata(routes: Routes, metadata: MetadataHandlers) -> None:
    routes.add("health", "/", get=metadata.alive)
    routes.add("health", "/v2/health/live", get=metadata.live)
    routes.add("health", "/v2/health/ready", get=metadata.ready)
    routes.add("metadata", "/v2", get=metadata.server_metadata)
    routes.add("metadata", "/v2/models", get=metadata.models)
    for path in MODEL_PATHS:
        routes.add("metadata", path, get=metadata.model_metadata)
        routes.add("health", f"{path}/ready", get=metadata.model_ready)
        routes.add("model-config", f"{path}/config", get=metadata.model_config)


def _add_statistics(routes: Routes, statistics: StatisticsHandlers) -> None:
    # A model whose name is "stats" has its metadata under its version.
    routes.add("statistics", "/v2/models/stats", get=statistics.of_all)
    for path in MODEL_PATHS:
        routes.add("statistics", f"{path}/stats", get=statistics.of_model)


def _add_repository(routes: Routes, repository: RepositoryHandlers) -> None:
    for path in ("/v2/repository", "/v2/repository/{repository}"):
        routes.add("model-repository", f"{path}/index", post=repository.index)
        routes.add("model-repository", f"{path}/models/{{model}}/load", post=repository.load)
        routes.add("model-repository", f"{path}/models/{{model}}/unload", post=repository.unload)


def _add_settings(routes: Routes, settings: SettingsHandlers) -> None:
    for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting"):
        routes.add("trace", path, get=settings.trace, post=settings.update_trace)
    routes.add("logging", "/v2/logging", get=settings.log, post=settings.update_log)


def _add_shared_memory(routes: Routes, memory: SharedMemoryHandlers) -> None:
    for kind, status, register, unregister in (
        ("systemsharedmemory", memory.status, memory.register, memory.unregister),
        ("cudasharedmemory", memory.cuda_status, memory.cuda_register, memory.cuda_unregister),
    ):
        for path in (f"/v2/{kind}", f"/v2/{kind}/region/{{region}}"):
            routes.add("shared-memory", f"{path}/status", get=status)
            routes.add("shared-memory", f"{path}/unregister", post=unregister)
        routes.add("shared-memory", f"/v2/{kind}/region/{{region}}/register", post=register)


def _boundary(write_timeout_s: float, compat_triton: bool) -> Middleware:
    @web.middleware
    async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turns whatever a handler raises into an answer, and sees to it that answers leave in time."""
        try:
            response = await handler(request)
        except ClientGone:
            response = error_response(499, "the client went away")
            response.force_close()
        except (RoostError, Refusal, web.HTTPException) as error:
            response = response_of(error, _call(request) if compat_triton else None)
            # Nobody prints it, and where a future keeps the error its frames would keep the body until a collection.
            error.__traceback__ = None
        except Exception as error:
            response = _give_up(request, error)
        if not request.content.is_eof() and response.status >= 400:
            # What is left of the body would be taken for the next request.
            response.force_close()
        if isinstance(response, web.Response) and not response.prepared:
            return await send_small(request, response, write_timeout_s)
        return response

    return boundary


def _call(request: web.Request) -> str:
    """The end of the path that was called, as it was registered."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical.rpartition("/")[2]


def _give_up(request: web.Request, error: Exception) -> web.StreamResponse:
    response = response_of(error)
    if request.writer.output_size > 0 and request.transport is not None:
        # The answer was under way: the client must not take what it got for all of it.
        request.transport.abort()
        response.force_close()
    return response

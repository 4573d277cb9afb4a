"""Inference graphs over REST, as KServe's router answers for them: JSON goes in, that of the last step comes out."""

from __future__ import annotations

import random
from collections.abc import Mapping

from aiohttp import web
from roost.core.errors import InvalidArgument, NotFound, Unavailable
from roost.core.requests import RequestContext
from roost.core.tensors import Buffer
from roost.router.graphs import Graph, GraphFailed, NotRouted
from roost.server.graph_answers import answer_of
from roost.server.graph_call import GraphCall
from roost.server.graph_questions import JsonQuestion, form_of
from roost.server.rest.body import Body
from roost.server.rest.codec import HEADER_LENGTH
from roost.server.rest.codec_json import parse_json
from roost.server.rest.errors import HTTP_STATUS, MalformedRequest
from roost.server.rest.exchange import Exchange
from roost.server.rest.handlers import json_response
from roost.server.rest.routes import Routes

_GRAPH = "/graphs/{graph}"


def add_graph_routes(routes: Routes, handlers: GraphHandlers) -> None:
    """Adds the calls below ``/graphs``."""
    routes.add("metadata", "/graphs", get=handlers.graphs)
    routes.add("health", f"{_GRAPH}/ready", get=handlers.ready)
    routes.add("inference", _GRAPH, post=handlers.infer)


class GraphHandlers:
    """Answers the calls below ``/graphs``.

    Args:
        exchange: How requests come in and answers leave.
        graphs: The graphs by name.
    """

    def __init__(self, exchange: Exchange, graphs: Mapping[str, Graph]) -> None:
        self._exchange = exchange
        self._graphs = graphs

    async def graphs(self, request: web.Request) -> web.StreamResponse:
        """``GET /graphs``."""
        return json_response({"graphs": sorted(self._graphs)})

    async def ready(self, request: web.Request) -> web.StreamResponse:
        """``GET /graphs/{graph}/ready``: whether its models may be asked for."""
        graph = self._find(request)
        plane = self._exchange.data_plane
        missing = [model for model, version in graph.models() if not await plane.model_ready(model, version)]
        if missing:
            raise Unavailable(f"graph '{graph.name}' is not ready, since these models are not: {', '.join(missing)}")
        return json_response({"name": graph.name, "ready": True})

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """``POST /graphs/{graph}``."""
        graph = self._find(request)
        exchange = self._exchange
        context = exchange.context(request)
        if HEADER_LENGTH in request.headers:
            path = f"/v2/models/{graph.name}/infer"
            raise InvalidArgument(f"graphs take JSON here; with binary tensors ask {path}")
        with exchange.body() as body:
            await exchange.read(request, body)
            try:
                pieces = await self._answer(request, graph, body, context)
            except (NotRouted, GraphFailed) as error:
                document = {"error": "Failed to process request", "cause": error.cause}
                return json_response(document, HTTP_STATUS[error.code])
            except MalformedRequest as error:
                # Triton has no graphs, so that its status for this means nothing here.
                raise InvalidArgument(error.message) from None
            return await exchange.send(request, {"Content-Type": "application/json"}, pieces)

    async def _answer(self, request: web.Request, graph: Graph, body: Body, context: RequestContext) -> list[Buffer]:
        exchange = self._exchange
        document = await exchange.decode(body, len(body.data), parse_json, body.data)
        parameters = exchange.forwarded(request)
        form = form_of(document)
        call = GraphCall(exchange.data_plane, graph, context, exchange.offload, body, parameters, form)
        answer = await answer_of(call, graph, JsonQuestion(call, document, body.data), random.random)
        if answer.failure is not None:
            raise answer.failure
        return await answer.json()

    def _find(self, request: web.Request) -> Graph:
        name = request.match_info["graph"]
        if name not in self._graphs:
            raise NotFound(f"there is no graph '{name[:128]}'")
        return self._graphs[name]

"""KServe's v1 protocol, which is TensorFlow Serving's predict call: the protocol of an InferenceService by default."""

from __future__ import annotations

from functools import partial

from aiohttp import web
from roost.core.errors import InvalidArgument, NotFound, Unavailable, Unimplemented
from roost.core.requests import RequestContext
from roost.server.rest.body import Body
from roost.server.rest.codec_response import large_outputs
from roost.server.rest.errors import MalformedRequest
from roost.server.rest.exchange import Exchange
from roost.server.rest.handlers import json_response
from roost.server.rest.paths import model_in_path
from roost.server.rest.routes import Routes
from roost.server.rest.v1_codec import PredictRequest, decode_predict
from roost.server.rest.v1_response import encode_predictions

_MODEL = "/v1/models/{model:[^/:]+}"
_PREDICT_PATHS = (f"{_MODEL}:predict", f"{_MODEL}/versions/{{version:[0-9]+}}:predict")


def add_v1_routes(routes: Routes, handlers: V1Handlers) -> None:
    """Adds the calls below ``/v1``."""
    for path in _PREDICT_PATHS:
        routes.add("inference", path, post=handlers.predict)
    routes.add("inference", f"{_MODEL}:explain", post=handlers.explain)
    routes.add("metadata", "/v1/models", get=handlers.models)
    routes.add("health", _MODEL, get=handlers.model_ready)


class V1Handlers:
    """Answers the calls below ``/v1``."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def models(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models``."""
        return json_response({"models": await self._exchange.data_plane.model_names()})

    async def model_ready(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models/{model}``; unlike in v2 a model that is not ready is told from one that is unknown."""
        name = request.match_info["model"]
        if await self._exchange.data_plane.model_ready(name):
            return json_response({"name": name, "ready": True})
        entries = await self._exchange.data_plane.repository_index(name=name)
        if not entries:
            raise NotFound(f"Model with name {name} does not exist.")
        reason = entries[0].reason
        raise Unavailable(f"Model with name {name} is not ready." + (reason and f" {reason}"))

    async def explain(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/models/{model}:explain``."""
        raise Unimplemented("explain is not implemented by this server")

    async def predict(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/models/{model}[/versions/{version}]:predict``."""
        exchange = self._exchange
        context = exchange.context(request)
        with exchange.body() as body:
            await exchange.read(request, body)
            try:
                predict_request = await self._decode(request, body, context)
            except MalformedRequest as error:
                # Triton has no such protocol, so that its status for this means nothing here.
                raise InvalidArgument(error.message) from None
            exchange.forward_headers(request, predict_request)
            response = await exchange.data_plane.infer(predict_request)
            encode = partial(encode_predictions, in_rows=predict_request.in_rows)
            if large_outputs(response, predict_request):
                pieces = await exchange.offload.run(body, encode, response.outputs)
            else:
                pieces = encode(response.outputs)
            del response  # its memory is charged for; what is sent is a copy
            headers = {"Content-Type": "application/json"}
            return await exchange.send(request, headers, [*pieces])

    async def _decode(self, request: web.Request, body: Body, context: RequestContext) -> PredictRequest:
        name, version = model_in_path(request)
        metadata = await self._exchange.metadata(name, version, context)
        decode = partial(decode_predict, model_name=name, model_version=version, context=context)
        return await self._exchange.decode(body, len(body.data), decode, body.data, metadata.inputs)

"""The infer call over REST, from body to answer."""

from __future__ import annotations

from functools import partial

from aiohttp import web
from multidict import istr
from roost.core.requests import RequestContext
from roost.server.rest.body import Body, single_header
from roost.server.rest.codec import HEADER_LENGTH, RestInferRequest, parse_header_length
from roost.server.rest.codec_quick import decode
from roost.server.rest.codec_quick_out import encode
from roost.server.rest.codec_raw import decode_raw
from roost.server.rest.codec_response import encode_large_response, large_outputs, write_outputs
from roost.server.rest.exchange import Exchange
from roost.server.rest.lean_protocol import take_answered
from roost.server.rest.paths import model_in_path

# Looked up as it is, without folding its case each time.
_HEADER_LENGTH = istr(HEADER_LENGTH)


class InferHandler:
    """Answers ``POST /v2/models/{model}[/versions/{version}]/infer``."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """Runs one request; its body's share of the byte budget is held until the answer is out."""
        exchange = self._exchange
        context = exchange.context(request)
        with exchange.body() as body:
            answered = take_answered(request.protocol)
            if answered is None:
                await exchange.read(request, body)
                infer_request = await self._decode(request, body, context)
                exchange.forward_headers(request, infer_request)
                response = await exchange.data_plane.infer(infer_request)
            else:
                infer_request, response, taken_bytes = answered
                body.take_over(taken_bytes)
                del answered
            if large := large_outputs(response, infer_request):
                written = await exchange.offload.run(body, write_outputs, large)
                headers, buffers = encode_large_response(response, infer_request, written)
                del written
            else:
                headers, buffers = encode(response, infer_request)
            return await exchange.send(request, headers, buffers)

    async def _decode(self, request: web.Request, body: Body, context: RequestContext) -> RestInferRequest:
        name, version = model_in_path(request)
        header_length = parse_header_length(single_header(request, _HEADER_LENGTH))
        if header_length != 0:
            decoder = partial(decode, model_name=name, model_version=version, context=context)
            json_bytes = len(body.data) if header_length is None else header_length
            return await self._exchange.decode(body, json_bytes, decoder, body.data, header_length)
        metadata = await self._exchange.metadata(name, version, context)
        config = await self._exchange.data_plane.model_config(name, version)
        return decode_raw(
            body.data,
            metadata.inputs,
            config.max_batch_size,
            model_name=name,
            model_version=version,
            context=context,
        )

"""The generate extension over REST, from body to answer or to a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from aiohttp import web
from roost.core.errors import Internal, InvalidArgument
from roost.core.requests import InferRequest, InferResponse
from roost.server.rest import compression, delivery
from roost.server.rest.body import Body
from roost.server.rest.codec_generate import decode_generate, encode_generate
from roost.server.rest.codec_response import is_large
from roost.server.rest.errors import ClientGone, error_body
from roost.server.rest.exchange import Exchange
from roost.server.rest.paths import model_in_path


class GenerateHandler:
    """Answers ``POST .../generate`` and ``POST .../generate_stream``, for decoupled and for ordinary models."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Runs one request of a model that answers it exactly once."""
        with self._exchange.body() as body:
            infer_request = await self._receive(request, body)
            async with aclosing(self._exchange.data_plane.infer_stream(infer_request)) as responses:
                response = await _only(responses, infer_request.model_name)
            text = await self._encode(response, infer_request, body)
            headers = {"Content-Type": "application/json"}
            return await delivery.send(request, headers, [text], self._exchange.write_timeout_s)

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        """Runs one request and sends each response as it comes; a client that goes away cancels it.

        The first response decides about the status; what fails behind it is the last event.
        """
        with self._exchange.body() as body:
            infer_request = await self._receive(request, body)
            async with aclosing(self._exchange.data_plane.infer_stream(infer_request)) as responses:
                texts = self._texts(responses, infer_request, body)
                async with aclosing(texts):
                    first = await anext(texts, None)
                    events = delivery.EventStream(request, self._exchange.write_timeout_s)
                    try:
                        await events.open()
                        if first is not None:
                            await events.send(first)
                            await _send_rest(texts, events)
                        await events.close()
                    except ClientGone:
                        pass
                    return events.response

    async def _receive(self, request: web.Request, body: Body) -> InferRequest:
        if request.headers.get("Content-Encoding", compression.IDENTITY) != compression.IDENTITY:
            raise InvalidArgument("generate requests can't be compressed: send them with no Content-Encoding")
        name, version = model_in_path(request)
        context = self._exchange.context(request)
        await self._exchange.read(request, body)
        metadata = await self._exchange.metadata(name, version, context)
        decode = partial(decode_generate, model_name=name, model_version=version, context=context)
        infer_request = await self._exchange.decode(body, len(body.data), decode, body.data, metadata.inputs)
        self._exchange.forward_headers(request, infer_request)
        return infer_request

    async def _texts(
        self, responses: AsyncGenerator[InferResponse, None], infer_request: InferRequest, body: Body
    ) -> AsyncGenerator[bytes, None]:
        async for response in responses:
            if not _is_end(response):
                yield await self._encode(response, infer_request, body)

    async def _encode(self, response: InferResponse, infer_request: InferRequest, body: Body) -> bytes:
        if is_large(response):
            return await self._exchange.offload.run(body, encode_generate, response, infer_request.id)
        return encode_generate(response, infer_request.id)


def _is_end(response: InferResponse) -> bool:
    """Whether it only says that nothing follows."""
    return response.final and not response.outputs


async def _only(responses: AsyncGenerator[InferResponse, None], model_name: str) -> InferResponse:
    only: InferResponse | None = None
    async for response in responses:
        if _is_end(response):
            break
        if only is not None:
            raise _not_one(model_name, "more than one")
        only = response
    if only is None:
        raise _not_one(model_name, "none")
    return only


def _not_one(model_name: str, got: str) -> Internal:
    return Internal(
        f"generate expects model '{model_name}' to produce exactly 1 response, got {got}; use generate_stream for "
        "models that produce other numbers of responses"
    )


async def _send_rest(texts: AsyncGenerator[bytes, None], events: delivery.EventStream) -> None:
    try:
        async for text in texts:
            await events.send(text)
    except ClientGone:
        raise
    except Exception as error:
        # The boundary could not answer any more: the status is out.
        await events.send(error_body(error))

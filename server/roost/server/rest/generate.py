"""The generate extension over REST, from body to answer or to a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from aiohttp import web
from roost.core.errors import Internal, InvalidArgument
from roost.core.requests import InferRequest, InferResponse
from roost.server.data_plane_protocol import DataPlane
from roost.server.rest import compression, delivery
from roost.server.rest.body import Body, BodyReader
from roost.server.rest.codec_generate import decode_generate, encode_generate
from roost.server.rest.codec_json import LARGE_JSON_BYTES
from roost.server.rest.codec_response import is_large
from roost.server.rest.errors import ClientGone, error_body
from roost.server.rest.infer import HeaderForwarding, metadata_in_time, new_context
from roost.server.rest.limits import RestLimits
from roost.server.rest.offload import Offload, without_collections
from roost.server.rest.paths import model_in_path


class GenerateHandler:
    """Answers ``POST .../generate`` and ``POST .../generate_stream``, for decoupled and for ordinary models.

    Args:
        data_plane: Where requests go.
        limits: Caps and timeouts.
        reader: Reads bodies.
        offload: Where large JSON is read and written.
        forwarding: Gives headers to models.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        limits: RestLimits,
        reader: BodyReader,
        offload: Offload,
        forwarding: HeaderForwarding,
    ) -> None:
        self._data_plane = data_plane
        self._write_timeout_s = limits.write_timeout_s
        self._reader = reader
        self._offload = offload
        self._forwarding = forwarding

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Runs one request of a model that answers it exactly once."""
        with Body(self._data_plane.bodies) as body:
            infer_request = await self._receive(request, body)
            async with aclosing(self._data_plane.infer_stream(infer_request)) as responses:
                response = await _only(responses, infer_request.model_name)
            text = await self._encode(response, infer_request, body)
            headers = {"Content-Type": "application/json"}
            return await delivery.send(request, headers, [text], self._write_timeout_s)

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        """Runs one request and sends each response as it comes; a client that goes away cancels it.

        The first response decides about the status; what fails behind it is the last event.
        """
        with Body(self._data_plane.bodies) as body:
            infer_request = await self._receive(request, body)
            async with aclosing(self._data_plane.infer_stream(infer_request)) as responses:
                texts = self._texts(responses, infer_request, body)
                async with aclosing(texts):
                    first = await anext(texts, None)
                    events = delivery.EventStream(request, self._write_timeout_s)
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
        context = new_context(request, self._data_plane.request_timeout_s)
        await self._reader.read(request, body)
        metadata = await metadata_in_time(self._data_plane, name, version, context)
        decode = partial(decode_generate, model_name=name, model_version=version, context=context)
        if len(body.data) > LARGE_JSON_BYTES:
            infer_request = await self._offload.run(body, without_collections, decode, body.data, metadata.inputs)
        else:
            infer_request = decode(body.data, metadata.inputs)
        self._forwarding.apply(request, infer_request)
        return infer_request

    async def _texts(
        self, responses: AsyncGenerator[InferResponse, None], infer_request: InferRequest, body: Body
    ) -> AsyncGenerator[bytes, None]:
        async for response in responses:
            if not _is_end(response):
                yield await self._encode(response, infer_request, body)

    async def _encode(self, response: InferResponse, infer_request: InferRequest, body: Body) -> bytes:
        if is_large(response):
            return await self._offload.run(body, encode_generate, response, infer_request.id)
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

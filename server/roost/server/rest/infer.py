"""The infer call over REST, from body to answer."""

from __future__ import annotations

import asyncio
import re
import time
from functools import partial

from aiohttp import hdrs, web
from multidict import istr
from roost.core.errors import DeadlineExceeded
from roost.core.metadata import ModelMetadata
from roost.core.requests import InferRequest, RequestContext
from roost.core.tensors import Buffer
from roost.server.data_plane_protocol import DataPlane
from roost.server.forwarding import forwarded
from roost.server.rest import compression, delivery
from roost.server.rest.body import Body, BodyReader, single_header
from roost.server.rest.codec import HEADER_LENGTH, RestInferRequest, decode_infer, parse_header_length
from roost.server.rest.codec_json import LARGE_JSON_BYTES
from roost.server.rest.codec_raw import decode_raw
from roost.server.rest.codec_response import encode_large_response, encode_response, large_outputs, write_outputs
from roost.server.rest.limits import RestLimits
from roost.server.rest.offload import Offload, without_collections
from roost.server.rest.paths import model_in_path

# Names that are looked up as they are, without folding their case each time.
_HEADER_LENGTH = istr(HEADER_LENGTH)
_TRACEPARENT = istr("traceparent")


def new_context(request: web.Request, timeout_s: float) -> RequestContext:
    """What is known of a request before its body is read."""
    received = time.monotonic()
    return RequestContext(
        received,
        received + timeout_s,
        caller=request.remote or "",
        traceparent=request.headers.get(_TRACEPARENT, ""),
    )


async def metadata_in_time(data_plane: DataPlane, name: str, version: str, context: RequestContext) -> ModelMetadata:
    """The metadata of a model whose request can't be read without; a cold model may have to be loaded for it.

    Raises:
        DeadlineExceeded: If that takes longer than the request may take.
        RoostError: What ``DataPlane.model_metadata`` raises.
    """
    try:
        async with asyncio.timeout(context.deadline - time.monotonic()):
            return await data_plane.model_metadata(name, version)
    except TimeoutError:
        raise DeadlineExceeded("Request timeout expired while its model was loading") from None


async def answer(
    request: web.Request, headers: dict[str, str], buffers: list[Buffer], offload: Offload, write_timeout_s: float
) -> web.StreamResponse:
    """Sends a successful answer, compressed if the client wants that."""
    accepted = request.headers.get(hdrs.ACCEPT_ENCODING)
    coding = compression.preferred_coding(accepted) if accepted else compression.IDENTITY
    if coding != compression.IDENTITY:
        headers["Content-Encoding"] = coding
        buffers = await compression.compress(buffers, coding, offload)
    return await delivery.send(request, headers, buffers, write_timeout_s)


class HeaderForwarding:
    """Gives models the headers that the operator wants them to see, as string parameters.

    Args:
        pattern: What to look for in the names of headers, in any case; None: no header.
    """

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern if pattern is None else re.compile(pattern.pattern, pattern.flags | re.IGNORECASE)

    def apply(self, http_request: web.Request, request: InferRequest) -> None:
        """Adds headers to the request's parameters; clients can't override them in the body."""
        if self._pattern is not None:
            headers = forwarded(self._pattern, http_request.headers.items())
            if headers:
                request.parameters = {**request.parameters, **headers}


class InferHandler:
    """Answers ``POST /v2/models/{model}[/versions/{version}]/infer``.

    Args:
        data_plane: Where requests go.
        limits: Caps and timeouts.
        reader: Reads bodies.
        offload: Where large JSON is read and written, and large answers are compressed.
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

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """Runs one request; its body's share of the byte budget is held until the answer is out."""
        context = new_context(request, self._data_plane.request_timeout_s)
        with Body(self._data_plane.bodies) as body:
            await self._reader.read(request, body)
            infer_request = await self._decode(request, body, context)
            self._forwarding.apply(request, infer_request)
            response = await self._data_plane.infer(infer_request)
            if large := large_outputs(response, infer_request):
                written = await self._offload.run(body, write_outputs, large)
                headers, buffers = encode_large_response(response, infer_request, written)
                del written
            else:
                headers, buffers = encode_response(response, infer_request)
            return await answer(request, headers, buffers, self._offload, self._write_timeout_s)

    async def _decode(self, request: web.Request, body: Body, context: RequestContext) -> RestInferRequest:
        name, version = model_in_path(request)
        header_length = parse_header_length(single_header(request, _HEADER_LENGTH))
        if header_length != 0:
            decode = partial(decode_infer, model_name=name, model_version=version, context=context)
            if (len(body.data) if header_length is None else header_length) > LARGE_JSON_BYTES:
                return await self._offload.run(body, without_collections, decode, body.data, header_length)
            return decode(body.data, header_length)
        metadata = await metadata_in_time(self._data_plane, name, version, context)
        config = await self._data_plane.model_config(name, version)
        return decode_raw(
            body.data,
            metadata.inputs,
            config.max_batch_size,
            model_name=name,
            model_version=version,
            context=context,
        )

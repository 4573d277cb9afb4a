"""The infer call over REST, from body to answer."""

from __future__ import annotations

import time
from functools import partial

from aiohttp import web
from roost.core.requests import RequestContext
from roost.server.data_plane_protocol import DataPlane
from roost.server.rest import compression, delivery
from roost.server.rest.body import Body, BodyReader
from roost.server.rest.codec import HEADER_LENGTH, RestInferRequest, decode_infer, parse_header_length
from roost.server.rest.codec_json import LARGE_JSON_BYTES
from roost.server.rest.codec_raw import decode_raw
from roost.server.rest.codec_response import encode_large_response, encode_response, large_outputs, write_outputs
from roost.server.rest.limits import RestLimits
from roost.server.rest.offload import Offload, without_collections
from roost.server.rest.paths import model_in_path


class InferHandler:
    """Answers ``POST /v2/models/{model}[/versions/{version}]/infer``.

    Args:
        data_plane: Where requests go.
        limits: Caps and timeouts.
        reader: Reads bodies.
        offload: Where large JSON is read and written, and large answers are compressed.
    """

    def __init__(self, data_plane: DataPlane, limits: RestLimits, reader: BodyReader, offload: Offload) -> None:
        self._data_plane = data_plane
        self._write_timeout_s = limits.write_timeout_s
        self._reader = reader
        self._offload = offload

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """Runs one request; its body's share of the byte budget is held until the answer is out."""
        received = time.monotonic()
        context = RequestContext(
            received,
            received + self._data_plane.request_timeout_s,
            caller=request.remote or "",
            traceparent=request.headers.get("traceparent", ""),
        )
        with Body(self._data_plane.bodies) as body:
            await self._reader.read(request, body)
            infer_request = await self._decode(request, body, context)
            response = await self._data_plane.infer(infer_request)
            if large := large_outputs(response, infer_request):
                written = await self._offload.run(body, write_outputs, large)
                headers, buffers = encode_large_response(response, infer_request, written)
                del written
            else:
                headers, buffers = encode_response(response, infer_request)
            accepted = request.headers.get("Accept-Encoding")
            coding = compression.preferred_coding(accepted) if accepted else compression.IDENTITY
            if coding != compression.IDENTITY:
                headers["Content-Encoding"] = coding
                buffers = await compression.compress(buffers, coding, self._offload)
            return await delivery.send(request, headers, buffers, self._write_timeout_s)

    async def _decode(self, request: web.Request, body: Body, context: RequestContext) -> RestInferRequest:
        name, version = model_in_path(request)
        header_length = parse_header_length(request.headers.get(HEADER_LENGTH))
        if header_length != 0:
            decode = partial(decode_infer, model_name=name, model_version=version, context=context)
            if (len(body.data) if header_length is None else header_length) > LARGE_JSON_BYTES:
                return await self._offload.run(body, without_collections, decode, body.data, header_length)
            return decode(body.data, header_length)
        metadata = await self._data_plane.model_metadata(name, version)
        config = await self._data_plane.model_config(name, version)
        return decode_raw(
            body.data,
            metadata.inputs,
            config.max_batch_size,
            model_name=name,
            model_version=version,
            context=context,
        )

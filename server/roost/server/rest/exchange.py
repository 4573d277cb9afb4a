"""What all calls that run a model have in common over REST: how a request comes in, and how its answer leaves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

from aiohttp import hdrs, web
from multidict import istr
from roost.core.errors import DeadlineExceeded
from roost.core.metadata import ModelMetadata
from roost.core.requests import InferRequest, RequestContext
from roost.core.tasks import by_deadline
from roost.core.tensors import NO_PARAMETERS, Buffer, Parameters
from roost.server.data_plane_protocol import DataPlane
from roost.server.forwarding import forwarded, in_any_case
from roost.server.offload import Offload
from roost.server.rest import compression, delivery
from roost.server.rest.body import Body, BodyReader

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Looked up as it is, without folding its case each time.
_TRACEPARENT = istr("traceparent")


class Exchange:
    """Receives requests and sends answers.

    Args:
        data_plane: Where requests go.
        reader: Reads bodies.
        offload: Where large answers are written and compressed.
        forward_headers: Names of headers that models get as string parameters, in any case; None: no header.
        write_timeout_s: How long a client may take to read what is on its way, before it is cut off.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        reader: BodyReader,
        offload: Offload,
        forward_headers: re.Pattern[str] | None,
        write_timeout_s: float,
    ) -> None:
        self.data_plane = data_plane
        self.offload = offload
        self.write_timeout_s = write_timeout_s
        self._reader = reader
        self._forwarded_names = in_any_case(forward_headers)

    def body(self) -> Body:
        """An empty body, to be held until the answer is out."""
        return Body(self.data_plane.bodies)

    def context(self, http_request: web.Request) -> RequestContext:
        """What is known of a request before its body is read."""
        received = time.monotonic()
        return RequestContext(
            received,
            received + self.data_plane.request_timeout_s,
            caller=http_request.remote or "",
            traceparent=http_request.headers.get(_TRACEPARENT, ""),
        )

    async def read(self, http_request: web.Request, body: Body) -> None:
        """Fills a body; see ``BodyReader.read``."""
        await self._reader.read(http_request, body)

    async def metadata(self, name: str, version: str, context: RequestContext) -> ModelMetadata:
        """The metadata of a model whose request can't be read without; a cold model may have to be loaded for it.

        Raises:
            DeadlineExceeded: If that takes longer than the request may take.
            RoostError: What ``DataPlane.model_metadata`` raises.
        """
        return await metadata_in_time(self.data_plane, name, version, context)

    async def decode(self, body: Body, json_bytes: int, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Calls a decoder; see ``BodyReader.decode``."""
        return await self._reader.decode(body, json_bytes, function, *args)

    def forward_headers(self, http_request: web.Request, request: InferRequest) -> None:
        """Adds headers to the request's parameters; clients can't override them in the body."""
        if self._forwarded_names is not None:
            headers = self.forwarded(http_request)
            if headers:
                request.parameters = {**request.parameters, **headers}

    def forwarded(self, http_request: web.Request) -> Parameters:
        """The headers that models get, as parameters."""
        if self._forwarded_names is None:
            return NO_PARAMETERS
        return forwarded(self._forwarded_names, http_request.headers.items())

    async def send(
        self, http_request: web.Request, headers: dict[str, str], buffers: list[Buffer]
    ) -> web.StreamResponse:
        """Sends a successful answer, compressed if the client wants that."""
        accepted = http_request.headers.get(hdrs.ACCEPT_ENCODING)
        coding = compression.preferred_coding(accepted) if accepted else compression.IDENTITY
        if coding != compression.IDENTITY:
            headers["Content-Encoding"] = coding
            buffers = await compression.compress(buffers, coding, self.offload)
        return await delivery.send(http_request, headers, buffers, self.write_timeout_s)


async def metadata_in_time(data_plane: DataPlane, name: str, version: str, context: RequestContext) -> ModelMetadata:
    """See ``Exchange.metadata``."""
    try:
        async with by_deadline(context.deadline):
            return await data_plane.model_metadata(name, version)
    except TimeoutError:
        raise DeadlineExceeded("Request timeout expired while its model was loading") from None

"""Small JSON bodies: those of every call but inference and load."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from roost.server.data_plane_protocol import Budget
from roost.server.rest.body import Body, BodyReader
from roost.server.rest.codec_json import parse_object

# Far beyond what such calls need, and so little that reading it does not hold up others.
MAX_DOCUMENT_BYTES = 1 << 20


class DocumentReader:
    """Reads bodies that are one JSON object, or nothing.

    Args:
        budget: What bodies are paid from.
        reader: Reads them.
    """

    def __init__(self, budget: Budget, reader: BodyReader) -> None:
        self._budget = budget
        self._reader = reader

    async def read(self, request: web.Request) -> dict[str, Any]:
        """The object; an empty one if the body is empty.

        Raises:
            MalformedRequest: If the body is something else.
            Refusal: If it is too large, see ``BodyReader.read``.
        """
        with Body(self._budget) as body:
            await self._reader.read(request, body)
            return await self._reader.decode(body, len(body.data), parse_object, body.data)

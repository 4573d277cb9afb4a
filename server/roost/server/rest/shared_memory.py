"""The shared-memory extensions over REST: regions of system memory and of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web
from roost.core.errors import InvalidArgument
from roost.server.data_plane_protocol import DataPlane, RegionStatus
from roost.server.rest.codec_base64 import decode_base64
from roost.server.rest.codec_json import kind
from roost.server.rest.documents import DocumentReader
from roost.server.rest.errors import MalformedRequest
from roost.server.rest.handlers import json_response

_UINT64_MAX = 2**64 - 1


class SharedMemoryHandlers:
    """Answers the calls below ``/v2/systemsharedmemory`` and ``/v2/cudasharedmemory``.

    Args:
        data_plane: Knows the regions.
        documents: Reads bodies.
    """

    def __init__(self, data_plane: DataPlane, documents: DocumentReader) -> None:
        self._data_plane = data_plane
        self._documents = documents

    async def status(self, request: web.Request) -> web.StreamResponse:
        """``GET /v2/systemsharedmemory[/region/{region}]/status``."""
        return json_response(self._data_plane.shared_memory.status(_region(request)))

    async def register(self, request: web.Request) -> web.StreamResponse:
        """``POST /v2/systemsharedmemory/region/{region}/register``."""
        region = _region(request)
        document = await self._documents.read(request)
        key = _required(document, "key", region)
        if type(key) is not str:
            raise MalformedRequest(f"unable to parse 'key': expected a string, got {kind(key)}")
        offset = _unsigned(document.get("offset", 0), "offset")
        byte_size = _unsigned(_required(document, "byte_size", region), "byte_size")
        self._data_plane.shared_memory.register(region, key, offset, byte_size)
        return web.Response()

    async def unregister(self, request: web.Request) -> web.StreamResponse:
        """``POST /v2/systemsharedmemory[/region/{region}]/unregister``."""
        await self._documents.read(request)
        self._data_plane.shared_memory.unregister(_region(request))
        return web.Response()

    async def cuda_status(self, request: web.Request) -> web.StreamResponse:
        """``GET /v2/cudasharedmemory[/region/{region}]/status``."""
        return json_response(_cuda_rows(self._data_plane.cuda_shared_memory.status(_region(request))))

    async def cuda_register(self, request: web.Request) -> web.StreamResponse:
        """``POST /v2/cudasharedmemory/region/{region}/register``."""
        region = _region(request)
        document = await self._documents.read(request)
        raw_handle = _raw_handle(_required(document, "raw_handle", region))
        device_id = _unsigned(_required(document, "device_id", region), "device_id")
        byte_size = _unsigned(_required(document, "byte_size", region), "byte_size")
        self._data_plane.cuda_shared_memory.register(region, raw_handle, device_id, byte_size)
        return web.Response()

    async def cuda_unregister(self, request: web.Request) -> web.StreamResponse:
        """``POST /v2/cudasharedmemory[/region/{region}]/unregister``."""
        await self._documents.read(request)
        self._data_plane.cuda_shared_memory.unregister(_region(request))
        return web.Response()


def _region(request: web.Request) -> str:
    return request.match_info.get("region", "")


def _cuda_rows(regions: Sequence[RegionStatus]) -> list[dict[str, str | int]]:
    return [{"name": region.name, "byte_size": region.byte_size} for region in regions]


def _required(document: dict[str, Any], key: str, region: str) -> Any:
    if key not in document:
        raise InvalidArgument(f"Shared memory region '{region}' register request has no '{key}' field")
    return document[key]


def _unsigned(value: Any, key: str) -> int:
    if type(value) is not int or not 0 <= value <= _UINT64_MAX:
        got = value if type(value) is int else kind(value)
        raise MalformedRequest(f"unable to parse '{key}': expected an unsigned integer, got {got}")
    return value


def _raw_handle(value: Any) -> bytes:
    text = value.get("b64") if type(value) is dict else None
    if type(text) is not str:
        raise MalformedRequest("unable to parse 'raw_handle': expected an object with the base64 text 'b64'")
    try:
        return decode_base64(text)
    except ValueError:
        raise InvalidArgument("'b64' of 'raw_handle' is not base64") from None

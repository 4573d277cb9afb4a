"""The model repository extension over REST: index, load and unload."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from roost.core.errors import InvalidArgument, Unimplemented
from roost.core.metadata import IndexEntry
from roost.registry_client.overrides import MAX_FILES
from roost.server.data_plane_protocol import DataPlane
from roost.server.offload import Offload
from roost.server.rest.body import Body, BodyReader
from roost.server.rest.codec_base64 import decode_base64
from roost.server.rest.codec_json import LARGE_JSON_BYTES, kind, parse_object
from roost.server.rest.documents import DocumentReader
from roost.server.rest.errors import MalformedRequest
from roost.server.rest.handlers import json_response

_FILE_PREFIX = "file:"
_MAX_PARAMETERS = 1 + MAX_FILES  # a configuration and files


class RepositoryHandlers:
    """Answers the POST calls below ``/v2/repository``.

    Args:
        data_plane: Knows the models.
        documents: Reads small bodies.
        reader: Reads bodies that may hold files.
        offload: Where large files are decoded.
    """

    def __init__(self, data_plane: DataPlane, documents: DocumentReader, reader: BodyReader, offload: Offload) -> None:
        self._data_plane = data_plane
        self._documents = documents
        self._reader = reader
        self._offload = offload

    async def index(self, request: web.Request) -> web.StreamResponse:
        """``POST /v2/repository/index``."""
        _refuse_repository_name(request)
        ready = (await self._documents.read(request)).get("ready", False)
        if type(ready) is not bool:
            raise MalformedRequest(f"unable to parse 'ready': expected a boolean, got {kind(ready)}")
        return json_response([_entry(entry) for entry in await self._data_plane.repository_index(ready)])

    async def load(self, request: web.Request) -> web.StreamResponse:
        """``POST /v2/repository/models/{model}/load``."""
        _refuse_repository_name(request)
        with Body(self._data_plane.bodies) as body:
            await self._reader.read(request, body)
            parameters = await self._reader.decode(body, len(body.data), _parse_load, body.data)
            await self._decode_files(parameters, body)
            await self._data_plane.load_model(request.match_info["model"], parameters)
        return web.Response()

    async def unload(self, request: web.Request) -> web.StreamResponse:
        """``POST /v2/repository/models/{model}/unload``."""
        _refuse_repository_name(request)
        parameters = _parameters(await self._documents.read(request))
        await self._data_plane.unload_model(request.match_info["model"], parameters)
        return web.Response()

    async def _decode_files(self, parameters: dict[str, bool | int | str | bytes], body: Body) -> None:
        """Decodes files where they stand; what they take is held of the budget, like the body."""
        for key, item in parameters.items():
            if not key.startswith(_FILE_PREFIX):
                continue
            if type(item) is not str:
                raise InvalidArgument(f"parameter '{key}' has invalid type: expected base64 text, got {kind(item)}")
            self._reader.take(body, len(item))
            if len(item) > LARGE_JSON_BYTES:
                parameters[key] = await self._offload.run(body, _decode_file, key, item)
            else:
                parameters[key] = _decode_file(key, item)


def _refuse_repository_name(request: web.Request) -> None:
    if "repository" in request.match_info:
        raise Unimplemented("'repository_name' specification is not supported: leave the repository out of the path")


def _entry(entry: IndexEntry) -> dict[str, str]:
    document = {"name": entry.name}
    if entry.version:
        document["version"] = entry.version
    if entry.state:
        document["state"] = entry.state
        # Empty or not: MLServer's clients insist on it.
        document["reason"] = entry.reason
    return document


def _parse_load(data: memoryview) -> dict[str, bool | int | str | bytes]:
    return _parameters(parse_object(data))


def _parameters(document: dict[str, Any]) -> dict[str, bool | int | str | bytes]:
    value = document.get("parameters", {})
    if type(value) is not dict:
        raise MalformedRequest(f"unable to parse 'parameters': expected an object, got {kind(value)}")
    if len(value) > _MAX_PARAMETERS:
        raise InvalidArgument(f"{len(value)} parameters are over the limit of {_MAX_PARAMETERS} in one call")
    for key, item in value.items():
        if type(item) not in (bool, int, str):
            raise InvalidArgument(
                f"parameter '{key}' has invalid type: expected a string, integer or boolean, got {kind(item)}"
            )
    return value


def _decode_file(key: str, text: str) -> bytes:
    try:
        return decode_base64(text)
    except ValueError:
        raise InvalidArgument(f"parameter '{key}' is not base64") from None

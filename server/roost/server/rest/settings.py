"""The trace and logging extensions over REST."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from roost.server.data_plane_protocol import DataPlane
from roost.server.rest.codec_json import kind
from roost.server.rest.documents import DocumentReader
from roost.server.rest.errors import MalformedRequest
from roost.server.rest.handlers import json_response


class SettingsHandlers:
    """Answers GET and POST of ``/v2/trace/setting``, ``/v2/models/{model}/trace/setting`` and ``/v2/logging``.

    Every answer has all settings. Settings that nobody knows are ignored, whatever their type.

    Args:
        data_plane: Keeps the settings.
        documents: Reads bodies.
    """

    def __init__(self, data_plane: DataPlane, documents: DocumentReader) -> None:
        self._data_plane = data_plane
        self._documents = documents

    async def trace(self, request: web.Request) -> web.StreamResponse:
        """``GET .../trace/setting``."""
        return json_response(dict(await self._data_plane.trace_settings(request.match_info.get("model", ""))))

    async def update_trace(self, request: web.Request) -> web.StreamResponse:
        """``POST .../trace/setting``."""
        model = request.match_info.get("model", "")
        document = await self._documents.read(request)
        known = await self._data_plane.trace_settings(model)
        updates = {key: trace_values(key, value) for key, value in document.items() if key in known}
        return json_response(dict(await self._data_plane.update_trace_settings(updates, model)))

    async def log(self, request: web.Request) -> web.StreamResponse:
        """``GET /v2/logging``."""
        return json_response(dict(self._data_plane.log_settings()))

    async def update_log(self, request: web.Request) -> web.StreamResponse:
        """``POST /v2/logging``."""
        document = await self._documents.read(request)
        known = self._data_plane.log_settings()
        updates = {key: _log_value(key, value) for key, value in document.items() if key in known}
        return json_response(dict(self._data_plane.update_log_settings(updates)))


def trace_values(key: str, value: Any) -> tuple[str, ...] | None:
    """The texts of a trace setting; None for one that is to be cleared.

    Raises:
        MalformedRequest: If it is not text, or for ``trace_level`` not a list of texts.
    """
    if value is None:
        return None
    if type(value) is str:
        return (value,)
    if key != "trace_level":
        raise MalformedRequest(f"unable to parse '{key}': expected a string, got {kind(value)}")
    if type(value) is not list:
        raise MalformedRequest(f"unable to parse '{key}': expected an array of strings, got {kind(value)}")
    for item in value:
        if type(item) is not str:
            raise MalformedRequest(f"unable to parse '{key}': expected an array of strings, got {kind(item)} in it")
    return tuple(value)


def _log_value(key: str, value: Any) -> bool | int | str:
    if type(value) not in (bool, int, str):
        raise MalformedRequest(f"unable to parse '{key}': expected a boolean, integer or string, got {kind(value)}")
    found: bool | int | str = value
    return found

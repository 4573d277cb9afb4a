"""Health and metadata over REST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web
from roost.core.tensors import TensorSpec
from roost.server.data_plane_protocol import DataPlane
from roost.server.rest.config_json import config_to_json
from roost.server.rest.paths import model_in_path


def json_response(document: Any, status: int = 200) -> web.Response:
    """An answer in JSON."""
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


class MetadataHandlers:
    """Answers the GET calls.

    Health calls have bodies because some clients parse them; the others ignore them.
    """

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane

    async def live(self, request: web.Request) -> web.StreamResponse:
        """``GET /v2/health/live``."""
        return _health("live", self._data_plane.server_live())

    async def ready(self, request: web.Request) -> web.StreamResponse:
        """``GET /v2/health/ready``."""
        return _health("ready", self._data_plane.server_ready())

    async def server_metadata(self, request: web.Request) -> web.StreamResponse:
        """``GET /v2``."""
        metadata = self._data_plane.server_metadata()
        return json_response(
            {"name": metadata.name, "version": metadata.version, "extensions": list(metadata.extensions)}
        )

    async def alive(self, request: web.Request) -> web.StreamResponse:
        """``GET /``, for KServe's probes."""
        return json_response({"status": "alive"})

    async def models(self, request: web.Request) -> web.StreamResponse:
        """``GET /v2/models``, which is KServe's."""
        return json_response({"models": await self._data_plane.model_names()})

    async def model_ready(self, request: web.Request) -> web.StreamResponse:
        """``GET .../ready``; an unknown model is not ready, which clients take 400 for."""
        name, version = model_in_path(request)
        if await self._data_plane.model_ready(name, version):
            return json_response({"name": name, "ready": True})
        return json_response({"error": "Model version not ready", "name": name, "ready": False}, 400)

    async def model_metadata(self, request: web.Request) -> web.StreamResponse:
        """``GET /v2/models/{model}[/versions/{version}]``."""
        metadata = await self._data_plane.model_metadata(*model_in_path(request))
        return json_response(
            {
                "name": metadata.name,
                "versions": list(metadata.versions),
                "platform": metadata.platform,
                "inputs": _specs(metadata.inputs),
                "outputs": _specs(metadata.outputs),
            }
        )

    async def model_config(self, request: web.Request) -> web.StreamResponse:
        """``GET .../config``."""
        return json_response(config_to_json(await self._data_plane.model_config(*model_in_path(request))))


def _health(what: str, good: bool) -> web.Response:
    if good:
        return json_response({what: True})
    return json_response({"error": f"the server is not {what}", what: False}, 503)


def _specs(specs: Sequence[TensorSpec]) -> list[Mapping[str, Any]]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]

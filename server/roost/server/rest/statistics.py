"""The statistics extension over REST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from aiohttp import web
from roost.core.statistics import ModelStatistics
from roost.server.data_plane_protocol import DataPlane
from roost.server.offload import Offload
from roost.server.rest import delivery
from roost.server.rest.paths import model_in_path

# Writing so many takes about a millisecond.
_SLICE_MODELS = 256


class StatisticsHandlers:
    """Answers ``GET /v2/models/stats`` and ``GET /v2/models/{model}[/versions/{version}]/stats``.

    Args:
        data_plane: Knows the statistics.
        offload: Where those of many models are written.
        write_timeout_s: How long a client may take to read them.
    """

    def __init__(self, data_plane: DataPlane, offload: Offload, write_timeout_s: float) -> None:
        self._data_plane = data_plane
        self._offload = offload
        self._write_timeout_s = write_timeout_s

    async def of_all(self, request: web.Request) -> web.StreamResponse:
        """Statistics of all models that were used."""
        return await self._send(request, await self._encode(await self._data_plane.model_statistics()))

    async def of_model(self, request: web.Request) -> web.StreamResponse:
        """Statistics of one version, or of all versions of a model."""
        statistics = await self._data_plane.model_statistics(*model_in_path(request))
        return await self._send(request, await self._encode(statistics))

    async def _encode(self, statistics: Sequence[ModelStatistics]) -> list[bytes]:
        if len(statistics) <= _SLICE_MODELS:
            return encode_statistics(statistics)
        return await self._offload.run(None, encode_statistics, statistics)

    async def _send(self, request: web.Request, pieces: Sequence[bytes]) -> web.StreamResponse:
        """Sends the text alone: while a client reads, what it was made of, which is far larger, is gone."""
        headers = {"Content-Type": "application/json"}
        return await delivery.send(request, headers, pieces, self._write_timeout_s)


def encode_statistics(statistics: Sequence[ModelStatistics]) -> list[bytes]:
    """Writes statistics in pieces; other threads can run between one and the next."""
    pieces = [b'{"model_stats":[']
    for start in range(0, len(statistics), _SLICE_MODELS):
        text = orjson.dumps([_row(item) for item in statistics[start : start + _SLICE_MODELS]])
        pieces += [b",", text[1:-1]] if start else [text[1:-1]]
    pieces.append(b"]}")
    return pieces


def _row(statistics: ModelStatistics) -> dict[str, Any]:
    """One version; the writer knows dataclasses, whose fields are named and ordered as in the protocol."""
    row: dict[str, Any] = {
        "name": statistics.name,
        "version": statistics.version,
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": statistics.inference_stats,
    }
    if statistics.response_stats:
        row["response_stats"] = dict(statistics.response_stats)
    row["batch_stats"] = statistics.batch_stats
    row["memory_usage"] = statistics.memory_usage
    return row

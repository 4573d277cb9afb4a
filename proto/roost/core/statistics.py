"""Cumulative statistics of model versions, as the protocol's statistics extension shows them: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StatisticDuration:
    """How often something happened, and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0


_NONE = StatisticDuration()


@dataclass(frozen=True, slots=True)
class InferStatistics:
    """Requests by outcome and by step; steps but the queue count requests that succeeded without the cache."""

    success: StatisticDuration = _NONE
    fail: StatisticDuration = _NONE
    queue: StatisticDuration = _NONE
    compute_input: StatisticDuration = _NONE
    compute_infer: StatisticDuration = _NONE
    compute_output: StatisticDuration = _NONE
    cache_hit: StatisticDuration = _NONE
    cache_miss: StatisticDuration = _NONE


@dataclass(frozen=True, slots=True)
class ResponseStatistics:
    """One position in the streams of a decoupled model: its first responses, its second ones, and so on."""

    compute_infer: StatisticDuration = _NONE
    compute_output: StatisticDuration = _NONE
    success: StatisticDuration = _NONE
    fail: StatisticDuration = _NONE
    empty_response: StatisticDuration = _NONE
    cancel: StatisticDuration = _NONE


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Batches of one size."""

    batch_size: int
    compute_input: StatisticDuration = _NONE
    compute_infer: StatisticDuration = _NONE
    compute_output: StatisticDuration = _NONE


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Memory that the loaded copies of a version take; ``type`` is CPU or GPU, ``id`` the device's number."""

    type: str
    id: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """One model version since it became available.

    Attributes:
        name: The model.
        version: The version.
        last_inference_ms: When the last request was answered, milliseconds since 1970; 0 for never.
        inference_count: Rows of batches run.
        execution_count: Batches run.
        inference_stats: See there.
        batch_stats: By batch size, ascending.
        memory_usage: What its loaded copies take.
        response_stats: By position in the stream, decoupled models only.
    """

    name: str
    version: str
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: InferStatistics = InferStatistics()
    batch_stats: tuple[BatchStatistics, ...] = ()
    memory_usage: tuple[MemoryUsage, ...] = ()
    response_stats: Mapping[str, ResponseStatistics] = field(default_factory=dict)

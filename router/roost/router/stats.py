"""Counters of requests, loads and evictions: one small object per model version, made at its first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from roost.core.errors import Code


class ModelStats:
    """Everything counted for one model version; outlives evictions. Durations in seconds."""

    __slots__ = (
        "compute_s",
        "errors",
        "evictions",
        "executions",
        "load_failures",
        "load_s",
        "load_wait_s",
        "loads",
        "name",
        "ok",
        "queue_s",
        "rows",
        "version",
    )

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.ok = 0
        self.errors: dict[Code, int] | None = None  # most versions never fail, and there may be many of them
        self.rows = 0
        self.executions = 0
        self.queue_s = 0.0
        self.load_wait_s = 0.0
        self.compute_s = 0.0
        self.loads = 0
        self.load_s = 0.0
        self.load_failures = 0
        self.evictions = 0


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What one finished request took. ``code`` is None for success; the parts are 0 where it did not get so far."""

    name: str
    version: str
    code: Code | None
    total_s: float
    queue_s: float
    load_wait_s: float
    compute_s: float


@dataclass(slots=True)
class Stats:
    """The counters of all versions that were ever used, and who wants to see each request.

    Attributes:
        models: By (name, version). Requests that name no known model count under ``("", "")``.
        on_request: Called with each finished request, for histograms.
        on_load: Called with (model name, seconds) after each successful load.
    """

    models: dict[tuple[str, str], ModelStats] = field(default_factory=dict)
    on_request: Callable[[RequestRecord], None] | None = None
    on_load: Callable[[str, float], None] | None = None

    def of(self, name: str, version: str) -> ModelStats:
        """The counters of a version, made if they are not there."""
        key = (name, version)
        stats = self.models.get(key)
        if stats is None:
            stats = self.models[key] = ModelStats(name, version)
        return stats

    def record(self, request: RequestRecord) -> None:
        """Counts a finished request."""
        stats = self.of(request.name, request.version)
        if request.code is None:
            stats.ok += 1
        else:
            stats.errors = stats.errors or {}
            stats.errors[request.code] = stats.errors.get(request.code, 0) + 1
        stats.queue_s += request.queue_s
        stats.load_wait_s += request.load_wait_s
        stats.compute_s += request.compute_s
        if self.on_request is not None:
            self.on_request(request)

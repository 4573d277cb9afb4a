"""What happens in the mesh at one moment, in one small answer: totals, workers, and the models that matter most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from roost.router.view import DeviceView

STANDBY = "standby"
"""The state of a model that is not loaded, but would be for a request."""

FAILED = "failed"
"""The state of a model that could not be loaded lately, or is in quarantine."""

UNLOADED = "unloaded"
"""The state of a model that was taken from service by a call."""

ENSEMBLE = "ensemble"
"""The state of a model that is made of others, and never loaded."""


class Order(StrEnum):
    """Which models come first; all but names in descending order."""

    RATE = "rate"
    MEMORY = "memory"
    QUEUE = "queue"
    LOADS = "loads"
    LATENCY = "latency"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants to see: the first ``top`` models in some order that have ``needle`` in their names."""

    order: Order = Order.RATE
    needle: str = ""
    top: int = 50


@dataclass(frozen=True, slots=True)
class ModelActivity:
    """One version of a model.

    Attributes:
        model: Its name.
        version: Empty if no request has asked for it yet.
        state: That of its best copy (``roost.router.states``), else standby, failed, unloaded or ensemble.
        requests_per_s: Requests that ended since the look before.
        failures_per_s: Those of them that failed.
        latency_s: What the others took on average; 0 if there were none.
        queued: Requests that wait.
        leases: Batches that run.
        bytes: What its copies are accounted with.
        workers: Where its copies are, one number for each.
        loads: How often it was loaded: each is a cold start.
        load_s: What the last load took.
        evictions: How often a copy was evicted.
    """

    model: str
    version: str
    state: str
    requests_per_s: float = 0.0
    failures_per_s: float = 0.0
    latency_s: float = 0.0
    queued: int = 0
    leases: int = 0
    bytes: int = 0
    workers: tuple[int, ...] = ()
    loads: int = 0
    load_s: float = 0.0
    evictions: int = 0


@dataclass(frozen=True, slots=True)
class ProcessActivity:
    """The server's process or a worker's: ``cpus`` is how many it kept busy since the look before."""

    pid: int
    cpus: float
    private_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerActivity:
    """A worker.

    Attributes:
        id: Its number.
        kind: Its runtimes.
        device: Whose memory it uses.
        state: Starting, up or down.
        restarts: How often it was started again.
        process: What the kernel says.
        threads: How many CPUs one run in it may keep busy.
        in_flight: Batches that it has.
        arena_bytes: What tensors take of the memory that it shares with the server.
        accounted_bytes: What its copies are accounted with.
        copies: How many it has, by state.
    """

    id: int
    kind: str
    device: str
    state: str
    restarts: int
    process: ProcessActivity
    threads: int
    in_flight: int
    arena_bytes: int
    accounted_bytes: int
    copies: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Totals:
    """All models together; what ends in ``_per_s`` since the look before."""

    models: int
    loaded: int
    queued: int
    requests_per_s: float
    failures_per_s: float
    loads_per_s: float
    evictions_per_s: float


@dataclass(frozen=True, slots=True)
class Activity:
    """All of it.

    Attributes:
        version: The version of Roost.
        ready: Whether the server is ready.
        window_s: The time that rates are over; 0 if nobody looked lately, and then rates are 0.
        totals: All models together.
        server: The server's own process.
        devices: Memory with a budget.
        workers: The workers.
        matching: How many models have names that were asked for.
        models: The first of them.
        moving: Models that come or go, whether asked for or not; a few of them if there are many.
    """

    version: str
    ready: bool
    window_s: float
    totals: Totals
    server: ProcessActivity
    devices: tuple[DeviceView, ...]
    workers: tuple[WorkerActivity, ...]
    matching: int
    models: tuple[ModelActivity, ...]
    moving: tuple[ModelActivity, ...] = ()

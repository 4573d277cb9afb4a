"""What the mesh looks like at one moment, for people, metrics and tests: immutable and free of live objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One loaded copy of a model version, or one that is coming or going.

    ``state`` is a state of ``roost.router.states``; ``bytes`` is what the ledger accounts for it.
    """

    model: str
    version: str
    state: str
    bytes: int
    leases: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker process.

    ``private_bytes`` is what the kernel said last, ``arena_bytes`` what tensors take of the memory that it shares with
    the router; ``state`` is starting, up or down.
    """

    id: int
    kind: str
    device: str
    state: str
    pid: int
    epoch: int
    restarts: int
    in_flight: int
    private_bytes: int
    instances: tuple[InstanceView, ...]
    arena_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Memory with a budget. ``used_bytes`` includes ``reserved_bytes``, which loads hold that are under way."""

    name: str
    budget_bytes: int
    used_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class MeshView:
    """All of it.

    ``queued`` counts requests that wait; ``body_bytes`` and ``answer_bytes`` are what request bodies and unread answers
    hold of their budgets.
    """

    ready: bool
    models: int
    queued: int
    body_bytes: int
    body_limit_bytes: int
    devices: tuple[DeviceView, ...]
    workers: tuple[WorkerView, ...]
    answer_bytes: int = 0

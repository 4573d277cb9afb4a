"""What the mesh looks like at one moment, for people, metrics and tests: immutable and free of live objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One loaded copy of a model version, or one that is coming or going.

    ``state`` is a state of ``roost.router.states``; ``bytes`` is what the ledger accounts for it of the machine's
    memory, ``device_bytes`` what of its GPU's.
    """

    model: str
    version: str
    state: str
    bytes: int
    leases: int
    idle_s: float
    device_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker process.

    ``private_bytes`` is what the kernel said last, ``arena_bytes`` what tensors take of the memory that it shares with
    the router; ``state`` is starting, up or down. ``believed_bytes`` is what its process had when it was started and
    what its instances are accounted with; ``mapped_bytes`` and ``mappings`` are the kernel's figures, some seconds old.
    ``accounted_mapped_bytes`` and ``accounted_mappings`` are what the ledger has for its instances.
    ``busy_s`` is for how long it had something to run; ``labels`` are as ``--worker-labels`` has them.
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
    believed_bytes: int = 0
    mapped_bytes: int = 0
    mappings: int = 0
    trims: int = 0
    recycles: int = 0
    busy_s: float = 0.0
    labels: str = ""
    accounted_mapped_bytes: int = 0
    accounted_mappings: int = 0


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Memory with a budget. ``used_bytes`` includes ``reserved_bytes``, which loads hold that are under way.

    ``mapped_bytes`` are of files that are mapped, each counted once; with ``used_bytes`` they stay below
    ``memory_limit_bytes``. ``mappings_limit`` is how many one process may have for models. A limit of 0 is none.

    The others are those of GPUs: how each is called, its memory, and what it says that it is doing, None for what it
    does not say. ``really_used_bytes`` is what all programs have of it.
    """

    name: str
    budget_bytes: int
    used_bytes: int
    reserved_bytes: int
    mapped_bytes: int = 0
    memory_limit_bytes: int = 0
    mappings_limit: int = 0
    uuid: str = ""
    product: str = ""
    total_bytes: int = 0
    really_used_bytes: int | None = None
    utilization: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True)
class MeshView:
    """All of it.

    ``queued`` counts requests that wait, ``sequences`` those sequences of requests that have begun and not ended, whose
    state takes ``sequence_bytes``; ``body_bytes`` and ``answer_bytes`` are what request bodies and unread answers
    hold of their budgets; ``fork_server_bytes`` is the private memory of the process that workers are forked from.
    """

    ready: bool
    models: int
    queued: int
    body_bytes: int
    body_limit_bytes: int
    devices: tuple[DeviceView, ...]
    workers: tuple[WorkerView, ...]
    answer_bytes: int = 0
    fork_server_bytes: int = 0
    sequences: int = 0
    sequence_bytes: int = 0

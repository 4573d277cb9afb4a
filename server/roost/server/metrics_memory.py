"""The metrics of memory: what the server believes that models take, and what the kernel says of workers."""

from __future__ import annotations

from collections.abc import Sequence

from roost.router.view import DeviceView, WorkerView
from roost.server.exposition import family, labels_of

_OF_DEVICES = (
    ("roost_device_budget_bytes", "budget_bytes", "Bytes that models may take on a device."),
    ("roost_device_used_bytes", "used_bytes", "Bytes of the budget in use, reservations included."),
    ("roost_device_reserved_bytes", "reserved_bytes", "Bytes of the budget reserved for loads under way."),
    ("roost_device_mapped_bytes", "mapped_bytes", "Bytes of files that models map, each file counted once."),
    (
        "roost_device_memory_limit_bytes",
        "memory_limit_bytes",
        "Bytes that models may take on a device with the files that they map; 0 for no limit.",
    ),
    ("roost_device_mappings_limit", "mappings_limit", "Mappings that models may have in one worker; 0 for no limit."),
)
_GAUGES = (
    ("roost_worker_private_bytes", "private_bytes", "Private memory of a worker as the kernel counts it."),
    (
        "roost_worker_believed_bytes",
        "believed_bytes",
        "Private memory that a worker had when it was started, and what its models are accounted with.",
    ),
    ("roost_worker_mapped_bytes", "mapped_bytes", "Pages of files that a worker uses, as the kernel counts them."),
    (
        "roost_worker_accounted_mapped_bytes",
        "accounted_mapped_bytes",
        "Bytes of files that a worker's models map, as they are accounted.",
    ),
    ("roost_worker_mappings", "mappings", "Mappings of a worker as the kernel counts them."),
    ("roost_worker_accounted_mappings", "accounted_mappings", "Mappings that a worker's models are accounted with."),
)
_COUNTERS = (
    ("roost_worker_trims_total", "trims", "Times that a worker was told to give memory back."),
    (
        "roost_worker_recycles_total",
        "recycles",
        "Times that a worker was replaced since it took more memory than its models account for.",
    ),
)


def device_families(devices: Sequence[DeviceView]) -> list[str]:
    """What is believed of each device, and its limits."""
    labelled = [(labels_of(device=device.name), device) for device in devices]
    return [
        family(name, "gauge", text, [(labels, getattr(device, attribute)) for labels, device in labelled])
        for name, attribute, text in _OF_DEVICES
    ]


def memory_families(workers: Sequence[WorkerView]) -> list[str]:
    """All of them."""
    labelled = [(labels_of(worker=worker.id), worker) for worker in workers]
    return [
        family(name, type_, text, [(labels, getattr(worker, attribute)) for labels, worker in labelled])
        for type_, metrics in (("gauge", _GAUGES), ("counter", _COUNTERS))
        for name, attribute, text in metrics
    ]

"""Makes the views of ``roost.router.view`` from the live objects."""

from __future__ import annotations

import math
import time

from roost.router.placement import Ledger
from roost.router.revision import Instance
from roost.router.view import DeviceView, InstanceView, WorkerView
from roost.router.worker import Worker
from roost.runtimes.memory import private_bytes


def view_device(ledger: Ledger, name: str) -> DeviceView:
    """The device as it is now."""
    return DeviceView(name, ledger.budget_bytes, ledger.used_bytes, ledger.reserved_bytes)


def view_worker(worker: Worker, ledger: Ledger) -> WorkerView:
    """The worker as it is now."""
    now = time.monotonic()
    return WorkerView(
        worker.id,
        worker.spec.kind,
        worker.spec.device,
        worker.state,
        worker.pid,
        worker.epoch,
        worker.restarts,
        len(worker.runs),
        private_bytes_of(worker.pid),
        tuple(_view_instance(instance, ledger, now) for instance in worker.instances.values()),
        worker.link.arena_bytes if worker.link is not None else 0,
    )


def _view_instance(instance: Instance, ledger: Ledger, now: float) -> InstanceView:
    holding = ledger.holdings.get(instance.id)
    idle_s = max(0.0, now - holding.last_used) if holding is not None and holding.last_used > -math.inf else 0.0
    key = instance.revision.key
    return InstanceView(key.name, key.version, instance.state.value, instance.bytes, instance.leases, idle_s)


def private_bytes_of(pid: int) -> int:
    """What the kernel says now; 0 for a worker without a process."""
    try:
        return private_bytes(pid) if pid else 0
    except OSError:  # it has just ended
        return 0

"""Makes the views of ``roost.router.view`` from the live objects."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

from roost.router.devices import GpuState
from roost.router.placement import Ledger
from roost.router.revision import Instance
from roost.router.view import DeviceView, InstanceView, WorkerView
from roost.router.worker import OFF, Worker
from roost.runtimes.memory import family_memory_of


def view_devices(ledger: Ledger, name: str, gpus: Iterable[GpuState] = ()) -> tuple[DeviceView, ...]:
    """The devices as they are now: the memory of the machine, under that name, and the GPUs."""
    return (_view_host(ledger, name), *(_view_gpu(ledger, state) for state in gpus))


def _view_gpu(ledger: Ledger, state: GpuState) -> DeviceView:
    gpu, reading, account = state.gpu, state.reading, ledger.device(state.gpu.name)
    return DeviceView(
        gpu.name,
        account.limit_bytes,
        account.bytes,
        account.reserved_bytes,
        uuid=gpu.uuid,
        product=gpu.product,
        total_bytes=gpu.total_bytes,
        really_used_bytes=None if reading is None else reading.used_bytes,
        utilization=None if reading is None else reading.utilization,
        power_w=None if reading is None else reading.power_w,
        power_limit_w=None if reading is None else reading.power_limit_w,
        energy_j=None if reading is None else reading.energy_j,
    )


def _view_host(ledger: Ledger, name: str) -> DeviceView:
    limits = ledger.limits
    return DeviceView(
        name,
        limits.private_bytes,
        ledger.used_bytes,
        ledger.reserved_bytes,
        ledger.mapped_bytes,
        0 if limits.memory_bytes == math.inf else int(limits.memory_bytes),
        0 if limits.mappings == math.inf else int(limits.mappings),
    )


def running(workers: Iterable[Worker]) -> list[Worker]:
    """Those that have processes, or are about to: nobody needs to see the others."""
    return [worker for worker in workers if worker.state != OFF]


def view_instances(worker: Worker, ledger: Ledger) -> Iterator[InstanceView]:
    """What is loaded in a worker, made one by one: there may be very many."""
    now = time.monotonic()
    return (_view_instance(instance, ledger, now) for instance in list(worker.instances.values()))


def view_worker(worker: Worker, ledger: Ledger, *, instances: bool = True) -> WorkerView:
    """The worker as it is now, with or without what is loaded in it."""
    now, memory, accounted = time.monotonic(), worker.memory, ledger.figures_of(worker.id)
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
        tuple(view_instances(worker, ledger)) if instances else (),
        worker.link.arena_bytes if worker.link is not None else 0,
        memory.believed_bytes,
        memory.mapped_bytes,
        memory.mappings,
        memory.trims,
        memory.recycles,
        worker.busy_s + (now - worker.turn_at if worker.runs else 0.0),
        ",".join(f"{name}={value}" for name, value in worker.labels.items()),
        accounted.mapped_bytes,
        accounted.mappings,
    )


def _view_instance(instance: Instance, ledger: Ledger, now: float) -> InstanceView:
    holding = ledger.holdings.get(instance.id)
    idle_s = max(0.0, now - holding.last_used) if holding is not None and holding.last_used > -math.inf else 0.0
    key = instance.revision.key
    size_bytes = instance.figures.private_bytes
    device_bytes = instance.figures.device_bytes
    return InstanceView(key.name, key.version, instance.state.value, size_bytes, instance.leases, idle_s, device_bytes)


def private_bytes_of(pid: int) -> int:
    """What the kernel says now; 0 for a worker without a process."""
    try:
        return family_memory_of(pid).private_bytes if pid else 0
    except OSError:  # it has just ended
        return 0

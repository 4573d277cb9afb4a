"""Looks once a second at what the workers' processes really take, and sees to it that this is what is accounted for.

``drift`` decides; here workers are told to trim, instances are charged, and workers are recycled: one gets nothing new,
is ended when what it has is done, and comes back at once as a new process. What waits for its models meanwhile is
served by that one. Where runs last so long that others would have to wait, it goes on as before, and the next
attempt is made later.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from roost.core.errors import RoostError
from roost.core.figures import Figures
from roost.core.frames import FrameType
from roost.core.units import format_bytes
from roost.router.drift import ALLOWED_BYTES, ALLOWED_SHARE, Charge, DriftWatch, Measure, Pause
from roost.router.learned import Learned, Measured
from roost.router.measured import measured_conditions
from roost.router.placement import Ledger
from roost.router.revision import Instance
from roost.router.room import Room
from roost.router.states import InstanceState
from roost.router.worker import Worker
from roost.runtimes.memory import family_memory_of, mappings_of

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_EVERY_S = 1.0
COUNT_EVERY_S = 10.0
COUNT_SHARE = 0.002
"""Counting mappings may take so much of the time: there may be very many, and the worker can't map meanwhile."""

MAPPINGS_SHARE = 0.95
"""Of the mappings that a process may have; the ledger keeps to less."""

MOST_CHARGED_SHARE = 1 / 4
"""One instance is never charged with more of the device's budget."""

LEFT_BYTES = 2 << 20
"""What loads may leave behind while nothing else happens."""

TRIM_TIMEOUT_S = 10.0
DRAIN_S = 1.0
_POLL_S = 0.005


class Kernel(Protocol):
    """What the system says of processes; OSError for one that has ended."""

    def memory(self, pid: int) -> Figures:
        """Private and mapped bytes."""

    def mappings(self, pid: int) -> int:
        """How many mappings it has; may block."""

    def most_mappings(self) -> int:
        """How many a process may have."""


class LinuxKernel:
    """The one of this machine."""

    def memory(self, pid: int) -> Figures:
        """See ``Kernel``."""
        return family_memory_of(pid)

    def mappings(self, pid: int) -> int:
        """See ``Kernel``."""
        return mappings_of(pid)

    def most_mappings(self) -> int:
        """See ``Kernel``."""
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
            return int(file.read())


class Recycled(Protocol):
    """Whoever gives work to workers; see ``roost.router.mesh``."""

    def hold(self, worker: Worker) -> None:
        """It gets nothing new from now on."""

    def resume(self, worker: Worker) -> None:
        """It gets something again."""


@dataclass(eq=False, slots=True)
class _Process:
    """One process of a worker.

    Attributes:
        epoch: Which one it is.
        watch: Follows its drift.
        looked_at: When it was looked at last.
        left_bytes: What it took beyond what it is believed to after it was last told to tidy up.
        count_at: When its mappings are to be counted.
    """

    epoch: int
    watch: DriftWatch
    looked_at: float
    left_bytes: int = 0
    count_at: float = -math.inf


@dataclass(eq=False)
class MemoryWatch:
    """See the module.

    Attributes:
        workers: Those of the device.
        ledger: Its budget.
        room: Where loads wait for memory.
        mesh: Gives them work.
        learned: Keeps what models were found to need.
        disk: The store is used, and mappings are counted on it.
        kernel: Says what processes take.
    """

    workers: Sequence[Worker]
    ledger: Ledger
    room: Room
    mesh: Recycled
    learned: Learned
    disk: Executor
    kernel: Kernel = field(default_factory=LinuxKernel)
    _processes: dict[int, _Process] = field(default_factory=dict)
    _pauses: dict[int, Pause] = field(default_factory=dict)
    _idle_bytes: dict[str, int] = field(default_factory=dict)  # by kind

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        while True:
            for worker in self.workers:
                try:
                    if worker.up and worker.pid:
                        await self._look_at(worker)
                except OSError:
                    pass  # the process has just ended
                except Exception:
                    log.exception("looking at the memory of worker %d failed", worker.id)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_at(self, worker: Worker) -> None:
        now = time.monotonic()
        taken = self.kernel.memory(worker.pid)
        await self._end_larger(worker, taken.private_bytes)
        process = self._process(worker, taken.private_bytes, now)
        accounted_bytes = self._accounted_bytes(worker)
        memory = worker.memory
        memory.private_bytes, memory.mapped_bytes = taken.private_bytes, taken.mapped_bytes
        memory.believed_bytes = memory.idle_bytes + accounted_bytes
        looked_at, process.looked_at = process.looked_at, now
        process.watch.most_bytes = int(MOST_CHARGED_SHARE * self.ledger.limits.private_bytes)
        step = process.watch.observe(
            now, memory.drift_bytes, accounted_bytes, worker.instances, partial(self._ran, worker, looked_at)
        )
        if step is Measure.TRIM:
            log.info("worker %d is told to give memory back: %s", worker.id, _excess(worker))
            await self._trim(worker, collect=True)
        elif isinstance(step, Charge):
            self._charge(worker, step)
        elif step is Measure.RECYCLE:
            await self._recycle(worker, f"it takes {format_bytes(memory.drift_bytes)} more than its models account for")
        else:
            await self._tidy(worker, process, looked_at)
        for instance in process.watch.settled(now):
            if instance in worker.instances:
                await self._learn(worker.instances[instance])
        if now >= process.count_at and worker.up:
            await self._count(worker, process)

    def _process(self, worker: Worker, private_bytes: int, now: float) -> _Process:
        """What is known of the worker's process; a new one has what it was started with, or is taken to."""
        process = self._processes.get(worker.id)
        if process is None or process.epoch != worker.epoch:
            process = self._processes[worker.id] = _Process(worker.epoch, DriftWatch(), now)
            # What instances have in processes of their own is accounted for.
            private_bytes = max(0, private_bytes - sum(i.own_bytes for i in worker.instances.values()))
            if not worker.instances:
                self._idle_bytes[worker.spec.kind] = private_bytes
            idle_bytes = worker.started_bytes or self._idle_bytes.get(worker.spec.kind, private_bytes)
            worker.memory.idle_bytes = min(private_bytes, idle_bytes)
        return process

    def _accounted_bytes(self, worker: Worker) -> int:
        return self.ledger.figures_of(worker.id).private_bytes

    def _ran(self, worker: Worker, since: float) -> Collection[int]:
        """Which instances ran since then."""
        holdings = self.ledger.holdings
        return [number for number in worker.instances if number in holdings and holdings[number].last_used >= since]

    async def _tidy(self, worker: Worker, process: _Process, looked_at: float) -> None:
        """Has a worker that does nothing give back what the last loads have left, once."""
        drift_bytes = worker.memory.drift_bytes
        process.left_bytes = max(0, min(process.left_bytes, drift_bytes))
        if drift_bytes < process.left_bytes + LEFT_BYTES or _has_work(worker) or self._ran(worker, looked_at):
            return
        await self._trim(worker, collect=False)
        if worker.pid:
            process.left_bytes = self.kernel.memory(worker.pid).private_bytes - worker.memory.believed_bytes

    async def _end_larger(self, worker: Worker, private_bytes: int) -> None:
        """Has programs ended, also those that load, whose process takes more than there is for all models together."""
        budget_bytes = self.ledger.limits.private_bytes
        most_bytes = budget_bytes + int(max(ALLOWED_BYTES, budget_bytes * ALLOWED_SHARE))
        if private_bytes > most_bytes and any(instance.revision.is_code for instance in worker.instances.values()):
            await self._tell(worker, {"process_limit_bytes": most_bytes})

    async def _trim(self, worker: Worker, *, collect: bool) -> None:
        """Has the worker give back what it has freed; one that does not answer is the heartbeat's business."""
        worker.memory.trims += 1
        await self._tell(worker, {"collect": collect})

    async def _tell(self, worker: Worker, fields: dict[str, Any]) -> None:
        if worker.link is None:
            return
        try:
            async with asyncio.timeout(TRIM_TIMEOUT_S):
                await worker.link.call(FrameType.TRIM, fields)
        except (TimeoutError, RoostError) as error:
            log.debug("worker %d did not trim: %s", worker.id, error)

    def _charge(self, worker: Worker, charge: Charge) -> None:
        for number, extra_bytes in charge.extra_bytes.items():
            instance = worker.instances.get(number)
            if instance is None:
                continue
            figures = instance.figures
            figures = replace(figures, private_bytes=figures.private_bytes + extra_bytes)
            log.info("%s takes %s more than expected", instance.revision.key, format_bytes(extra_bytes))
            self.ledger.resized(number, figures)
            instance.figures = figures
        self.room.changed()

    async def _learn(self, instance: Instance) -> None:
        """What an instance took for long is what its model needs: the next load is accounted with as much."""
        revision = instance.revision
        if revision.artifact is None or instance.state is InstanceState.GONE or instance.figures.device_bytes:
            return
        key = revision.artifact.digest, measured_conditions(revision.description, prepared=instance.copy is not None)
        measured = Measured(instance.figures, 0.0, instance.figures.private_bytes)
        await self._on_disk(partial(self._put_more, key, measured))

    def _put_more(self, key: tuple[str, str], found: Measured) -> None:
        known = self.learned.get_measured(*key)
        if known is not None:
            private_bytes = max(known.figures.private_bytes, found.figures.private_bytes)
            figures = replace(known.figures, private_bytes=private_bytes)
            found = replace(known, figures=figures, peak_bytes=max(known.peak_bytes, private_bytes))
        self.learned.put_measured(*key, found)

    async def _count(self, worker: Worker, process: _Process) -> None:
        """Counts mappings, not more often than is cheap."""
        began = time.monotonic()
        worker.memory.mappings = count = await self._on_disk(partial(self.kernel.mappings, worker.pid))
        now = time.monotonic()
        process.count_at = now + max(COUNT_EVERY_S, (now - began) / COUNT_SHARE)
        if count > MAPPINGS_SHARE * self.kernel.most_mappings():
            await self._recycle(worker, f"it has {count} mappings, and more may be refused")

    async def _recycle(self, worker: Worker, reason: str) -> None:
        """Replaces a worker's process if that costs no more than a moment; else not now."""
        pause = self._pauses.setdefault(worker.id, Pause())
        others_are_up = all(other.up for other in self.workers if other.spec.kind == worker.spec.kind)
        if not pause.is_over(time.monotonic()) or not others_are_up or self._knows_sequences(worker):
            return
        pause.begin(time.monotonic())
        self.mesh.hold(worker)
        epoch = worker.epoch
        try:
            async with asyncio.timeout(DRAIN_S):
                # Polled, as an event would cost each run of every day something.
                while worker.epoch == epoch and _has_work(worker):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
            log.warning("worker %d is replaced by a new process, since %s", worker.id, reason)
            worker.memory.recycles += 1
            worker.kill()
            while worker.up and worker.epoch == epoch:  # noqa: ASYNC110 - until its link has closed
                await asyncio.sleep(_POLL_S)
        except TimeoutError:
            log.info("worker %d should be replaced, but what runs there takes long: later", worker.id)
        finally:
            self.mesh.resume(worker)

    def _knows_sequences(self, worker: Worker) -> bool:
        """Whether what its models know of sequences of requests would be lost with it."""
        holdings = self.ledger.holdings
        return any(number in holdings and holdings[number].held for number in worker.instances)

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.disk, call)


def _has_work(worker: Worker) -> bool:
    return bool(worker.runs) or any(i.state is InstanceState.LOADING for i in worker.instances.values())


def _excess(worker: Worker) -> str:
    memory = worker.memory
    return f"{format_bytes(memory.private_bytes)}, of which {format_bytes(memory.believed_bytes)} are accounted for"

"""Looks every two seconds at what GPUs are doing, and keeps models to the memory that there really is.

Other programs may use the same GPU, and runs need memory that no model is accounted with. So what models may take is
what was free at the start, less a reserve, and never more than they have and what is free now, less the reserve: if
there is less, the ledger has others go.

What a model takes is learned from its loads: by how much the use of the GPU grew meanwhile, if nothing else happened
there that could have been the reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

from roost.core.figures import Figures
from roost.core.tasks import look_every
from roost.core.units import format_bytes
from roost.router.devices import GpuState
from roost.router.learned import Measured
from roost.router.placement import Ledger
from roost.router.revision import Instance, Revision
from roost.router.room import Room
from roost.router.sizes import LEAST_BYTES
from roost.router.worker import OFF, Worker
from roost.runtimes.nvml import Reading

log = logging.getLogger(__name__)

T = TypeVar("T")

ReadGpu: TypeAlias = Callable[[str], Reading | None]
"""Says what the GPU of a UUID is doing; None if it does not answer. May block."""

LOOK_EVERY_S = 2.0
READ_TIMEOUT_S = 5.0
RESERVE_SHARE = 0.05
LEAST_RESERVE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class _Quiet:
    """A GPU as it was just before a load that was the only thing that happened there."""

    gpu: GpuState
    used_bytes: int
    busy: tuple[tuple[int, int, float], ...]


@dataclass(eq=False)
class DeviceWatch:
    """See the module.

    Attributes:
        gpus: The GPUs.
        workers: All workers.
        ledger: Has their budgets.
        room: Where loads wait for memory.
        read: See ``ReadGpu``.
        thread: ``read`` is called there.
        remember: Keeps what a revision takes of a GPU, for the next start.
    """

    gpus: Sequence[GpuState]
    workers: Sequence[Worker]
    ledger: Ledger
    room: Room
    read: ReadGpu
    thread: Executor
    remember: Callable[[Revision], Awaitable[None]]
    _states: dict[str, GpuState] = field(init=False)

    def __post_init__(self) -> None:
        self._states = {state.gpu.name: state for state in self.gpus}

    def begin(self) -> None:
        """Gives each GPU the budget that it had when it was found, so that loads need not wait for the first look."""
        for state in self.gpus:
            gpu = state.gpu
            self.ledger.limit_device(gpu.name, budget_bytes(gpu.total_bytes, gpu.free_bytes))

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        await look_every(LOOK_EVERY_S, self.look, partial(log.exception, "looking at the GPUs failed"), at_once=True)

    async def look(self) -> None:
        """Looks at each GPU once."""
        for state in self.gpus:
            reading = await self._ask(state)
            if reading is None and state.reading is not None:
                log.warning("%s does not answer: what it is doing is not known", state.gpu.name)
            state.reading = reading
            if reading is not None:
                self._limit(state, reading)
        self.room.changed()

    async def weigh(self, instance: Instance, load: Callable[[], Awaitable[T]]) -> T:
        """Loads an instance, and notes what its revision takes of a GPU if that can be told."""
        before = await self._before(instance)
        result = await load()
        if before is not None and (taken_bytes := await self._taken_since(before, instance)) is not None:
            revision = instance.revision
            log.debug("%s takes %s of %s", revision.key, format_bytes(taken_bytes), before.gpu.gpu.name)
            known = revision.measured_on_gpu
            most_bytes = max(taken_bytes, 0 if known is None else known.figures.device_bytes)
            if known is None or most_bytes > known.figures.device_bytes:
                revision.measured_on_gpu = Measured(Figures(0, device_bytes=most_bytes))
                await self.remember(revision)
        return result

    async def _before(self, instance: Instance) -> _Quiet | None:
        """What to compare with once it is loaded; None if it is not on a GPU, or something else goes on there."""
        state = self._states.get(instance.worker.spec.device)
        if state is None or state.reading is None or (busy := self._busy(state, instance)) is None:
            return None
        reading = await self._ask(state)
        return None if reading is None else _Quiet(state, reading.used_bytes, busy)

    async def _taken_since(self, before: _Quiet, instance: Instance) -> int | None:
        reading = await self._ask(before.gpu)
        if reading is None or self._busy(before.gpu, instance) != before.busy:
            return None
        artifact = instance.revision.artifact
        files_bytes = 0 if artifact is None else artifact.size_bytes
        # What it has found in memory that the process had already does not show; its weights are there in any case.
        return max(reading.used_bytes - before.used_bytes, files_bytes, LEAST_BYTES)

    async def _ask(self, state: GpuState) -> Reading | None:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self.thread, self.read, state.gpu.uuid)
        except TimeoutError:  # drivers may hang
            return None

    def _limit(self, state: GpuState, reading: Reading) -> None:
        account = self.ledger.device(state.gpu.name)
        most_bytes = budget_bytes(state.gpu.total_bytes, state.gpu.free_bytes)
        if account.moving:  # part of what is accounted is not taken yet, or no longer: this may say too much
            most_bytes = min(most_bytes, account.limit_bytes)
        now_bytes = account.bytes + reading.free_bytes - reserve_bytes(state.gpu.total_bytes)
        self.ledger.limit_device(state.gpu.name, max(0, min(most_bytes, now_bytes)))

    def _busy(self, state: GpuState, instance: Instance) -> tuple[tuple[int, int, float], ...] | None:
        """What the GPU's workers have done and have; None if they do anything else than to load the instance."""
        workers = [worker for worker in self.workers if worker.spec.device == state.gpu.name]
        account = self.ledger.device(state.gpu.name)
        alone = account.moving <= (instance.id in self.ledger.holdings)
        if not alone or any(worker.runs or not (worker.up or worker.state == OFF) for worker in workers):
            return None
        return tuple((worker.epoch, len(worker.instances), worker.busy_s) for worker in workers)


def budget_bytes(total_bytes: int, free_bytes: int) -> int:
    """What models may take of a GPU of which so much is free."""
    return max(0, free_bytes - reserve_bytes(total_bytes))


def reserve_bytes(total_bytes: int) -> int:
    """What is left of a GPU's memory for runs and for what libraries keep there."""
    return max(LEAST_RESERVE_BYTES, int(RESERVE_SHARE * total_bytes))

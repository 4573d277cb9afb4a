"""Workers by kind. Workers of one kind have the runtimes of frameworks that live well together in one process.

Those of the first kind are up as long as the server is. Those of another start when a model is to be loaded that needs
them, which may take seconds and some hundred megabytes, and end when none of them has had an instance for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from roost.core.tasks import look_every
from roost.core.units import format_bytes
from roost.router.launching import Launcher
from roost.router.worker import OFF, Worker
from roost.runtimes.memory import shared_out_bytes

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


async def _nothing(kind: str) -> None:
    """There is nothing else to be ended."""


@dataclass(eq=False)
class WorkerKind:
    """The workers of one kind.

    Attributes:
        name: The kind.
        workers: All of them, whether or not they have processes now.
        group: Owns the tasks that keep them running.
        idle_timeout_s: They end after so long without an instance; infinite: never.
        when_ended: Told when they have ended.
    """

    name: str
    workers: Sequence[Worker]
    group: asyncio.TaskGroup
    idle_timeout_s: float
    when_ended: Callable[[str], Awaitable[None]] = _nothing
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)
    _holders: int = 0
    _idle_since: float = 0.0
    _is_stopped: bool = False

    @property
    def is_on(self) -> bool:
        """Whether its workers have processes, or are about to."""
        return bool(self._keepers)

    def start(self) -> None:
        """Starts the processes, unless they have been or the server stops; if they end just now, when they have."""
        if self._keepers or self._is_stopped:
            return
        self._keepers = [self.group.create_task(worker.keep_running()) for worker in self.workers]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has the workers running, or about to be, until the block ends: something is to be loaded there."""
        self._holders += 1
        if not self._keepers and self.workers:
            log.info("a model needs workers of kind %s: %d of them are started", self.name, len(self.workers))
        self.start()
        try:
            yield
        finally:
            self._holders -= 1
            self._idle_since = time.monotonic()

    async def look(self, now: float) -> None:
        """Ends the workers if nothing was on them for long."""
        if not self._keepers or self._is_used():
            self._idle_since = now
        elif now - self._idle_since >= self.idle_timeout_s:
            log.info("the workers of kind %s are not used any more: they are ended", self.name)
            await self._end()
            if self._holders:  # somebody came meanwhile
                self.start()

    async def stop(self) -> None:
        """Ends the workers for good."""
        self._is_stopped = True
        await self._end()

    def _is_used(self) -> bool:
        return self._holders > 0 or any(worker.instances for worker in self.workers)

    async def _end(self) -> None:
        for worker in self.workers:
            worker.recycling = True  # or a load might begin there just now
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for worker in self.workers:
            worker.state, worker.recycling = OFF, False
        await self.when_ended(self.name)
        self._keepers = []


class Kinds:
    """All kinds of workers of a device.

    Args:
        kinds: Them; the first one's are up as long as the server is.
        set_base: Told what the processes of the others take before anything is loaded there, whenever that changes.

    Attributes:
        first: The first one.
        fork_server_of: Says which process the workers of a kind are forked from; 0 for none.
    """

    def __init__(self, kinds: Sequence[WorkerKind], set_base: Callable[[int], None]) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        self._set_base = set_base
        self._counted: set[tuple[int, int]] = set()
        self.first = kinds[0]
        self.fork_server_of: Callable[[str], int] = lambda _: 0

    def forked_by(self, launches: Launcher) -> None:
        """What workers are forked from is counted, and ends with the last of them."""
        self.fork_server_of = launches.pid_of
        for kind in self._kinds.values():
            kind.when_ended = launches.end

    @property
    def workers(self) -> list[Worker]:
        """The workers of all kinds."""
        return [worker for kind in self._kinds.values() for worker in kind.workers]

    @property
    def running(self) -> list[Worker]:
        """Those that have processes, or are about to."""
        return [worker for kind in self._kinds.values() if kind.is_on for worker in kind.workers]

    @property
    def most(self) -> int:
        """How many workers the kind has that has most."""
        return max(len(kind.workers) for kind in self._kinds.values())

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """See ``WorkerKind``; nothing happens for a kind that there is not."""
        kind = self._kinds.get(name)
        if kind is None:
            yield
            return
        with kind.held():
            yield

    async def run(self) -> None:
        """Ends what is not used any more, until cancelled."""
        await look_every(LOOK_EVERY_S, self._look, partial(log.exception, "looking at the kinds of workers failed"))

    async def stop(self) -> None:
        """Ends all workers for good."""
        await asyncio.gather(*(kind.stop() for kind in self._kinds.values()))

    async def _look(self) -> None:
        for kind in self._kinds.values():
            if kind is not self.first:
                await kind.look(time.monotonic())
        await self._look_at_base()

    async def _look_at_base(self) -> None:
        """Counts what the processes take, whenever others are up than before."""
        others = [kind for kind in self._kinds.values() if kind is not self.first]
        up = [worker for kind in others for worker in kind.workers if worker.up]
        counted = {(worker.id, worker.epoch) for worker in up}
        if counted == self._counted:
            return
        self._counted = counted
        forks = [pid for kind in others if kind.is_on and (pid := self.fork_server_of(kind.name))]
        base_bytes = sum(worker.base_bytes for worker in up)
        if forks:
            base_bytes += await asyncio.to_thread(_shared_out_bytes, forks)
        log.info("processes of other kinds take %s before a model is loaded there", format_bytes(base_bytes))
        self._set_base(base_bytes)


def _shared_out_bytes(pids: Iterable[int]) -> int:
    total_bytes = 0
    for pid in pids:
        with suppress(OSError):  # it has just ended
            total_bytes += shared_out_bytes(pid)
    return total_bytes

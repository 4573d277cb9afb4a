"""Workers that are forked: a process that has imported what they need is asked for one, and has it in milliseconds.

``roost.runtimes.fork_server`` is its own end. Where it does not work, workers are started one by one as without it. Its
workers die with it, so that none outlives the server; then it is started again with the first of them. One that is
stuck is replaced when the next worker is wanted, and kept as long as it has workers, which go on as if nothing was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from roost.router.fork_process import ForkedWorker, ForkProcess, start_fork_process
from roost.router.link import LinkListener
from roost.router.process import Launch, WorkerProcess, WorkerSpec, launch, new_link
from roost.router.process_watch import is_stopped

log = logging.getLogger(__name__)

PAUSE_S = 60.0
"""After it has failed, workers are started without it for so long."""


class ForkServer:
    """See the module; ``launch`` is a ``Launch``.

    Args:
        spec: How its workers are started; others are not forked.
        spawn: Starts those that it can't.
    """

    def __init__(self, spec: WorkerSpec, spawn: Launch = launch) -> None:
        self._spec = spec
        self._spawn = spawn
        self._server: ForkProcess | None = None
        self._retired: list[ForkProcess] = []
        self._starting = asyncio.Lock()
        self._not_before = 0.0

    @property
    def pid(self) -> int:
        """Its process; 0 if there is none now."""
        return self._server.pid if self._server is not None and not self._server.lost else 0

    async def launch(self, spec: WorkerSpec, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        """See ``Launch``."""
        if spec == self._spec and time.monotonic() >= self._not_before:
            try:
                return await self._fork(worker, epoch, listener)
            except OSError as error:
                self._not_before = time.monotonic() + PAUSE_S
                reason = error.strerror or str(error) or "it does not answer"
                log.warning("workers are not forked for the next %.0f s: %s", PAUSE_S, reason)
        return await self._spawn(spec, worker, epoch, listener)

    async def close(self) -> None:
        """Ends it; its workers have ended before, or do so now."""
        for server in (*self._retired, self._server):
            if server is not None:
                await server.end()
        self._retired.clear()

    async def _fork(self, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        server = await self._running()
        try:
            return await self._fork_from(server, worker, epoch, listener)
        except TimeoutError:
            self._retire(server)
        except OSError:
            if not server.lost:
                raise
        return await self._fork_from(await self._running(), worker, epoch, listener)

    async def _fork_from(self, server: ForkProcess, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        async with new_link(self._spec, listener) as (link, descriptors):
            return ForkedWorker(server, await server.fork(worker, epoch, descriptors), link)

    async def _running(self) -> ForkProcess:
        """The process, started if there is none that would answer."""
        async with self._starting:
            if self._server is not None and is_stopped(self._server.pid):
                self._retire(self._server)
            if self._server is None or self._server.lost:
                self._server = await start_fork_process(self._spec)
            return self._server

    def _retire(self, server: ForkProcess) -> None:
        """It is stuck: another one forks from now on."""
        if server is not self._server:
            return
        self._server = None
        log.error(
            "the fork server (process %d) is stuck: another one takes its place, its %d workers go on",
            server.pid,
            server.workers,
        )
        server.retire()
        self._retired = [old for old in self._retired if old.running]
        self._retired.append(server)


@contextlib.asynccontextmanager
async def fork_server(spec: WorkerSpec, spawn: Launch = launch) -> AsyncIterator[ForkServer]:
    """One that is ended when the block ends, where its workers must have ended."""
    server = ForkServer(spec, spawn)
    try:
        yield server
    finally:
        await server.close()

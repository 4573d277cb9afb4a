"""Processes of workers are forked from one that has imported what their kind needs: each kind has its own.

It is started with the first worker of the kind and ends after the last one. See ``roost.router.forking``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable

from roost.router.forking import ForkServer
from roost.router.link import LinkListener
from roost.router.process import Launch, WorkerProcess, WorkerSpec, launch


class Launcher:
    """See the module; ``launch`` is a ``Launch``.

    Args:
        specs: How the workers are started of each kind that is forked.
        spawn: Starts those that can't be forked.
    """

    def __init__(self, specs: Iterable[WorkerSpec], spawn: Launch = launch) -> None:
        self._spawn = spawn
        self._servers = {spec.kind: ForkServer(spec, spawn) for spec in specs}

    @property
    def pids(self) -> list[int]:
        """The processes that workers are forked from."""
        return [server.pid for server in self._servers.values() if server.pid]

    def pid_of(self, kind: str) -> int:
        """The process that workers of a kind are forked from; 0 for none."""
        server = self._servers.get(kind)
        return 0 if server is None else server.pid

    async def launch(self, spec: WorkerSpec, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        """See ``Launch``."""
        server = self._servers.get(spec.kind)
        if server is None:
            return await self._spawn(spec, worker, epoch, listener)
        return await server.launch(spec, worker, epoch, listener)

    async def end(self, kind: str) -> None:
        """Ends what the workers of a kind are forked from; it is started again with the next one of them."""
        if kind in self._servers:
            await self._servers[kind].close()

    async def close(self) -> None:
        """Ends all of them; their workers have ended before, or do so now."""
        for server in self._servers.values():
            await server.close()


@contextlib.asynccontextmanager
async def launcher(specs: Iterable[WorkerSpec]) -> AsyncIterator[Launcher]:
    """One that is closed when the block ends, where its workers must have ended."""
    made = Launcher(specs)
    try:
        yield made
    finally:
        await made.close()

"""The process behind a worker: how one is started, and what the supervisor does with it.

``roost.router.worker`` supervises whatever satisfies ``WorkerProcess``, so tests run the mesh without processes and a
worker may one day be elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from roost.router.arena import Arena
from roost.router.link import Link, LinkListener, WorkerLink

# Trimming, which workers do after loads and unloads, reaches all of what was freed in the first arena only.
_WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """How worker processes are started.

    Attributes:
        kind: Which runtimes it has and what it is trusted with.
        device: The name of the device it runs on.
        slots: How many batches it runs at once.
        threads: How many threads one batch may use: its share of the CPUs.
        enable_dummy: Whether it has the runtime for tests.
        log_level: The least severe level of its log.
        log_format: How its log lines look: ``human`` or ``json``.
        arena_bytes: How much memory for large tensors it shares with the router at most; 0: all of them go through
            the socket.
    """

    kind: str
    device: str
    slots: int
    threads: int
    enable_dummy: bool = False
    log_level: str = "info"
    log_format: str = "human"
    arena_bytes: int = 0


class WorkerProcess(Protocol):
    """A worker process that was started; it says hello over its link once it is up."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def link(self) -> Link:
        """The router's end of its link."""

    def kill(self) -> None:
        """Ends it at once; nothing happens if it has ended."""

    async def wait(self) -> int:
        """Waits for its end and returns its exit code, or ``-signal``."""


Launch: TypeAlias = Callable[[WorkerSpec, int, int, LinkListener], Awaitable[WorkerProcess]]
"""Starts a process of a spec, for a worker's id and epoch, whose link tells the listener; OSError if it can't."""


@dataclass(frozen=True, slots=True)
class _Launched:
    """A child process of this one."""

    process: asyncio.subprocess.Process
    link: WorkerLink

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()

    async def wait(self) -> int:
        return await self.process.wait()


async def launch(spec: WorkerSpec, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
    """Starts a child process; see ``Launch``.

    Raises:
        OSError: If the machine has no process, descriptor or memory for it.
    """
    with contextlib.ExitStack() as stack:  # both descriptors are the worker's alone in the end
        arena = stack.enter_context(contextlib.closing(Arena(spec.arena_bytes)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.enter_context(theirs)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: WorkerLink(listener, arena), sock=ours)
        descriptors = (theirs.fileno(), arena.descriptor)
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(spec, worker, epoch, *descriptors),
                pass_fds=descriptors,
                env=_environment(spec, os.environ),
                stdin=asyncio.subprocess.DEVNULL,
            )
        except BaseException:
            link.abort()
            raise
    return _Launched(process, link)


def _command(spec: WorkerSpec, worker: int, epoch: int, link: int, arena: int) -> list[str]:
    # -P: a module that lies in the working directory must not stand in for one of ours.
    command = [sys.executable, "-P", "-m", "roost.runtimes.worker", "--link-fd", str(link), "--arena-fd", str(arena)]
    command += ["--id", str(worker), "--kind", spec.kind, "--epoch", str(epoch)]
    command += ["--slots", str(spec.slots), "--threads", str(spec.threads)]
    command += ["--log-level", spec.log_level, "--log-format", spec.log_format]
    return [*command, "--enable-dummy"] if spec.enable_dummy else command


def _environment(spec: WorkerSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    threads = {name: str(spec.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**inherited, **_WORKER_ENVIRONMENT, **threads}

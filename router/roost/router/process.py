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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from roost.router.arena import Arena
from roost.router.link import Link, LinkListener, WorkerLink
from roost.router.process_watch import Watch
from roost.runtimes.child import NO_TELEMETRY
from roost.runtimes.memory import MALLOC_ENVIRONMENT

CPU = "cpu"
"""The device of workers that use no GPU."""
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"

CHILD_ENVIRONMENT = {**MALLOC_ENVIRONMENT, **NO_TELEMETRY}
"""What every process has in its environment that models are loaded in."""


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
        visible_gpus: The GPUs that its process sees, as ``CUDA_VISIBLE_DEVICES`` has them; None: those that this one
            sees.
        fake_gpu: Whether it does not use its GPU but runs everything on the CPU, for tests.
    """

    kind: str
    device: str
    slots: int
    threads: int
    enable_dummy: bool = False
    log_level: str = "info"
    log_format: str = "human"
    arena_bytes: int = 0
    visible_gpus: str | None = None
    fake_gpu: bool = False


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

    async def stopped(self) -> None:
        """Returns when it was stopped by a signal and does not go on."""

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has ended processes for want of memory just now; asked once it has ended."""


Launch: TypeAlias = Callable[[WorkerSpec, int, int, LinkListener], Awaitable[WorkerProcess]]
"""Starts a process of a spec, for a worker's id and epoch, whose link tells the listener; OSError if it can't."""


class _Launched(Watch):
    """A child process of this one."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link) -> None:
        super().__init__(process.pid)
        self.process = process
        self.link = link

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
    async with new_link(spec, listener) as (link, descriptors):
        process = await asyncio.create_subprocess_exec(
            *_command(spec, worker, epoch, *descriptors),
            pass_fds=descriptors,
            env=worker_environment(spec, os.environ),
            stdin=asyncio.subprocess.DEVNULL,
        )
    return _Launched(process, link)


@contextlib.asynccontextmanager
async def new_link(spec: WorkerSpec, listener: LinkListener) -> AsyncIterator[tuple[Link, tuple[int, int]]]:
    """The router's end of a link, and the descriptors of the worker's end and of the arena.

    Those are the worker's alone in the end: they are closed here when the block ends, and if it fails, so is the link.

    Raises:
        OSError: If there is no descriptor or memory for them.
    """
    with contextlib.ExitStack() as stack:
        arena = stack.enter_context(contextlib.closing(Arena(spec.arena_bytes)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.enter_context(theirs)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: WorkerLink(listener, arena), sock=ours)
        try:
            yield link, (theirs.fileno(), arena.descriptor)
        except BaseException:
            link.abort()
            raise


def _command(spec: WorkerSpec, worker: int, epoch: int, link: int, arena: int) -> list[str]:
    # -P: a module that lies in the working directory must not stand in for one of ours.
    command = [sys.executable, "-P", "-m", "roost.runtimes.worker", "--link-fd", str(link), "--arena-fd", str(arena)]
    return [*command, "--id", str(worker), "--epoch", str(epoch), *worker_arguments(spec)]


def worker_arguments(spec: WorkerSpec) -> list[str]:
    """The part of a command line that all workers of a spec have in common."""
    arguments = ["--kind", spec.kind, "--slots", str(spec.slots), "--threads", str(spec.threads)]
    arguments += ["--log-level", spec.log_level, "--log-format", spec.log_format]
    arguments += ["--enable-dummy"] if spec.enable_dummy else []
    if spec.device != CPU:
        arguments += ["--gpu", spec.device, *(["--fake-gpu"] if spec.fake_gpu else [])]
    return arguments


def worker_environment(spec: WorkerSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: the inherited one, with what its memory and its threads need."""
    threads = {name: str(spec.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    gpus = {} if spec.visible_gpus is None else {VISIBLE_GPUS: spec.visible_gpus}
    return {**inherited, **CHILD_ENVIRONMENT, **threads, **gpus}

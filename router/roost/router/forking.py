"""Workers that are forked: a process that has imported what they need is asked for one, and has it in milliseconds.

``roost.runtimes.fork_server`` is its own end. Where it does not work, workers are started one by one as without it. Its
workers die with it, so that none outlives the server; then it is started again with the first of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from roost.router.link import Link, LinkListener
from roost.router.process import (
    Launch,
    WorkerProcess,
    WorkerSpec,
    launch,
    new_link,
    worker_arguments,
    worker_environment,
)
from roost.router.process_watch import Watch, is_stopped

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0
FORK_TIMEOUT_S = 2.0
CODE_TIMEOUT_S = 1.0
"""How long after a process has ended its exit code may come."""
END_TIMEOUT_S = 5.0
PAUSE_S = 60.0
"""After it has failed, workers are started without it for so long."""

_MESSAGE_BYTES = 4096


class _Fork(NamedTuple):
    """A process that was forked: its number, a descriptor that stands for it, and what will be its exit code."""

    pid: int
    pidfd: int
    code: asyncio.Future[int]


class ForkServer:
    """See the module; ``launch`` is a ``Launch``.

    Args:
        spec: How its workers are started; others are not forked.
        spawn: Starts those that it can't.
    """

    def __init__(self, spec: WorkerSpec, spawn: Launch = launch) -> None:
        self._spec = spec
        self._spawn = spawn
        self._server: _Server | None = None
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
        if self._server is not None:
            await self._server.end()

    async def _fork(self, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        server = await self._running()
        try:
            return await self._fork_from(server, worker, epoch, listener)
        except OSError:
            if not server.lost:
                raise
        return await self._fork_from(await self._running(), worker, epoch, listener)

    async def _fork_from(self, server: _Server, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        async with new_link(self._spec, listener) as (link, descriptors):
            return _Forked(await server.fork(worker, epoch, descriptors), link)

    async def _running(self) -> _Server:
        """The process, started if there is none."""
        async with self._starting:
            if self._server is None or self._server.lost:
                self._server = await _start(self._spec)
            return self._server


@contextlib.asynccontextmanager
async def fork_server(spec: WorkerSpec, spawn: Launch = launch) -> AsyncIterator[ForkServer]:
    """One that is ended when the block ends, where its workers must have ended."""
    server = ForkServer(spec, spawn)
    try:
        yield server
    finally:
        await server.close()


class _Server:
    """The process, and the socket on which it is asked for workers."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._asked: dict[tuple[int, int], asyncio.Future[_Fork]] = {}
        self._codes: dict[int, asyncio.Future[int]] = {}
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.lost = False
        self._loop.add_reader(control, self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def fork(self, worker: int, epoch: int, descriptors: tuple[int, int]) -> _Fork:
        """Has a worker forked that gets these descriptors.

        Raises:
            OSError: If it can't be, or there is no answer in time, or the process has ended.
        """
        if self.lost:
            raise BrokenPipeError
        future: asyncio.Future[_Fork] = self._loop.create_future()
        self._asked[worker, epoch] = future
        try:
            socket.send_fds(self._control, [json.dumps({"id": worker, "epoch": epoch}).encode()], descriptors)
            async with asyncio.timeout(FORK_TIMEOUT_S):
                return await future
        except (BrokenPipeError, ConnectionResetError):  # its end was not read yet
            self._lose()
            raise
        finally:
            self._asked.pop((worker, epoch), None)

    async def end(self) -> None:
        """Has it end, and waits for that."""
        self._lose()
        if self._process.returncode is None and is_stopped(self.pid):  # it would not get on with it
            self._process.kill()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _read(self) -> None:
        while not self.lost:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if data:
                self._take(json.loads(data), descriptors)
            else:
                log.error("the fork server has ended: its workers are started again")
                self._lose()

    def _take(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        match message["event"]:
            case "ready":
                _settle(self.ready, None)
            case "forked":
                code = self._codes[message["pid"]] = self._loop.create_future()
                fork = _Fork(message["pid"], descriptors[0], code)
                future = self._asked.get((message["id"], message["epoch"]))
                if future is None or not _settle(future, fork):  # nobody waits for it any more
                    _kill(fork.pidfd)
                    os.close(fork.pidfd)
            case "failed":
                future = self._asked.get((message["id"], message["epoch"]))
                if future is not None and not future.done():
                    future.set_exception(OSError(message["reason"]))
            case "ended":
                _settle(self._codes.pop(message["pid"]), int(message["code"]))

    def _lose(self) -> None:
        """The socket is closed, here or there: it forks nothing any more, and its workers die when it has ended."""
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._control)
        self._control.close()
        waiting: list[asyncio.Future[Any]] = [self.ready, *self._asked.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(OSError("the fork server has ended"))
        for code in self._codes.values():
            _settle(code, -signal.SIGKILL)


class _Forked(Watch):
    """A worker's process, which is a child of the fork server."""

    def __init__(self, fork: _Fork, link: Link) -> None:
        super().__init__(fork.pid)
        self.link = link
        self._pidfd = fork.pidfd
        self._code = fork.code
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(fork.pidfd, self._on_end)

    def kill(self) -> None:
        if self._pidfd >= 0:
            _kill(self._pidfd)

    async def wait(self) -> int:
        await asyncio.shield(self._ended)
        try:
            async with asyncio.timeout(CODE_TIMEOUT_S):
                return await asyncio.shield(self._code)
        except TimeoutError:  # the fork server is stuck
            return -signal.SIGKILL

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        with contextlib.suppress(ChildProcessError):  # it is, if the fork server died and this is the container's init
            os.waitpid(self.pid, os.WNOHANG)
        _settle(self._ended, None)


async def _start(spec: WorkerSpec) -> _Server:
    """Starts the process and waits until it can fork.

    Raises:
        OSError: If it can't be started, or can't fork.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                *_command(spec, theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                # A library that makes threads when it is imported would keep it from forking.
                env={**worker_environment(spec, os.environ), "OPENBLAS_NUM_THREADS": "1"},
                stdin=asyncio.subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
    server = _Server(process, ours)
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await server.ready
    except BaseException:
        await server.end()
        raise
    log.debug("the fork server is process %d", server.pid)
    return server


def _command(spec: WorkerSpec, control: int) -> list[str]:
    # -P: a module that lies in the working directory must not stand in for one of ours.
    command = [sys.executable, "-P", "-m", "roost.runtimes.fork_server", "--control-fd", str(control)]
    return [*command, *worker_arguments(spec)]


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended just now
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _settle(future: asyncio.Future[Any], result: Any) -> bool:
    if future.done():
        return False
    future.set_result(result)
    return True

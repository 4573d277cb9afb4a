"""The process that workers are forked from, as the router sees it, and the workers that it has forked.

It is asked over a socket, and says on it what has become of them; see ``roost.runtimes.fork_server``.
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
from collections.abc import Mapping
from typing import Any, NamedTuple

from roost.router.link import Link
from roost.router.process import WorkerSpec, worker_arguments, worker_environment
from roost.router.process_watch import Watch, exit_code_of, is_stopped

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0
FORK_TIMEOUT_S = 2.0
CODE_TIMEOUT_S = 1.0
"""How long after a process has ended its exit code may come."""
END_TIMEOUT_S = 5.0

_MESSAGE_BYTES = 4096


class Fork(NamedTuple):
    """A process that was forked: its number, a descriptor that stands for it, and what will be its exit code."""

    pid: int
    pidfd: int
    code: asyncio.Future[int]


class ForkProcess:
    """The process, and the socket on which it is asked for workers.

    Args:
        process: The process.
        control: This end of the socket.

    Attributes:
        ready: Done once it can fork; an OSError if it ends before.
        lost: Whether the socket is closed, so that it forks nothing any more and its workers end with it.
    """

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._asked: dict[tuple[int, int], asyncio.Future[Fork]] = {}
        self._codes: dict[int, asyncio.Future[int]] = {}
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.lost = False
        self._is_retired = False
        self._loop.add_reader(control, self._read)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return self._process.returncode is None

    @property
    def workers(self) -> int:
        """How many of its workers have not ended."""
        return len(self._codes)

    async def fork(self, worker: int, epoch: int, descriptors: tuple[int, int]) -> Fork:
        """Has a worker forked that gets these descriptors.

        Raises:
            OSError: If it can't be, or there is no answer in time, or the process has ended.
        """
        if self.lost:
            raise BrokenPipeError
        future: asyncio.Future[Fork] = self._loop.create_future()
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
        if self.running and is_stopped(self.pid):  # it would not get on with it
            self._process.kill()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def retire(self) -> None:
        """It is asked for nothing any more, and ends after its last worker, as that would end with it."""
        self._is_retired = True
        self._end_if_unused()

    def ended(self, pid: int, code: int | None) -> None:
        """One of its workers has ended, with a code if that is known."""
        future = self._codes.pop(pid, None)
        if future is not None:
            _settle(future, -signal.SIGKILL if code is None else code)
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._is_retired and not self._codes:
            self._lose()
            if self.running:
                self._process.kill()

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
                fork = Fork(message["pid"], descriptors[0], code)
                future = self._asked.get((message["id"], message["epoch"]))
                if future is None or not _settle(future, fork):  # nobody waits for it any more
                    _kill(fork.pidfd)
                    os.close(fork.pidfd)
            case "failed":
                future = self._asked.get((message["id"], message["epoch"]))
                if future is not None and not future.done():
                    future.set_exception(OSError(message["reason"]))
            case "ended":
                self.ended(message["pid"], int(message["code"]))

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


class ForkedWorker(Watch):
    """A worker's process, which is a child of the fork server; a ``WorkerProcess``.

    Args:
        server: Its parent.
        fork: What is known of it.
        link: The router's end of its link.
    """

    def __init__(self, server: ForkProcess, fork: Fork, link: Link) -> None:
        super().__init__(fork.pid)
        self.link = link
        self._server = server
        self._pidfd = fork.pidfd
        self._code = fork.code
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(fork.pidfd, self._on_end)

    def kill(self) -> None:
        """See ``WorkerProcess``."""
        if self._pidfd >= 0:
            _kill(self._pidfd)

    async def wait(self) -> int:
        """See ``WorkerProcess``."""
        await asyncio.shield(self._ended)
        try:
            async with asyncio.timeout(0.0 if is_stopped(self._server.pid) else CODE_TIMEOUT_S):
                return await asyncio.shield(self._code)
        except TimeoutError:  # the fork server is stuck, so it has not reaped this one
            self._server.ended(self.pid, exit_code_of(self.pid))
            return await self._code

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        with contextlib.suppress(ChildProcessError):  # it is, if the fork server died and this is the container's init
            os.waitpid(self.pid, os.WNOHANG)
        _settle(self._ended, None)


async def start_fork_process(spec: WorkerSpec) -> ForkProcess:
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
    server = ForkProcess(process, ours)
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

"""Entry of the fork server: ``python -m roost.runtimes.fork_server --control-fd N ...``.

What a worker works with takes some hundred milliseconds to import. This process imports it once; a worker that is
forked from it is up after some milliseconds, and shares the memory of what was imported. It has a single thread, ever:
a fork of a process with more may find a lock taken by a thread that it does not have.

The control socket carries messages, each a JSON object; a request for a worker brings two descriptors with it, the
worker's end of its link and its arena, and its answer one that stands for the process.

What models and their libraries print in a worker comes here, so that it is in the log with the worker's number, last
words included, and no more of it than a log can bear.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from roost.runtimes.child import configure_child_logging, die_with_parent, ignore_terminal, name_process
from roost.runtimes.printed import Lines
from roost.runtimes.worker import Assignment, WorkerOptions, add_worker_options, import_all, work, worker_options

MESSAGE_BYTES = 4096
"""No message is larger."""

_READ_BYTES = 1 << 16
_LAST_READS = 16  # no pipe holds more
_TELL_MS = 1000

_log = logging.getLogger("roost.runtimes.fork_server")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Forks workers until the router closes the control socket; in each of them, is that worker."""
    ignore_terminal()
    parser = argparse.ArgumentParser(prog="roost-fork-server", description="Forks workers; the router starts it.")
    parser.add_argument("--control-fd", type=int, required=True, help="inherited descriptor of the control socket")
    add_worker_options(parser)
    arguments = parser.parse_args(argv)
    os.set_inheritable(arguments.control_fd, False)
    options = worker_options(arguments)
    configure_child_logging(options.log_level, options.log_format, {"worker": "fork server"}, _log)
    assignment = None
    try:
        die_with_parent()
        name_process("roost-forks")
        assignment = _serve(socket.socket(fileno=arguments.control_fd), options)
    except (BrokenPipeError, ConnectionResetError):  # the router has gone
        os._exit(0)
    except Exception:
        _log.exception("the fork server ends")
        os._exit(1)
    if assignment is None:
        os._exit(0)
    work(options, assignment)


def _serve(control: socket.socket, options: WorkerOptions) -> Assignment | None:
    import_all(options)
    # For what is loaded later: what has been by now is not to make threads of its own here.
    os.environ.update({name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
    gc.collect()
    gc.freeze()  # collections in the workers would write to what they share otherwise
    return ForkServer(control).serve()


class Output:
    """What one worker prints.

    Args:
        worker: Its number.

    Attributes:
        printed: The descriptor to read from.
        lines: Takes them to the log.

    Raises:
        OSError: If there are no descriptors.
    """

    def __init__(self, worker: int) -> None:
        self.printed, self._printing = os.pipe()
        self.lines = Lines({"worker": worker}, "a model of this worker")

    def leave_reading(self) -> int:
        """In the worker: keeps the other end alone, and gives it."""
        os.close(self.printed)
        return self._printing

    def leave_printing(self) -> None:
        """Keeps the end to read from alone."""
        os.close(self._printing)
        self._printing = -1

    def read(self) -> bool:
        """Reads some; False if there will be no more."""
        data = os.read(self.printed, _READ_BYTES)
        self.lines.feed(data, time.monotonic())
        return bool(data)

    def read_rest(self) -> None:
        """Reads what is there, once its worker has ended; others may go on printing."""
        os.set_blocking(self.printed, False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(_LAST_READS):
                if not self.read():
                    break
        self.lines.end()

    def close(self) -> None:
        """Closes what is open."""
        os.close(self.printed)
        if self._printing >= 0:
            os.close(self._printing)


class ForkServer:
    """See the module.

    Args:
        control: The control socket.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.setblocking(True)
        self._children: dict[int, int] = {}  # process ids by the descriptors that stand for them
        self._outputs: dict[int, Output] = {}  # what they print, by the same
        self._printed: dict[int, Output] = {}  # and by the descriptor that it comes from
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def serve(self) -> Assignment | None:
        """Forks workers until the router has gone (None); returns in each of them, too, with what it is to do."""
        os.close(os.pidfd_open(os.getpid()))  # where there are none, the router had better know at once
        self._tell({"event": "ready"})
        while True:
            ready = self._wait()
            # In this order: descriptors are closed in the second step, and their numbers used again in the third.
            for printed in ready & self._printed.keys():
                self._read(printed)
            for pidfd in ready & self._children.keys():
                self._reap(pidfd)
            if self._control.fileno() in ready:
                data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    return None
                assignment = self._fork(json.loads(data), descriptors)
                if assignment is not None:
                    return assignment

    def _wait(self) -> set[int]:
        """The descriptors that something has come from."""
        is_behind = any(output.lines.is_behind for output in self._printed.values())
        ready = {descriptor for descriptor, _ in self._poll.poll(_TELL_MS if is_behind else None)}
        for output in self._printed.values() if not ready else ():
            output.lines.feed(b"", time.monotonic())  # says what was left out
        return ready

    def _fork(self, asked: Mapping[str, Any], descriptors: Sequence[int]) -> Assignment | None:
        """Forks one worker and tells the router of it (None); in the worker, returns what it is to do."""
        number, epoch = int(asked["id"]), int(asked["epoch"])
        parent = os.getpid()
        output = None
        try:
            output = Output(number)
            pid = _fork_process()
            if not pid:
                self._leave_to_parent()
                link_fd, arena_fd = descriptors
                return Assignment(number, epoch, link_fd, arena_fd, parent, output.leave_reading())
            pidfd = _descriptor_of(pid)
        except OSError as error:
            if output is not None:
                output.close()
            self._tell({"event": "failed", "id": number, "epoch": epoch, "reason": error.strerror or str(error)})
        else:
            self._children[pidfd] = pid
            self._outputs[pidfd] = self._printed[output.printed] = output
            output.leave_printing()
            for descriptor in (pidfd, output.printed):
                self._poll.register(descriptor, select.POLLIN)
            self._tell({"event": "forked", "id": number, "epoch": epoch, "pid": pid}, pidfd)
        # The worker alone has them now: the router learns of its end by theirs.
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _leave_to_parent(self) -> None:
        self._control.close()
        for descriptor in (*self._children, *self._printed):
            os.close(descriptor)

    def _read(self, printed: int) -> None:
        if not self._printed[printed].read():
            self._poll.unregister(printed)
            del self._printed[printed]

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        output = self._outputs.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        if self._printed.pop(output.printed, None) is not None:
            self._poll.unregister(output.printed)
        output.read_rest()
        output.close()
        _, status = os.waitpid(pid, 0)
        self._tell({"event": "ended", "pid": pid, "code": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: Mapping[str, Any], *descriptors: int) -> None:
        data = json.dumps(message).encode()
        if descriptors:
            socket.send_fds(self._control, [data], descriptors)
        else:
            self._control.sendall(data)


def _fork_process() -> int:
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise OSError(f"the fork server has {threads} threads")
    return os.fork()


def _descriptor_of(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:  # nobody would hear of its end
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


if __name__ == "__main__":
    main()

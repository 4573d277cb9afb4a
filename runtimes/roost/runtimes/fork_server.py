"""Entry of the fork server: ``python -m roost.runtimes.fork_server --control-fd N ...``.

What a worker works with takes some hundred milliseconds to import. This process imports it once; a worker that is
forked from it is up after some milliseconds, and shares the memory of what was imported. It has a single thread, ever:
a fork of a process with more may find a lock taken by a thread that it does not have.

The control socket carries messages, each a JSON object; a request for a worker brings two descriptors with it, the
worker's end of its link and its arena, and its answer one that stands for the process.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from roost.runtimes.child import configure_child_logging, die_with_parent, ignore_terminal, name_process
from roost.runtimes.worker import Assignment, WorkerOptions, add_worker_options, import_all, work, worker_options

MESSAGE_BYTES = 4096
"""No message is larger."""

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


class ForkServer:
    """See the module.

    Args:
        control: The control socket.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.setblocking(True)
        self._children: dict[int, int] = {}  # process ids by the descriptors that stand for them
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def serve(self) -> Assignment | None:
        """Forks workers until the router has gone (None); returns in each of them, too, with what it is to do."""
        os.close(os.pidfd_open(os.getpid()))  # where there are none, the router had better know at once
        self._tell({"event": "ready"})
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._control.fileno():
                    self._reap(descriptor)
                    continue
                data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    return None
                assignment = self._fork(json.loads(data), descriptors)
                if assignment is not None:
                    return assignment

    def _fork(self, asked: Mapping[str, Any], descriptors: Sequence[int]) -> Assignment | None:
        """Forks one worker and tells the router of it (None); in the worker, returns what it is to do."""
        number, epoch = int(asked["id"]), int(asked["epoch"])
        parent = os.getpid()
        try:
            pid = _fork_process()
            if not pid:
                self._leave_to_parent()
                link_fd, arena_fd = descriptors
                return Assignment(number, epoch, link_fd, arena_fd, parent)
            pidfd = _descriptor_of(pid)
        except OSError as error:
            self._tell({"event": "failed", "id": number, "epoch": epoch, "reason": error.strerror or str(error)})
        else:
            self._children[pidfd] = pid
            self._poll.register(pidfd, select.POLLIN)
            self._tell({"event": "forked", "id": number, "epoch": epoch, "pid": pid}, pidfd)
        # The worker alone has them now: the router learns of its end by theirs.
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _leave_to_parent(self) -> None:
        self._control.close()
        for pidfd in self._children:
            os.close(pidfd)

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
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

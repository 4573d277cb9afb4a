"""Entry of a worker process: ``python -m roost.runtimes.worker --link-fd N ...``.

Nothing heavy is imported at the top: an interrupt from the terminal reaches the whole process group, and it must be
ignored before imports that take a while.
"""

from __future__ import annotations

import argparse
import gc
import logging
import mmap
import os
import socket
from collections.abc import Sequence
from typing import NoReturn

from roost.runtimes.child import configure_child_logging, die_with_parent, ignore_terminal

# As by default, but for full collections: those look at all instances, which takes 40 ms with 6,000 of them.
_COLLECTIONS = (700, 10, 1000)

_log = logging.getLogger("roost.runtimes.worker")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serves the link that the process was started with, and ends with it."""
    ignore_terminal()
    arguments = _parse(argv)
    configure_child_logging(arguments.log_level, arguments.log_format, {"worker": arguments.id}, _log)
    status = 1
    try:
        _serve(arguments)
        status = 0
    except Exception:
        _log.exception("the worker ends")
    finally:
        # At once, whatever threads still do: nobody is left who could take their answers.
        os._exit(status)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="roost-worker", description="A worker process; the router starts it.")
    parser.add_argument("--link-fd", type=int, required=True, help="inherited descriptor of the link's socket")
    parser.add_argument("--arena-fd", type=int, help="inherited descriptor of the memory shared with the router")
    parser.add_argument("--id", type=int, required=True, help="number of the worker, which its log lines carry")
    parser.add_argument("--kind", required=True, help="kind of worker, reported back")
    parser.add_argument("--epoch", type=int, required=True, help="number of this worker process, reported back")
    parser.add_argument("--slots", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads that one run may use")
    parser.add_argument("--log-level", default="info", help="least severe level of its log")
    parser.add_argument("--log-format", default="human", help="how log lines look: human or json")
    parser.add_argument("--enable-dummy", action="store_true", help="offer the dummy runtime, for tests")
    return parser.parse_args(argv)


def _serve(arguments: argparse.Namespace) -> None:
    os.set_inheritable(arguments.link_fd, False)  # before anything could start a process
    sock = socket.socket(fileno=arguments.link_fd)
    sock.setblocking(True)
    die_with_parent()

    from roost.core.frames import VERSION, FrameError, FrameType, control_frame
    from roost.runtimes.adapters import import_runtimes, runtime_names
    from roost.runtimes.executor import Executor
    from roost.runtimes.link import Link, until_readable
    from roost.runtimes.shared import Shared

    arena = _map(arguments.arena_fd) if arguments.arena_fd is not None else None
    runtimes = import_runtimes(runtime_names(arguments.enable_dummy))
    link = Link(sock, until_readable(sock))
    executor = Executor(link, runtimes, Shared(arena), arguments.slots, arguments.threads)
    # What the imports made stays for good; collections need not look at it.
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)
    hello = {
        "version": VERSION,
        "kind": arguments.kind,
        "epoch": arguments.epoch,
        "pid": os.getpid(),
        "slots": arguments.slots,
        "runtimes": list(runtimes),
    }
    link.send([control_frame(FrameType.HELLO, payload=hello)])
    try:
        executor.serve()
    except FrameError as error:
        _log.error("the link is broken: %s", error)
        raise SystemExit(1) from None


def _map(descriptor: int) -> mmap.mmap:
    from roost.core.arena import map_arena

    arena = map_arena(descriptor)
    os.close(descriptor)
    return arena


if __name__ == "__main__":
    main()

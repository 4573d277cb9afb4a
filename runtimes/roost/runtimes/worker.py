"""Entry of a worker process: ``python -m roost.runtimes.worker --link-fd N ...``.

Nothing heavy is imported at the top: an interrupt from the terminal reaches the whole process group, and it must be
ignored before imports that take a while.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

PROTOCOL_VERSION = 1
_PR_SET_PDEATHSIG = 1

_log = logging.getLogger("roost.runtimes.worker")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serves the link that the process was started with, and ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole process group, but only the server acts
        signal.signal(number, signal.SIG_IGN)
    arguments = _parse(argv)
    _configure_logging(arguments)
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
    parser.add_argument("--id", type=int, required=True, help="number of the worker, which its log lines carry")
    parser.add_argument("--kind", required=True, help="kind of worker, reported back")
    parser.add_argument("--epoch", type=int, required=True, help="number of this worker process, reported back")
    parser.add_argument("--slots", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads that one run may use")
    parser.add_argument("--log-level", default="info", help="least severe level of its log")
    parser.add_argument("--log-format", default="human", help="how log lines look: human or json")
    parser.add_argument("--enable-dummy", action="store_true", help="offer the dummy runtime, for tests")
    return parser.parse_args(argv)


def _configure_logging(arguments: argparse.Namespace) -> None:
    from roost.core.logs import configure_logging

    configure_logging(arguments.log_level, arguments.log_format, fields={"worker": arguments.id})
    # What else Python would write to stderr by itself, in lines that are none of the log's.
    threading.excepthook = _log_thread_end
    sys.unraisablehook = _log_unraisable


def _log_thread_end(end: threading.ExceptHookArgs) -> None:
    name = end.thread.name if end.thread is not None else "unknown"
    error = end.exc_value or end.exc_type()
    _log.error("thread %s ended unexpectedly", name, exc_info=error)


def _log_unraisable(failure: sys.UnraisableHookArgs) -> None:
    # The object is not shown: it may be a tensor.
    _log.error(failure.err_msg or "an exception was ignored", exc_info=failure.exc_value)


def _serve(arguments: argparse.Namespace) -> None:
    os.set_inheritable(arguments.link_fd, False)
    sock = socket.socket(fileno=arguments.link_fd)
    sock.setblocking(True)
    _die_with_parent()

    from roost.core.frames import FrameError, FrameType, control_frame
    from roost.runtimes.adapters import import_runtimes, runtime_names
    from roost.runtimes.executor import Executor
    from roost.runtimes.link import Link

    runtimes = import_runtimes(runtime_names(arguments.enable_dummy))
    link = Link(sock)
    executor = Executor(link, runtimes, arguments.slots, arguments.threads)
    # What the imports made stays for good; collections need not look at it.
    gc.freeze()
    hello = {
        "version": PROTOCOL_VERSION,
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


def _die_with_parent() -> None:
    """Asks the kernel to kill this process when the router dies: end of file comes too late for a stuck reader."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main()

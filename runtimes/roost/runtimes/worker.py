"""Entry of a worker process: ``python -m roost.runtimes.worker --link-fd N ...``.

Nothing heavy is imported at the top: an interrupt from the terminal reaches the whole process group, and it must be
ignored before imports that take a while. A worker that ``roost.runtimes.fork_server`` forks begins at ``work``.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import mmap
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from roost.core.exhaustion import is_exhausted, what_is_missing
from roost.runtimes.child import (
    configure_child_logging,
    die_with_parent,
    ignore_terminal,
    keep_from_copies,
    name_process,
    offer_to_oom_killer,
    print_to,
)

if TYPE_CHECKING:
    from roost.runtimes.protocol import Runtime

# As by default, but for full collections: those look at all instances, which takes 40 ms with 6,000 of them.
_COLLECTIONS = (700, 10, 1000)

_MODULES = ("roost.core.arena", "roost.runtimes.executor")  # and all that they import

_log = logging.getLogger("roost.runtimes.worker")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What workers of one kind have in common.

    Attributes:
        kind: Which runtimes they have; reported back.
        slots: Runs at a time.
        threads: Threads that one run may use.
        enable_dummy: Whether it has the runtime for tests.
        gpu: The GPU that they use, which is the only one that they see; empty for none.
        fake_gpu: Whether they run on the CPU all the same, for tests.
        log_level: The least severe level of its log.
        log_format: How its log lines look.
    """

    kind: str
    slots: int = 1
    threads: int = 1
    enable_dummy: bool = False
    log_level: str = "info"
    log_format: str = "human"
    gpu: str = ""
    fake_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """What is one worker's alone.

    Attributes:
        id: Its number, which its log lines carry.
        epoch: Which process of the worker this is; reported back.
        link_fd: The descriptor of the link's socket.
        arena_fd: The descriptor of the memory that it shares with the router, if any.
        parent: The process with which it dies; 0 for the one that it has now.
        printing_fd: The descriptor of the pipe that takes what models print; None: that goes where the log goes.
    """

    id: int
    epoch: int
    link_fd: int
    arena_fd: int | None = None
    parent: int = 0
    printing_fd: int | None = None


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Serves the link that the process was started with, and ends with it."""
    ignore_terminal()
    parser = argparse.ArgumentParser(prog="roost-worker", description="A worker process; the router starts it.")
    parser.add_argument("--link-fd", type=int, required=True, help="inherited descriptor of the link's socket")
    parser.add_argument("--arena-fd", type=int, help="inherited descriptor of the memory shared with the router")
    parser.add_argument("--id", type=int, required=True, help="number of the worker, which its log lines carry")
    parser.add_argument("--epoch", type=int, required=True, help="number of this worker process, reported back")
    add_worker_options(parser)
    arguments = parser.parse_args(argv)
    os.set_inheritable(arguments.link_fd, False)  # before anything could start a process
    assignment = Assignment(arguments.id, arguments.epoch, arguments.link_fd, arguments.arena_fd)
    work(worker_options(arguments), assignment)


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that ``worker_options`` reads."""
    parser.add_argument("--kind", required=True, help="kind of worker, which says what runtimes it has; reported back")
    parser.add_argument("--slots", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads that one run may use")
    parser.add_argument("--log-level", default="info", help="least severe level of its log")
    parser.add_argument("--log-format", default="human", help="how log lines look: human or json")
    parser.add_argument("--enable-dummy", action="store_true", help="offer the dummy runtime, for tests")
    parser.add_argument("--gpu", default="", help="name of the only GPU that it sees, which models are loaded on")
    parser.add_argument("--fake-gpu", action="store_true", help="run on the CPU all the same, for tests")


def worker_options(arguments: argparse.Namespace) -> WorkerOptions:
    """What the command line says of the worker."""
    return WorkerOptions(
        arguments.kind,
        arguments.slots,
        arguments.threads,
        arguments.enable_dummy,
        arguments.log_level,
        arguments.log_format,
        arguments.gpu,
        arguments.fake_gpu,
    )


def work(options: WorkerOptions, assignment: Assignment) -> NoReturn:
    """Serves a link until the router closes it; then the process ends."""
    stream = print_to(assignment.printing_fd) if assignment.printing_fd is not None else None
    configure_child_logging(options.log_level, options.log_format, {"worker": assignment.id}, _log, stream)
    status = 1
    try:
        _serve(options, assignment)
        status = 0
    except Exception as error:
        if is_exhausted(error):
            _log.error("the worker ends: there are not enough %s", what_is_missing(error))
        else:
            _log.exception("the worker ends")
    finally:
        # At once, whatever threads still do: nobody is left who could take their answers.
        os._exit(status)


def import_all(options: WorkerOptions) -> Mapping[str, Runtime]:
    """Imports what a worker works with, which takes most of the time of its start, and returns its runtimes."""
    for module in _MODULES:
        importlib.import_module(module)
    from roost.runtimes.adapters import import_runtimes, runtime_names

    return import_runtimes(runtime_names(options.kind, options.enable_dummy))


def _serve(options: WorkerOptions, assignment: Assignment) -> None:
    sock = socket.socket(fileno=assignment.link_fd)
    sock.setblocking(True)
    die_with_parent(assignment.parent)
    offer_to_oom_killer()
    name_process(f"roost-worker-{assignment.id}")
    runtimes = import_all(options)

    from roost.core.frames import VERSION, FrameError, FrameType, control_frame
    from roost.runtimes.executor import Executor
    from roost.runtimes.link import Link, until_readable
    from roost.runtimes.niceness import take_short_turns
    from roost.runtimes.protocol import EndsProcesses
    from roost.runtimes.shared import Shared

    arena = _map(assignment.arena_fd) if assignment.arena_fd is not None else None
    link = Link(sock, until_readable(sock))
    keep_from_copies(sock.fileno())
    executor = Executor(link, runtimes, Shared(arena), options.slots, options.threads)
    # What the imports made stays for good; collections need not look at it.
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)
    take_short_turns()
    hello = {
        "version": VERSION,
        "kind": options.kind,
        "epoch": assignment.epoch,
        "pid": os.getpid(),
        "slots": options.slots,
        "runtimes": list(runtimes),
        **({"gpu_runtimes": _on_gpu(runtimes, options)} if options.gpu else {}),
        **_taken(options.kind),
    }
    executor.start()
    link.send([control_frame(FrameType.HELLO, payload=hello)])
    try:
        executor.wait()
    except FrameError as error:
        _log.error("the link is broken: %s", error)
        raise SystemExit(1) from None
    finally:
        for runtime in runtimes.values():
            if isinstance(runtime, EndsProcesses):
                runtime.end_all()


def _on_gpu(runtimes: Mapping[str, Runtime], options: WorkerOptions) -> list[str]:
    """Has the runtimes load models on the GPU from now on; returns those that can."""
    from roost.runtimes.protocol import GpuRuntime, NoGpu

    if options.fake_gpu:
        return list(runtimes)
    able = []
    for name, runtime in runtimes.items():
        try:
            if isinstance(runtime, GpuRuntime):
                runtime.use_gpu()
                able.append(name)
        except NoGpu as error:
            _log.warning("runtime %s can't use %s: %s", name, options.gpu, error)
    return able


def _taken(kind: str) -> dict[str, int]:
    """What the process takes by now; looking takes milliseconds, and of the default kind the router knows it."""
    from roost.runtimes.adapters import DEFAULT_KIND
    from roost.runtimes.memory import private_bytes, shared_out_bytes

    if kind == DEFAULT_KIND:
        return {}
    try:
        return {"private_bytes": private_bytes(), "base_bytes": shared_out_bytes()}
    except OSError:  # a system that does not let it look
        return {}


def _map(descriptor: int) -> mmap.mmap:
    from roost.core.arena import map_arena

    arena = map_arena(descriptor)
    os.close(descriptor)
    return arena


if __name__ == "__main__":
    main()

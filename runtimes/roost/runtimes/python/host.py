"""The process of one model: it takes frames from the worker and has the model answer them, in its main thread.

One other thread reads the link all the time, so that whatever the model does a cancellation is seen. Models that are
not async get one run after another. The process ends with the link.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn

from roost.core.errors import FailedPrecondition, error_of
from roost.core.frames import (
    Call,
    FrameType,
    Header,
    WireTensor,
    call_frame,
    control_frame,
    error_frame,
    parse_control,
    parse_credit,
    parse_error,
    parse_response,
    parse_run,
)
from roost.runtimes.child import die_with_parent, leave_copies, name_process
from roost.runtimes.link import Frame, Link, until_readable
from roost.runtimes.python.job import Job
from roost.runtimes.python.opening import Order, Served, open_model
from roost.runtimes.python.saying import say, set_up_output
from roost.runtimes.python.triton_calls import connect
from roost.runtimes.python.trouble import cancelled, load_error, run_error

FAILED: Final = 1
"""Exit code of a process whose model could not be loaded; it has said why."""


def main(link_fd: int, parent: int) -> NoReturn:
    """Serves the link that the process was started with, and ends with it.

    Args:
        link_fd: The descriptor of the link's socket.
        parent: The process with which it dies.
    """
    os.set_inheritable(link_fd, False)
    die_with_parent(parent)
    # The worker ignores them, which is inherited: what the model starts should end as usual.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    set_up_output()
    sock = socket.socket(fileno=link_fd)
    sock.setblocking(True)
    link = Link(sock, until_readable(sock))
    code = FAILED
    try:
        code = _serve(link)
    except BaseException as error:  # nothing of this process is to be left, whatever the model has done to it
        say("E", f"the model's process ends: {run_error(error, '').message}")
    finally:
        os._exit(code)


def _serve(link: Link) -> int:
    asked = _first(link)
    fields = parse_control(asked.payload)
    order = Order(str(fields["path"]), str(fields["root"]), dict(fields["options"]), int(fields["threads"]))
    name_process(f"roost-py-{order.name}")
    request, pid = asked.header.request, os.getpid()
    try:
        served = open_model(order)
    except BaseException as error:
        leave_copies(pid)
        return _refuse(link, request, error, order)
    leave_copies(pid)
    host = Host(link, served, order)
    connect(host.call)
    if served.is_async:
        return asyncio.run(host.serve_async(request))
    return host.serve(request)


def _first(link: Link) -> Frame:
    while (frame := link.take()) is None:
        if not link.fill():
            os._exit(0)
    return frame


def _refuse(link: Link, request: int, error: BaseException, order: Order) -> int:
    failure = load_error(error, order.root, os.path.basename(order.path))
    link.send([error_frame(request, failure.code, failure.message)])
    return FAILED


class Host:
    """See the module.

    Args:
        link: The link to the worker.
        served: The model.
        order: What was asked for.
    """

    def __init__(self, link: Link, served: Served, order: Order) -> None:
        self._link = link
        self._served = served
        self._order = order
        self._jobs: dict[int, Job] = {}
        self._begin: Callable[[Job | None], object] = bool
        self._unload = 0  # the number of the request for it
        self._calls: dict[int, queue.SimpleQueue[Frame]] = {}
        self._call_numbers = itertools.count(1)
        self._is_loaded = False

    def serve(self, request: int) -> int:
        """Loads the model and answers runs, one after the other, until it is to be unloaded.

        Args:
            request: The number of the request to load it.

        Returns:
            The process's exit code.
        """
        pid = os.getpid()
        try:
            _do_now(self._served.load())
        except BaseException as error:
            return self._refuse_load(pid, request, error)
        leave_copies(pid)
        jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._begin = jobs.put
        self._loaded(request)
        while (job := jobs.get()) is not None:
            self._run(job)
            del job  # an idle process does not keep the last inputs
        try:
            _do_now(self._served.unload())
        except BaseException as error:
            self._complain(error)
        self._unloaded()
        return 0

    async def serve_async(self, request: int) -> int:
        """The same for a model that answers several runs at a time."""
        pid = os.getpid()
        try:
            await _done(self._served.load())
        except BaseException as error:
            return self._refuse_load(pid, request, error)
        leave_copies(pid)
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as group:

            def begin(job: Job | None) -> None:
                if job is None:
                    stopped.set()
                    return
                task = group.create_task(self._run_async(job))
                job.handle.on_cancel(partial(_cancel_soon, loop, task))

            self._begin = lambda job: loop.call_soon_threadsafe(begin, job)
            self._loaded(request)
            await stopped.wait()
        try:
            await _done(self._served.unload())
        except BaseException as error:
            self._complain(error)
        self._unloaded()
        return 0

    def call(self, call: Call) -> Sequence[WireTensor]:
        """Has another model answer; blocks until it has.

        Raises:
            RoostError: Why it has not.
        """
        if not self._is_loaded:
            raise FailedPrecondition("other models can be asked once this one is loaded")
        answers: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        number = next(self._call_numbers)
        self._calls[number] = answers
        self._link.send(call_frame(number, call))
        frame = answers.get()
        del self._calls[number]
        if frame.header.type is FrameType.ERROR:
            raise error_of(*parse_error(frame.payload))
        return parse_response(frame.payload).outputs

    def _refuse_load(self, pid: int, request: int, error: BaseException) -> int:
        leave_copies(pid)
        return _refuse(self._link, request, error, self._order)

    def _loaded(self, request: int) -> None:
        self._is_loaded = True
        threading.Thread(target=self._read, name="read", daemon=True).start()
        self._link.send([control_frame(FrameType.STATUS, request, {"signature": self._served.signature.to_json()})])

    def _complain(self, error: BaseException) -> None:
        say("W", f"unloading the model failed: {run_error(error, self._order.root).message}")

    def _unloaded(self) -> None:
        self._link.send([control_frame(FrameType.STATUS, self._unload)])

    def _run(self, job: Job) -> None:
        try:
            job.begin()
            self._served.run(job)
        except BaseException as error:  # also its sys.exit
            job.fail(error, self._order.root)

    async def _run_async(self, job: Job) -> None:
        try:
            job.begin()
            await self._served.run_async(job)
        except asyncio.CancelledError as error:
            # Else the model has raised it, or stopped its loop.
            job.fail(cancelled() if job.handle.cancelled else error, self._order.root)
            raise
        except BaseException as error:
            job.fail(error, self._order.root)

    def _read(self) -> None:
        try:
            while self._take() or self._link.fill_or_refuse():
                pass
        except BaseException as error:
            say("E", f"the link of the model's process is broken: {type(error).__name__}")
            os._exit(FAILED)
        os._exit(0)  # nobody is left to work for, whatever the model does now

    def _take(self) -> bool:
        """Does what the next frame says; False if there is none."""
        frame = self._link.take()
        if frame is None:
            return False
        header: Header = frame.header
        job = self._jobs.get(header.request)
        match header.type:
            case FrameType.RUN:
                job = Job(header.request, parse_run(frame.keep()), self._link, self._ended)
                self._jobs[header.request] = job
                self._begin(job)
            case FrameType.CANCEL if job is not None:
                job.cancel()
            case FrameType.CREDIT if job is not None:
                job.grant(parse_credit(frame.payload))
            case FrameType.RESPONSE | FrameType.ERROR:
                answers = self._calls.get(header.request)
                if answers is not None:
                    answers.put(Frame(header, frame.keep(), is_lent=False))
            case FrameType.UNLOAD:
                self._unload = header.request
                self._begin(None)
            case _:
                pass
        return True

    def _ended(self, number: int) -> None:
        self._jobs.pop(number, None)


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    loop.call_soon_threadsafe(task.cancel)


def _do_now(value: Awaitable[Any] | None) -> None:
    if value is not None:
        asyncio.run(_done(value))


async def _done(value: Awaitable[Any] | None) -> None:
    if value is not None:
        await value

"""The worker's side of the process of one model: starts it, speaks frames with it, watches it and ends it.

Two threads belong to a process: one reads its link, the other what it prints, and learns of its end. Whoever waits for
an answer gets it, or ``Ended``, from a queue of his own.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, NoReturn, TypeAlias

from roost.core.errors import Cancelled, Internal, ResourceExhausted, error_of
from roost.core.frames import (
    Credit,
    FrameError,
    FrameType,
    Run,
    control_frame,
    credit_frame,
    parse_control,
    parse_error,
    parse_response,
    run_frame,
)
from roost.core.tensors import Buffer, Signature, Tensor
from roost.core.units import format_bytes
from roost.runtimes.link import Frame, Link, PayloadTooLarge, until_readable
from roost.runtimes.memory import family_memory_of
from roost.runtimes.printed import Lines
from roost.runtimes.protocol import Calls, RunHandle
from roost.runtimes.python.asking import Asking, Gone
from roost.runtimes.python.opening import Order
from roost.runtimes.python.spawning import cause_of, kill_group, kill_left, new_mark, spawn

UNLOAD_S: Final = 5.0
"""So long a model has for its ``unload`` or ``finalize``."""

STREAM_CREDIT: Final = Credit(8, 4 << 20)
_LAST_BREATH_S = 1.0  # from the end of the link to that of the process
_READ_BYTES = 1 << 16
_LAST_BYTES = 1 << 20  # that it has printed before its end: no pipe holds more, and others may go on printing
_POLL_S = 60.0
_TELL_S = 1.0  # after a flood of lines


class Ended(Gone):
    """The process has ended, or can't be spoken with.

    Args:
        cause: How, as the end of a sentence.
        is_killed: Whether it was killed from outside, as the kernel does when memory runs out.
        is_too_large: Whether it was ended as it took too much memory.
    """

    def __init__(self, cause: str, *, is_killed: bool = False, is_too_large: bool = False) -> None:
        super().__init__(cause)
        self.is_killed = is_killed
        self.is_too_large = is_too_large


Answer: TypeAlias = Frame | Ended | None
"""What comes of a request; None: nobody waits for it any more."""


class HostProcess:
    """See the module.

    Args:
        order: The model.
        python: The interpreter.
        starter: Its only thread starts processes. A process is told when the thread that has started it ends.
        calls: The way to other models, if there is one.
        grace_s: How long a run may go on that nobody waits for any more.

    Raises:
        ResourceExhausted: If the machine has no process or descriptor for it.
    """

    def __init__(self, order: Order, python: str, starter: Executor, calls: Calls | None, grace_s: float) -> None:
        self._order = order
        self._asking = Asking(calls, self._send)
        self._grace_s = grace_s
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._answers: dict[int, queue.SimpleQueue[Answer]] = {}
        self._end_by: dict[int, float] = {}  # runs that nobody waits for, and until when they may go on
        self._ended: Ended | None = None
        self._kill_cause = ""
        self._mark = new_mark()
        self._has_read = threading.Event()  # all that it has said
        self._is_expected = self._is_too_large = False
        self.lines = Lines({"model": order.name, "version": order.version})
        with contextlib.ExitStack() as stack:
            try:
                self._begin(stack, python, starter)
            except OSError as error:
                raise ResourceExhausted(f"no process can be started for the model: {error.strerror}") from None
            stack.pop_all()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it can't be spoken with any more."""
        return self._ended is not None

    def load(self) -> Callable[[], Signature]:
        """Has it load its model, once.

        Returns:
            What waits until it has; it raises a ``RoostError`` that says why it can't, or ``Ended``.

        Raises:
            Ended: If it has ended by now.
        """
        order = self._order
        fields = {"path": order.path, "root": order.root, "options": dict(order.options), "threads": order.threads}
        number, answers = self._expect()
        self._send([control_frame(FrameType.LOAD, number, fields)])

        def loaded() -> Signature:
            frame = _only_frame(answers.get())
            self._forget(number)
            return Signature.from_json(parse_control(frame.payload)["signature"])

        return loaded

    def run(
        self, inputs: Sequence[Any], outputs: Sequence[str], run: RunHandle, *, decoupled: bool
    ) -> Sequence[Tensor]:
        """Has it run its model; see ``LoadedModel.run``.

        Raises:
            RoostError: What the model says.
            Ended: If it ends meanwhile.
        """
        number, answers = self._expect()
        try:
            run.on_cancel(lambda: self._given_up(number, answers))
            credit = STREAM_CREDIT if decoupled else None
            asked = Run(0, run.deadline_ns, inputs, outputs, run.parameters, credit)
            self._send(run_frame(number, asked))
            return self._follow(number, answers, run)
        finally:
            self._forget(number)

    def close(self) -> None:
        """Has it unload its model, if it has loaded it, and ends it."""
        self._is_expected = True
        with contextlib.suppress(Ended, queue.Empty):
            number, answers = self._expect()
            self._send([control_frame(FrameType.UNLOAD, number)])
            answers.get(timeout=UNLOAD_S)
        self.kill("was ended", is_expected=True)
        self._watcher.join(UNLOAD_S)

    def kill(self, cause: str, *, is_expected: bool = False) -> None:
        """Ends it at once, with all that it has started.

        Args:
            cause: What its end is said to be then.
            is_expected: Whether that is worth no line in the log.
        """
        with self._lock:
            self._is_expected = self._is_expected or is_expected
            self._kill_cause = self._kill_cause or cause
            if self._process.returncode is None:
                kill_group(self._process.pid)

    def end_if_larger_than(self, limit_bytes: int) -> None:
        """Ends it if it takes more private memory than that, together with what it has started."""
        try:
            taken_bytes = family_memory_of(self.pid).private_bytes
        except OSError:  # it has ended
            return
        if taken_bytes > limit_bytes and not self.has_ended:
            self._is_too_large = True
            taken, limit = format_bytes(taken_bytes), format_bytes(limit_bytes)
            self.kill(f"was ended, as it took {taken}, more than the {limit} that the memory budget has for all models")

    def _begin(self, stack: contextlib.ExitStack, python: str, starter: Executor) -> None:
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        printed, printing = os.pipe()
        stack.callback(os.close, printed)
        try:
            link, threads = theirs.fileno(), self._order.threads
            order = (python, link, printing, threads, os.getpid(), self._mark)
            self._process = starter.submit(spawn, *order).result()
        finally:
            theirs.close()
            os.close(printing)
        stack.callback(self._process.wait)
        stack.callback(self._process.kill)
        self._sock = ours
        self._link = Link(ours, until_readable(ours), _is_gone)
        pidfd = os.pidfd_open(self._process.pid)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watcher = threading.Thread(target=self._watch, args=(printed, pidfd), name="model-watch", daemon=True)
        self._watcher.start()
        threading.Thread(target=self._read, name="model-read", daemon=True).start()

    def _expect(self) -> tuple[int, queue.SimpleQueue[Answer]]:
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        number = next(self._numbers)
        with self._lock:
            if self._ended is not None:
                raise self._another_end()
            self._answers[number] = answers
        return number, answers

    def _forget(self, number: int) -> None:
        with self._lock:
            self._answers.pop(number, None)
            self._end_by.pop(number, None)

    def _send(self, buffers: Sequence[Buffer]) -> None:
        try:
            self._link.send(buffers)
        except Ended:
            self._watcher.join(_LAST_BREATH_S)  # how it has ended says more
            if self._ended is None:
                raise
            raise self._another_end() from None

    def _given_up(self, number: int, answers: queue.SimpleQueue[Answer]) -> None:
        """Nobody waits for a run any more; called by a thread that must not be kept waiting."""
        with self._lock:
            if number not in self._answers or self._ended is not None:
                return
            self._end_by.setdefault(number, time.monotonic() + self._grace_s)
            os.eventfd_write(self._wake, 1)
        answers.put(None)

    def _follow(self, number: int, answers: queue.SimpleQueue[Answer], run: RunHandle) -> Sequence[Tensor]:
        is_told = False
        while True:
            answer = answers.get()
            if answer is None:
                if not is_told:
                    is_told = True
                    self._send([control_frame(FrameType.CANCEL, number)])
                continue
            response = parse_response(_only_frame(answer).payload)
            outputs: Sequence[Any] = response.outputs  # as good as tensors
            if response.final:
                return outputs
            if not run.cancelled:
                with contextlib.suppress(Cancelled):  # then it goes on until its process says so
                    run.emit(outputs)
                    size_bytes = sum(memoryview(tensor.data).nbytes for tensor in outputs)
                    self._send([credit_frame(number, Credit(1, size_bytes))])

    def _read(self) -> None:
        cause = "has closed its link"
        try:
            while (frame := self._link.take()) is not None or self._link.fill():
                if frame is not None:
                    self._take(frame)
        except (FrameError, PayloadTooLarge):  # also of a call: what the router can't read would end the worker
            cause = "has sent what can't be read"
        except (OSError, Gone):
            pass
        self._has_read.set()
        self._watcher.join(_LAST_BREATH_S)
        if not self.has_ended:
            self.kill(cause)  # nothing can be got from it any more
        self._sock.close()

    def _take(self, frame: Frame) -> None:
        header = frame.header
        if header.type is FrameType.CALL:
            self._asking.begin(header.request, frame.keep())
            return
        with self._lock:
            answers = self._answers.get(header.request)
        if answers is not None:
            answers.put(Frame(header, frame.keep(), is_lent=False))

    def _watch(self, printed: int, pidfd: int) -> None:
        """Reads what the process prints until it has ended, and sees that it does not go on in vain."""
        poll = select.poll()
        for descriptor in (printed, pidfd, self._wake):
            poll.register(descriptor, select.POLLIN)
        has_ended = False
        while not has_ended:
            ready = poll.poll(self._patience_s() * 1000)
            if not ready:
                self.lines.feed(b"", time.monotonic())
            for descriptor, _ in ready:
                if descriptor == printed:
                    data = os.read(printed, _READ_BYTES)
                    self.lines.feed(data, time.monotonic())
                    if not data:
                        poll.unregister(printed)
                elif descriptor == pidfd:
                    has_ended = True
                else:
                    os.eventfd_read(self._wake)
            if self._patience_s() <= 0:
                self.kill(f"was ended, as it went on for {self._grace_s:g} s with what nobody waited for")
                with self._lock:
                    self._end_by.clear()
        self._reap(printed)
        for descriptor in (printed, pidfd):
            os.close(descriptor)

    def _patience_s(self) -> float:
        """How long nothing needs to be looked at: no run that nobody waits for has gone on for too long until then."""
        with self._lock:
            first = min(self._end_by.values(), default=math.inf)
        most_s = _TELL_S if self.lines.is_behind else _POLL_S
        return max(0.0, min(most_s, first - time.monotonic()))

    def _reap(self, printed: int) -> None:
        # Before the process is reaped, as its number is that of the group of what it has started.
        kill_group(self._process.pid)
        with self._lock:
            code = self._process.wait()
        kill_left(self._mark)
        os.set_blocking(printed, False)
        left_bytes = _LAST_BYTES
        with contextlib.suppress(BlockingIOError):
            while left_bytes > 0 and (data := os.read(printed, _READ_BYTES)):
                left_bytes -= len(data)
                self.lines.feed(data, time.monotonic())
        self.lines.end()
        self._has_read.wait(_LAST_BREATH_S)  # what it has said last may be why it has ended
        with self._lock:
            cause = self._kill_cause or cause_of(code, self.lines.last)
            self._ended = Ended(cause, is_killed=code == -signal.SIGKILL, is_too_large=self._is_too_large)
            waiting = list(self._answers.values())
            os.close(self._wake)
        if not self._is_expected:
            self.lines.note(f"the model's process {self._ended}")
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        for answers in waiting:
            answers.put(self._another_end())
        self._asking.drop()

    def _another_end(self) -> Ended:
        """One for each who raises it."""
        ended = self._ended
        assert ended is not None
        return Ended(str(ended), is_killed=ended.is_killed, is_too_large=ended.is_too_large)


def _only_frame(answer: Answer) -> Frame:
    """The frame of an answer.

    Raises:
        RoostError: If it says what failed.
        Ended: If there is none.
    """
    if isinstance(answer, Ended):
        raise answer
    if answer is None:
        raise Internal("a request without an answer was given up")
    if answer.header.type is FrameType.ERROR:
        raise error_of(*parse_error(answer.payload))
    return answer


def _is_gone(_: int) -> NoReturn:
    raise Ended("has closed its link")

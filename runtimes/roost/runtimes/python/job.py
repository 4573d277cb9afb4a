"""One run in the process of its model: what was asked, and the only way to answer it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt
from roost.core.errors import DeadlineExceeded, Internal, RoostError
from roost.core.frames import REQUEST_ID, Credit, Run, error_frame, response_buffers
from roost.core.tensors import Buffer, Tensor, to_array
from roost.runtimes.credit import CreditWindow
from roost.runtimes.link import Link
from roost.runtimes.protocol import RunHandle
from roost.runtimes.python.trouble import cancelled, run_error


class Job:
    """See the module; safe to use from several threads.

    It is answered once, by ``end`` or ``fail``; later calls do nothing.

    Args:
        number: The run's number.
        run: What is asked; its tensors stay as they are while the job is referred to.
        link: Where answers go.
        ended: Called when it is answered.

    Attributes:
        number: See there.
        id: The client's id of the request; empty if it has none, or there are several.
        handle: Parameters, deadline, and whether it was cancelled.
        decoupled: Whether it may have several responses, or none.
        wanted: Names of the outputs wanted; empty: all.
    """

    def __init__(self, number: int, run: Run, link: Link, ended: Callable[[int], object]) -> None:
        parameters = run.parameters
        self.id = ""
        if REQUEST_ID in parameters:
            self.id = str(parameters[REQUEST_ID])
            parameters = {key: value for key, value in parameters.items() if key != REQUEST_ID}
        self.number = number
        self.handle = RunHandle(parameters, run.deadline_ns)
        self.wanted = run.outputs
        self.decoupled = run.credit is not None
        self._window = CreditWindow(run.credit) if run.credit is not None else None
        self._run = run
        self._link = link
        self._ended = ended
        self._lock = threading.Lock()
        self._is_over = False
        self._sent = 0
        self._pid = os.getpid()

    @property
    def is_over(self) -> bool:
        """Whether nothing can be answered here: it was, or this is a copy of the process that the model has forked."""
        return self._is_over or os.getpid() != self._pid

    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """The input arrays by name.

        Raises:
            InvalidArgument: If one's bytes do not fill its shape.
        """
        tensors: Sequence[Any] = self._run.inputs  # as good as tensors
        return {tensor.name: to_array(tensor) for tensor in tensors}

    def begin(self) -> None:
        """The model begins with it.

        Raises:
            RoostError: If nobody waits for it any more.
        """
        now_ns = self.handle.begin()
        if self.handle.cancelled:
            raise cancelled()
        if self.handle.deadline_ns and now_ns >= self.handle.deadline_ns:
            raise DeadlineExceeded("the deadline passed before the run began")

    def cancel(self) -> None:
        """Nobody waits any more; whoever waits for credit is woken."""
        self.handle.cancel()
        if self._window is not None:
            self._window.close()

    def grant(self, credit: Credit) -> None:
        """Lets a stream go on."""
        if self._window is not None:
            self._window.grant(credit)

    def wait_for_credit(self, outputs: Sequence[Tensor]) -> None:
        """Blocks until a response that is not the last one may be sent.

        Raises:
            Cancelled: If nobody waits any more.
            Internal: If the model is not decoupled.
        """
        if self._window is None:
            raise Internal("the model answered more than once, and its configuration does not call it decoupled")
        self._window.take(sum(memoryview(tensor.data).nbytes for tensor in outputs))

    def emit(self, outputs: Sequence[Tensor]) -> None:
        """Sends a response ahead of the last one, for which there must be credit."""
        self._leave_if_forked()
        with self._lock:
            if not self._is_over:
                self._link.send(response_buffers(self.number, outputs, self.handle.times(), self._sent, False))
                self._sent += 1

    def end(self, outputs: Sequence[Tensor] = ()) -> None:
        """Sends the last response; without outputs it only ends the stream."""
        self._finish(lambda: response_buffers(self.number, outputs, self.handle.times(), self._sent))

    def fail(self, error: BaseException, root: str = "") -> None:
        """Sends an error.

        Args:
            error: What was raised.
            root: The model's folder, which texts do not show.
        """
        self._leave_if_forked()
        failure: RoostError = run_error(error, root)
        self._finish(partial(_as_frame, self.number, failure))

    def _finish(self, answer: Callable[[], list[Buffer]]) -> None:
        self._leave_if_forked()
        with self._lock:
            if self._is_over:
                return
            buffers = answer()  # an answer that no frame can be made of is none: there can be another
            self._is_over = True
            self._ended(self.number)  # before the worker, which may send the next one at once
            self._link.send(buffers)

    def _leave_if_forked(self) -> None:
        """A model may fork; what comes back from its code in the copy is no answer."""
        if os.getpid() != self._pid:
            os._exit(0)


def _as_frame(number: int, error: RoostError) -> list[Buffer]:
    return [error_frame(number, error.code, error.message)]

"""Runs: a queue, a fixed number of threads that work it off, and the cancellation of what is in either."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from roost.core.errors import Cancelled, Code, DeadlineExceeded, Internal, Unimplemented
from roost.core.frames import (
    Credit,
    FrameType,
    Region,
    Response,
    Run,
    StepTimes,
    WireTensor,
    control_frame,
    error_frame,
    response_frame,
)
from roost.core.tensors import Buffer, Tensor
from roost.runtimes.credit import CreditWindow
from roost.runtimes.failures import failure_frame
from roost.runtimes.instances import Instance, InstanceTable
from roost.runtimes.link import Link
from roost.runtimes.protocol import NOT_LOADED, RunHandle

_NOT_DECOUPLED = "the model did not answer exactly once, and its configuration does not call it decoupled"


@dataclass(slots=True)
class _Job:
    request: int
    run: Run
    instance: Instance
    handle: RunHandle
    window: CreditWindow | None  # None: the model is not decoupled


class RunPool:
    """Runs batches on ``slots`` threads and answers every RUN with exactly one last frame.

    The queue has no bound of its own: the router sends what free slots can take, and little more.
    """

    def __init__(self, link: Link, instances: InstanceTable, slots: int) -> None:
        self._link = link
        self._instances = instances
        self._queue: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._threads = [threading.Thread(target=self._work, name=f"run-{i}", daemon=True) for i in range(slots)]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: int, run: Run) -> None:
        """Queues a run; from now on it keeps its instance. One without an instance is answered at once."""
        instance = self._instances.hold(run.instance)
        if instance is None:
            self._link.send([error_frame(request, Code.FAILED_PRECONDITION, NOT_LOADED)])
            return
        window = CreditWindow(run.credit) if run.credit is not None else None
        emit = _refuse if window is None else partial(self._emit, request, window)
        job = _Job(request, run, instance, RunHandle(run.parameters, run.deadline_ns, emit), window)
        self._jobs[request] = job
        self._queue.put(job)

    def cancel(self, request: int) -> bool:
        """Cancels a run that is queued or running; whether there is one."""
        job = self._jobs.get(request)
        if job is None:
            return False
        job.handle.cancel()
        if job.window is not None:
            job.window.close()
        return True

    def grant(self, request: int, credit: Credit) -> None:
        """Lets a stream go on; one that has ended meanwhile is fine."""
        job = self._jobs.get(request)
        if job is not None and job.window is not None:
            job.window.grant(credit)

    def running(self) -> int:
        """How many runs are queued or running."""
        return len(self._jobs)

    def _work(self) -> None:
        while True:
            # No local name: an idle thread must not keep the last batch or its model alive.
            self._finish(self._queue.get())

    def _finish(self, job: _Job) -> None:
        try:
            reply = self._answer(job)
        except (Exception, SystemExit) as error:
            reply = [failure_frame(job.request, error, "the run")]
        self._jobs.pop(job.request, None)
        try:
            self._link.send(reply)
        finally:
            self._instances.let_go(job.instance)

    def _answer(self, job: _Job) -> list[Buffer]:
        handle = job.handle
        handle.begin()
        if handle.cancelled:
            raise Cancelled("the run was cancelled")
        if handle.deadline_ns and time.monotonic_ns() >= handle.deadline_ns:
            raise DeadlineExceeded("the deadline passed before the run began")
        inputs = [_tensor_of(tensor) for tensor in job.run.inputs]
        self._link.send([control_frame(FrameType.STARTED, job.request)])
        outputs = job.instance.model.run(inputs, job.run.outputs, handle)
        if handle.cancelled:
            raise Cancelled("the run was cancelled")
        if job.window is None and (handle.emitted or not outputs):  # even if the model took no notice of the refusal
            raise Internal(_NOT_DECOUPLED)
        return response_frame(job.request, Response(_wire(outputs), handle.emitted, True, handle.times()))

    def _emit(
        self, request: int, window: CreditWindow, outputs: Sequence[Tensor], sequence: int, times: StepTimes
    ) -> None:
        window.take(sum(memoryview(tensor.data).nbytes for tensor in outputs))
        self._link.send(response_frame(request, Response(_wire(outputs), sequence, False, times)))


def _refuse(outputs: Sequence[Tensor], sequence: int, times: StepTimes) -> None:
    raise Internal(_NOT_DECOUPLED)


def _tensor_of(tensor: WireTensor) -> Tensor:
    if isinstance(tensor.data, Region):
        raise Unimplemented("this worker takes no tensors in shared memory")
    return Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def _wire(outputs: Sequence[Tensor]) -> list[WireTensor]:
    return [WireTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in outputs]

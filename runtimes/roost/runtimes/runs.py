"""Runs: what one run does, the threads that work off those that take long, and the cancellation of either."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from roost.core.arena import RUNNING_THREADS, RunningTable
from roost.core.errors import Cancelled, Code, DeadlineExceeded, Internal
from roost.core.frames import Credit, Run, StepTimes, error_frame, instance_of, parse_run, response_buffers
from roost.core.tensors import Buffer, Tensor
from roost.runtimes.child import COPIED
from roost.runtimes.credit import CreditWindow
from roost.runtimes.failures import failure_frame
from roost.runtimes.instances import Instance, InstanceTable
from roost.runtimes.link import Frame, Link
from roost.runtimes.protocol import NOT_LOADED, RunHandle
from roost.runtimes.shared import Shared

READING_THREADS = 2
"""The threads that take turns reading the link; the first rows of the running table are theirs."""

_QUICK_NS = 2_000_000
_QUICK_BESIDE_OTHERS_NS = 500_000
_NOT_DECOUPLED = "the model did not answer exactly once, and its configuration does not call it decoupled"


@dataclass(slots=True)
class Job:
    """A run on its way."""

    request: int
    run: Run
    instance: Instance
    handle: RunHandle
    window: CreditWindow | None  # None: the model is not decoupled


class Runs:
    """Answers every RUN with exactly one last frame.

    A quick one is run by the thread that has read it, as handing it to another would take longer; the others by
    ``slots`` threads. Their queue has no bound of its own: the router sends what free slots can take, and little more.

    Args:
        link: The link to the router.
        instances: The loaded models.
        shared: The memory that the router shares.
        slots: How many runs, quick ones aside, go on at a time.
        threads: How many threads one run may use, the worker's share of the CPUs.

    Attributes:
        quick_ns: A run that takes longer is slow.
    """

    def __init__(self, link: Link, instances: InstanceTable, shared: Shared, slots: int, threads: int) -> None:
        self._link = link
        self._instances = instances
        self._shared = shared
        self._running: RunningTable = shared.running
        # With CPUs to spare, several runs are better done at once than one behind the other.
        self.quick_ns = _QUICK_NS if threads == 1 else _QUICK_BESIDE_OTHERS_NS
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(READING_THREADS + i,), name=f"run-{i}", daemon=True)
            for i in range(min(slots, RUNNING_THREADS - READING_THREADS))  # others would run unseen
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def quick(self, frame: Frame) -> Job | None:
        """The run of a frame if it can be expected to take less time than handing it over is worth.

        Its instance is not held: nobody can remove it while the thread that reads the link is busy with this run.
        """
        instance = self._instances.get(instance_of(frame.payload))
        # One whose instance is busy waits behind the other runs, so that they begin in order.
        if instance is None or instance.unfinished or not instance.is_quick:
            return None
        run = parse_run(frame.payload)
        if run.credit is not None:
            return None
        return Job(frame.header.request, run, instance, RunHandle(run.parameters, run.deadline_ns, _refuse), None)

    def adopt(self, job: Job) -> None:
        """Takes care of a quick run that takes long: it holds its instance and can be cancelled; ``end`` follows."""
        self._instances.hold_also(job.instance)
        self._jobs[job.request] = job

    def submit(self, frame: Frame) -> None:
        """Queues a run; from now on it keeps its instance. One without an instance is answered at once."""
        request = frame.header.request
        run = parse_run(frame.keep())
        instance = self._instances.hold(run.instance)
        if instance is None:
            self._link.send([error_frame(request, Code.FAILED_PRECONDITION, NOT_LOADED)])
            return
        window = CreditWindow(run.credit) if run.credit is not None else None
        emit = _refuse if window is None else partial(self._emit, request, window)
        job = Job(request, run, instance, RunHandle(run.parameters, run.deadline_ns, emit), window)
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

    def answer(self, job: Job, thread: int) -> list[Buffer]:
        """Runs a job.

        Args:
            job: The job.
            thread: The calling thread's row in the running table.

        Returns:
            The frame that answers it, an error if it failed.
        """
        try:
            return self._answer(job, thread)
        except BaseException as error:  # whatever a model has raised: somebody waits for an answer
            if COPIED:
                os._exit(0)
            return [failure_frame(job.request, error, "the run")]

    def end(self, job: Job, reply: Sequence[Buffer]) -> None:
        """Answers a job that was queued or adopted."""
        self._jobs.pop(job.request, None)
        self._instances.finish(job.instance)  # the next one may come as soon as this one is answered
        try:
            self._link.send(reply)
        finally:
            self._instances.let_go(job.instance)

    def _work(self, thread: int) -> None:
        while True:
            # No local name: an idle thread must not keep the last batch or its model alive.
            self._finish(self._queue.get(), thread)

    def _finish(self, job: Job, thread: int) -> None:
        self.end(job, self.answer(job, thread))

    def _answer(self, job: Job, thread: int) -> list[Buffer]:
        handle, run = job.handle, job.run
        began_ns = handle.begin()
        if handle.cancelled:
            raise Cancelled("the run was cancelled")
        if handle.deadline_ns and began_ns >= handle.deadline_ns:
            raise DeadlineExceeded("the deadline passed before the run began")
        inputs = self._shared.tensors(run.inputs)
        if run.places:
            handle.places = self._shared.places(run.places)
        self._running[thread] = job.request
        outputs = job.instance.model.run(inputs, run.outputs, handle)
        if COPIED:
            os._exit(0)
        if handle.cancelled:
            raise Cancelled("the run was cancelled")
        if job.window is None and (handle.emitted or not outputs):  # even if the model took no notice of the refusal
            raise Internal(_NOT_DECOUPLED)
        wire = self._shared.placed(outputs, run.places, handle.places) if run.places else outputs
        times = handle.times()
        if job.window is None:
            job.instance.ran(times.output_end - began_ns, self.quick_ns)
        return response_buffers(job.request, wire, times, handle.emitted)

    def _emit(
        self, request: int, window: CreditWindow, outputs: Sequence[Tensor], sequence: int, times: StepTimes
    ) -> None:
        window.take(sum(memoryview(tensor.data).nbytes for tensor in outputs))
        self._link.send(response_buffers(request, outputs, times, sequence, False))


def _refuse(outputs: Sequence[Tensor], sequence: int, times: StepTimes) -> None:
    raise Internal(_NOT_DECOUPLED)

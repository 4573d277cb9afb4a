"""Worker processes: started, watched and restarted with backoff. What runs on them is the mesh's business."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from roost.core.errors import RoostError
from roost.core.frames import Call, Response
from roost.router.accounts import DeviceAccount, Process
from roost.router.admission import ByteBudget
from roost.router.drift import WorkerMemory
from roost.router.ends import Backoff, End, end_of
from roost.router.link import Link
from roost.router.pending import Batch
from roost.router.process import Launch, WorkerProcess, WorkerSpec
from roost.router.revision import Instance, Revision
from roost.router.states import InstanceState
from roost.runtimes.child import signal_name

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
LAST_WORDS_S = 1.0
"""So long after its end what a process has sent may take to be read."""

OFF = "off"
"""The state of a worker that has no process, as nothing needs its kind now."""

SHORT_S = 0.002
"""Runs that take no longer together may wait in a worker, where they can't be ordered any more."""
MAX_RUNS = 16
AN_INSTANT_S = 0.0001
"""A run that is not over will take so long at least."""


class WorkerEvents(Protocol):
    """The mesh, as its workers see it."""

    def worker_up(self, worker: Worker) -> None:
        """It takes instances and runs now."""

    def worker_lost(self, worker: Worker) -> None:
        """It takes nothing any more; its requests want an answer. Its memory is still taken."""

    def worker_reaped(self, worker: Worker, end: End) -> None:
        """Its process has ended, and its memory is free."""

    def run_answered(self, worker: Worker, run: int, response: Response) -> None:
        """A run has a response, the last one or one of a stream."""

    def run_failed(self, worker: Worker, run: int, error: Exception) -> None:
        """A run has failed."""

    def response_refused(self, worker: Worker, run: int, error: RoostError) -> None:
        """There was no memory for a response of a stream, which goes on."""

    def model_called(self, worker: Worker, number: int, call: Call | None) -> None:
        """A model asks another one; None: it does not wait for the answer any more."""


@dataclass(eq=False)
class Worker:
    """One place in the mesh for a worker process; the process may be replaced, then the epoch grows.

    Attributes:
        id: Its number on this node.
        spec: How its processes are started.
        events: Who is told.
        launch: Starts them.
        answers: What large answers are charged to.
        instances: What is loaded on the present process, by id.
        runs: Batches under way, by run number.
        backlog_s: How long those were expected to take, all together.
        waiting: Revisions that have requests and an instance here, but found no free slot: first come first served.
        labels: What models may require or prefer.
        turn_at: When the first of the batches under way began, as far as the router can tell.
        busy_s: For how long there was a batch under way, up to then.
        busy_share: For which share of the last seconds there was one.
        account: What its instances are accounted with, those included that are to be loaded here; the ledger's.
        gpu_account: What is taken of the GPU that it uses, by all who do; None if it uses none.
        memory: What is known of what its process takes.
        recycling: Whether it gets nothing new, since its process is to be replaced once what it has is done.
        base_bytes: The memory that its process had when it was up, what it shares with others in part; 0 if it is of
            the kind that is always there.
        started_bytes: The same with all that it shares.
        gpu_runtimes: The runtimes that can use its GPU, as its process said last; None if none has said it yet.
        reaped: Gets why its process has ended, once it has; a new one for each process.
        blamed: What its process was ended for, if that is known.
    """

    id: int
    spec: WorkerSpec
    events: WorkerEvents
    launch: Launch
    answers: ByteBudget
    epoch: int = 0
    pid: int = 0
    restarts: int = 0
    state: str = "starting"
    link: Link | None = None
    instances: dict[int, Instance] = field(default_factory=dict)
    runs: dict[int, Batch] = field(default_factory=dict)
    backlog_s: float = 0.0
    waiting: dict[Revision, None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    turn_at: float = 0.0
    busy_s: float = 0.0
    busy_share: float = 0.0
    account: Process = field(default_factory=Process)
    gpu_account: DeviceAccount | None = None
    memory: WorkerMemory = field(default_factory=WorkerMemory)
    recycling: bool = False
    base_bytes: int = 0
    started_bytes: int = 0
    gpu_runtimes: frozenset[str] | None = None
    reaped: asyncio.Future[End] | None = None
    blamed: Revision | None = None
    _hello: asyncio.Future[bool] | None = None
    _lost: asyncio.Event = field(default_factory=asyncio.Event)
    _process: WorkerProcess | None = None
    _ended_for: End | None = None
    _up_at: float = math.inf
    _lost_link: Link | None = None
    _had_work: bool = False

    @property
    def up(self) -> bool:
        """Whether it takes instances and runs."""
        return self.state == "up"

    @property
    def has_slot(self) -> bool:
        """Whether it would begin with another run at once."""
        return len(self.runs) < self.spec.slots and not self.recycling

    def takes(self, run_s: float, now: float) -> bool:
        """Whether it may have another run that is expected to take so long.

        Those that are over in an instant may wait in the worker: it does not have to be woken for each of them then.
        But not behind runs that should be over and are not.
        """
        if self.has_slot:
            return True
        if self.recycling or len(self.runs) >= MAX_RUNS or self.backlog_s + run_s > SHORT_S:
            return False
        oldest = next(iter(self.runs.values()))
        return now - oldest.sent <= SHORT_S

    def wait_s(self, now: float) -> float:
        """How long the batches that it has will keep it busy, as far as that was predicted.

        One that is late by some time is expected to take that long again: so a worker that hangs is avoided more and
        more, and one whose batch took a little longer is not.
        """
        runs = self.runs
        return max(abs(self.backlog_s - (now - self.turn_at)), AN_INSTANT_S * len(runs)) if runs else 0.0

    async def keep_running(self) -> None:
        """Starts the process, and again whenever it ends, until cancelled; then ends it."""
        backoff, end, first = Backoff(), End.EXITED, self.epoch + 1
        for self.epoch in itertools.count(first):
            self._up_at = math.inf
            try:
                await self._run_once()
            except OSError as error:  # no process, descriptor or memory to be had: later there may be
                log.error("worker %d can't be started: %s", self.id, error)
            finally:
                try:
                    end = await self._end()
                except asyncio.CancelledError:  # the stop came meanwhile: a process that was begun with is waited for
                    await self._end()
                    raise
            backoff_s = backoff.after(max(0.0, time.monotonic() - self._up_at), end, had_work=self._had_work)
            self.restarts += 1
            log.warning("worker %d ended and is started again in %.1f s", self.id, backoff_s)
            if backoff_s:
                await asyncio.sleep(backoff_s)

    def kill(self, reason: End = End.GIVEN_UP, blamed: Revision | None = None) -> None:
        """Ends the process at once, because it does not do what it has to, or because of what a model does there."""
        if self._process is not None:
            self._ended_for = self._ended_for or reason
            self.blamed = self.blamed or blamed
            self._process.kill()

    async def _run_once(self) -> None:
        self.state, self._ended_for, self.blamed, self._had_work = "starting", None, None, False
        self._lost.clear()
        self.reaped = asyncio.get_running_loop().create_future()
        hello = self._hello = asyncio.get_running_loop().create_future()
        process = self._process = await self.launch(self.spec, self.id, self.epoch, self)
        self.pid, self.link = process.pid, process.link
        if self._lost_link is self.link:  # it has ended before anybody knew of it
            self._lose()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                said_hello = await hello
        except TimeoutError:
            log.error("worker %d did not start within %.0f s", self.id, START_TIMEOUT_S)
            self.gpu_runtimes = frozenset()
            return
        if not said_hello:
            log.error("worker %d ended before it was up", self.id)
            self.gpu_runtimes = frozenset()  # until one says something else
            return
        self.state, self._up_at = "up", time.monotonic()
        self.events.worker_up(self)
        async with asyncio.TaskGroup() as group:
            watching = (self._watch(process.link), self._watch_stop(process), self._watch_end(process))
            watches = [group.create_task(watch) for watch in watching]
            await self._lost.wait()
            for watch in watches:
                watch.cancel()

    async def _watch(self, link: Link) -> None:
        """Ends a process that does not answer, unless it loads: that may keep it busy, and has a timeout of its own."""
        while True:
            await link.hung()
            if not any(instance.state is InstanceState.LOADING for instance in self.instances.values()):
                break
        log.error("worker %d does not answer: it is ended", self.id)
        self.kill(End.HUNG)

    async def _watch_stop(self, process: WorkerProcess) -> None:
        """Ends a process that was stopped: whatever it is busy with, it will not get on with it."""
        await process.stopped()
        log.error("worker %d was stopped by a signal and does not answer: it is ended", self.id)
        self.kill(End.STOPPED)

    async def _watch_end(self, process: WorkerProcess) -> None:
        """Closes the link of a process that has ended: what it has forked may keep the other end open."""
        await process.wait()
        await asyncio.sleep(LAST_WORDS_S)
        process.link.abort()

    async def _end(self) -> End:
        """Makes sure that the process has ended and everybody who waits for it knows; says why it has."""
        if self.link is not None:
            self.link.abort()
        process, end = self._process, End.EXITED
        if process is not None:
            if self._lost.is_set():
                process.kill()  # one that lost its link is of no use, and must not keep memory
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    code = await process.wait()
            except TimeoutError:
                process.kill()
                code = await process.wait()
            end = end_of(code, self._ended_for, ran_out_of_memory=process.ran_out_of_memory())
            log.info("worker %d (process %d) ended: %s", self.id, self.pid, _cause(code, end))
        self._lose()
        self._process = self.link = self._lost_link = None
        self.pid = 0
        if self.reaped is not None and not self.reaped.done():
            self.reaped.set_result(end)
        self.events.worker_reaped(self, end)
        return end

    def on_hello(self, hello: dict[str, Any]) -> None:
        """See ``LinkListener``."""
        log.info(
            "worker %d is up: process %s, runtimes %s",
            self.id,
            hello.get("pid"),
            ", ".join(hello.get("runtimes", [])),
        )
        self.base_bytes = int(hello.get("base_bytes", 0))
        self.started_bytes = int(hello.get("private_bytes", 0))
        self.gpu_runtimes = frozenset(hello.get("gpu_runtimes", ()))
        if self._hello is not None and not self._hello.done():
            self._hello.set_result(True)

    def on_response(self, run: int, response: Response) -> None:
        """See ``LinkListener``."""
        self.events.run_answered(self, run, response)

    def on_run_error(self, run: int, error: Exception) -> None:
        """See ``LinkListener``."""
        self.events.run_failed(self, run, error)

    def on_response_refused(self, run: int, error: RoostError) -> None:
        """See ``LinkListener``."""
        self.events.response_refused(self, run, error)

    def on_call(self, number: int, call: Call | None) -> None:
        """See ``LinkListener``."""
        self.events.model_called(self, number, call)

    def on_lost(self, link: Link) -> None:
        """See ``LinkListener``."""
        if link is self.link:  # else it is the link of a process before this one, or of one that is being started
            self._lose()
        else:
            self._lost_link = link

    def _lose(self) -> None:
        if self.state == "down":
            return
        was_up = self.up
        self._had_work = bool(self.runs) or any(i.state is InstanceState.LOADING for i in self.instances.values())
        self.state = "down"
        self.recycling = False
        self._lost.set()
        if self._hello is not None and not self._hello.done():
            self._hello.set_result(False)
        if was_up:
            self.events.worker_lost(self)


def _cause(code: int, end: End) -> str:
    cause = f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"
    return f"{cause}, as memory has run out" if end is End.OUT_OF_MEMORY else cause

"""Who reads the link: a thread that also does the quick runs, and another that takes over when one takes long.

Handing a run of some microseconds to another thread takes several times as long as the run. So the thread that has
read it runs it, and reads no further meanwhile: no PING, CANCEL or LOAD. A second thread *watches* it, and takes the
reading over if a run lasts after all; the first one becomes the watch when that run has ended.

The watch looks every ``_ROUND_S`` while there are quick runs, and sleeps for good when there have been none for a
while: an idle worker has no timers. A quick run pays for being watched with two operations on a list, which the
interpreter does not interrupt; whoever takes the run out of the list has the reading role.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from roost.core.frames import FrameType, Header
from roost.core.tensors import Buffer
from roost.runtimes.link import Frame, Link
from roost.runtimes.runs import READING_THREADS, Job, Runs

_ROUND_S = 0.01
_QUIET_ROUNDS = 100
_MAX_UNSENT_NS = 200_000
"""What a response waits at most for the runs that came with its own, to be sent with theirs."""


class Reading:
    """Reads the link to its end.

    Args:
        link: The link.
        runs: Takes RUN frames.
        control: Takes frames of all other types, and has to return at once.
    """

    def __init__(self, link: Link, runs: Runs, control: Callable[[Header, memoryview], None]) -> None:
        self._link = link
        self._runs = runs
        self._control = control
        self._unsent: list[Buffer] = []
        self._unsent_since_ns = 0
        self._quick: list[Job] = []  # the quick run that goes on; none while the thread reads
        self._last = 0  # the last quick run
        self._has_watch = True  # a thread stands by
        self._is_watched = False  # and looks
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Begins to read, in threads.

        Raises:
            RuntimeError: If there are none to be had.
        """
        for index in range(READING_THREADS):
            threading.Thread(target=self._work, args=(index,), name=f"read-{index}", daemon=True).start()

    def wait(self) -> None:
        """Returns when the router has closed the link.

        Raises:
            FrameError: If what comes over the link are not frames.
        """
        self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def _work(self, thread: int) -> None:
        try:
            if thread:
                self._watch()
            while not self._read(thread):
                self._watch()
        except BaseException as error:  # whatever it is, the worker ends with it
            self._failure = error
        self._ended.set()

    def _read(self, thread: int) -> bool:
        """Reads until the link ends (True), or the other thread has taken over (False)."""
        while True:
            frame = self._link.take()
            if frame is None:  # so a thread that waits does not keep the last batch or its model alive
                self._send_unsent()
                if not self._link.fill_or_refuse():
                    return True
            elif frame.header.type is FrameType.RUN:
                if not self._run(frame, thread):
                    return False
            else:
                self._send_unsent()
                self._control(frame.header, frame.payload)

    def _run(self, frame: Frame, thread: int) -> bool:
        """Does a quick run, or hands it over; False if it was not quick, and the other thread reads now."""
        job = self._runs.quick(frame) if self._has_watch else None
        if job is None:
            self._send_unsent()
            self._runs.submit(frame)
            return True
        if self._unsent:
            self._send_unsent(unless_done_by_ns=self._unsent_since_ns + _MAX_UNSENT_NS - job.instance.last_ns)
        self._last = job.request
        self._quick.append(job)
        if not self._is_watched:
            self._is_watched = True
            self._wake.set()
        reply = self._runs.answer(job, thread)
        try:
            self._quick.pop()
        except IndexError:
            self._runs.end(job, reply)
            return False
        if not self._unsent:
            self._unsent_since_ns = time.monotonic_ns()
        self._unsent += reply
        return True

    def _send_unsent(self, unless_done_by_ns: int = 0) -> None:
        """Sends what quick runs have answered, unless there is time until then."""
        if self._unsent and time.monotonic_ns() >= unless_done_by_ns:
            unsent, self._unsent = self._unsent, []
            self._link.send(unsent)

    def _watch(self) -> None:
        """Returns when this thread has taken over the reading."""
        self._is_watched = False
        self._has_watch = True
        job = None
        while job is None:
            self._wake.wait()
            self._wake.clear()
            job = self._look()
        # What the run looks at stays as it is. It is found from now on, before anything else is read.
        self._link.detach()
        self._runs.adopt(job)
        self._send_unsent()

    def _look(self) -> Job | None:
        """Looks at the quick runs, takes the one that lasts longer than a round, and ends when there are none."""
        quiet_rounds = 0
        while True:
            last = self._last
            time.sleep(_ROUND_S)
            if self._last != last:
                quiet_rounds = 0
            elif self._quick:
                # In this order: the other thread may come to watch as soon as it has lost its run.
                self._has_watch = False
                try:
                    return self._quick.pop()
                except IndexError:
                    self._has_watch = True
            elif quiet_rounds < _QUIET_ROUNDS:
                quiet_rounds += 1
            else:
                self._is_watched = False
                if not self._quick:  # else it began before it could see that nobody looks
                    return None
                self._is_watched = True

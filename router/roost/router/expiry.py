"""Steps 4 to 7 of the data path: requests end when their time is over, whether they wait or run."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable

from roost.core.errors import DeadlineExceeded, Limit
from roost.router.deadlines import Deadlines
from roost.router.pending import Pending
from roost.router.queues import Queues
from roost.router.revision import Revision
from roost.router.runs import Runs


class Expiry:
    """See the module. One timer is enough for all requests of all revisions.

    Args:
        queues: Where requests wait.
        runs: Where they run.
    """

    def __init__(self, queues: Queues, runs: Runs) -> None:
        self._queues = queues
        self._runs = runs
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, revision: Revision, due: float) -> None:
        """Has a revision's requests looked at when that time has come."""
        if self._deadlines.watch(revision, due):
            if self._timer is not None:
                self._timer.cancel()
            self._arm()

    def forget(self, revision: Revision) -> None:
        """A revision has no requests any more and never will."""
        self._deadlines.forget(revision)

    def _arm(self) -> None:
        next_s = self._deadlines.next_s()
        self._timer = None
        if next_s < math.inf:
            self._timer = self._loop.call_later(max(0.0, next_s - time.monotonic()), self._deadlines_came)

    def _deadlines_came(self) -> None:
        now = time.monotonic()
        self._timer = None
        for revision in self._deadlines.due(now):
            assert isinstance(revision, Revision)
            self._expire(revision, now)
        if self._timer is None:
            self._arm()

    def _expire(self, revision: Revision, now: float) -> None:
        """Ends what can't be answered in time, and looks when to do so next."""
        was_resident = revision.resident()
        overdue = self._overdue(revision, now)
        next_s = min((last_moment(pending, now) for pending in _first_of(revision)), default=math.inf)
        running, runs_next_s = _overdue_in_runs(revision, now)
        next_s = min(next_s, runs_next_s)
        if next_s < math.inf:
            self.watch(revision, max(next_s, now))
        for pending in overdue:
            self._runs.settle(pending, too_late(pending, "it waited" if was_resident else "its model was loading"))
        for pending in running:
            text = "Request timeout expired while it was running"
            self._runs.settle(pending, DeadlineExceeded(text, limit=Limit.RUN_DEADLINE))
            self._runs.leave(pending)

    def _overdue(self, revision: Revision, now: float) -> list[Pending]:
        """Takes out what has waited too long; puts behind the others what may wait on."""
        overdue: list[Pending] = []
        for pending in list(revision.queue):
            if last_moment(pending, now) > now:
                if revision.policy.is_plain:
                    break  # all behind it have more time
                continue
            self._queues.remove(pending)
            policy = revision.policy.policy_of(pending.level)
            if policy is not None and policy.delays and pending.lane % 2 == 0 and pending.deadline > now:
                pending.lane += 1
                pending.leave_by = pending.deadline
                self._queues.put(pending)
            else:
                overdue.append(pending)
        return overdue


def last_moment(pending: Pending, now: float) -> float:
    """When a request that waits has to go to its run at the latest."""
    revision, pace = pending.revision, pending.revision.pace
    run_s = pace.estimate(pending.rows) * revision.caution(now) if pace.is_known(now) else 0.0
    return min(pending.leave_by, pending.deadline - run_s)


def too_late(pending: Pending, where: str = "it waited") -> DeadlineExceeded:
    """What is said of a request that could not be answered in time."""
    return DeadlineExceeded(f"Request timeout expired while {where}", limit=Limit.DEADLINE)


def _overdue_in_runs(revision: Revision, now: float) -> tuple[list[Pending], float]:
    """Requests that were sent and whose time is over, and when that of the next one is."""
    overdue: list[Pending] = []
    next_s = math.inf
    for instance in revision.instances:
        for batch in instance.runs:
            if batch.deadline <= now:
                overdue += [pending for pending in batch.requests if not pending.settled and pending.deadline <= now]
                left = [p.deadline for p in batch.requests if not p.settled and p.deadline > now]
                batch.deadline = min(left, default=math.inf)
            next_s = min(next_s, batch.deadline)
    for pending in revision.in_order or ():
        if pending.outcome is not None:  # its run is over, but it waits for those before it
            if pending.deadline <= now:
                overdue.append(pending)
            else:
                next_s = min(next_s, pending.deadline)
    return overdue, next_s


def _first_of(revision: Revision) -> Iterable[Pending]:
    """Those of a queue among which the one is that has to go first."""
    return revision.queue[:1] if revision.policy.is_plain else revision.queue

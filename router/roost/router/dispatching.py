"""Steps 4 to 6 of the data path, the shell around ``batching.plan``: requests wait, form batches and go, or expire.

All of it runs in callbacks of the event loop. What comes in one turn of it is looked at once, at its end: so requests
that arrive together share their first batch, and nothing waits for anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from roost.core.errors import DeadlineExceeded, RoostError
from roost.core.requests import Done, InferRequest
from roost.router.batching import Dispatch, WaitUntil, plan
from roost.router.choosing import free_instance, is_short
from roost.router.expiry import Expiry, last_moment, too_late
from roost.router.intake import Taken
from roost.router.limiting import Limiting
from roost.router.pace import Cautious
from roost.router.pending import Pending
from roost.router.queues import Queues
from roost.router.rate_limits import RateLimiter
from roost.router.revision import Revision
from roost.router.runs import Runs
from roost.router.states import READY
from roost.router.stats import ModelStats, Stats
from roost.router.streams import ResponseStream
from roost.router.worker import Worker


class Dispatcher:
    """See the module.

    Args:
        queues: Where requests wait.
        runs: Where they go.
        stats: Has the counters of versions.
        wanted: Called for a revision that has requests, but no instance.
        left: Called for a revision whose queue is empty.
        limiter: Knows the resources that runs share; None for none.

    Attributes:
        contended: Revisions whose requests found none of their loaded copies free, since somebody emptied this.
        limiting: Runs that hold resources.
    """

    def __init__(
        self,
        queues: Queues,
        runs: Runs,
        stats: Stats,
        wanted: Callable[[Revision], object],
        left: Callable[[Revision], None],
        limiter: RateLimiter | None = None,
    ) -> None:
        self._queues = queues
        self._runs = runs
        self._stats = stats
        self._wanted = wanted
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._soon: list[Revision] = []
        self.contended: dict[Revision, None] = {}
        self.limiting = Limiting(limiter, self.pump)
        queues.when_left = self.limiting.left
        self._expiry = Expiry(queues, runs)

    def begin_use(self, revision: Revision) -> None:
        """A revision gets its first request: what is said of its version starts anew."""
        revision.used = True
        self._count(revision).restart()

    def _count(self, revision: Revision) -> ModelStats:
        counters = self._stats.of(revision.key.name, revision.key.version)
        revision.count_with(counters)
        return counters

    def submit(
        self,
        revision: Revision,
        request: InferRequest,
        done: Done,
        taken: Taken,
        *,
        stream: ResponseStream | None = None,
        recorded: bool = False,
    ) -> Pending:
        """Takes a checked request into its revision's queue.

        Args:
            revision: What it is for.
            request: The request.
            done: Gets the last response or an error, exactly once, but not if the request is cancelled.
            taken: What batching has to know of it.
            stream: Gets the responses before, if the revision is decoupled.
            recorded: Whether the end of the request is to be counted here.

        Raises:
            ResourceExhausted: If the queue is full.
            DeadlineExceeded: If the request came too late, or too many wait before it.
        """
        now = time.monotonic()
        context = request.context
        is_plain = revision.policy.is_plain
        if is_plain and now >= context.deadline:
            raise DeadlineExceeded("the deadline passed before the request was queued")
        if revision.counters is None:
            self._count(revision)
        queues = self._queues
        if not queues.has_room(revision, taken[2]):
            self._pump_soon()  # some of those that came in this turn need not wait
            queues.admit(revision, taken[2])
        pending = Pending(self, revision, request, done, taken, now, stream, recorded)
        if not is_plain:
            queues.apply_policy(pending, now)
        if revision.queued_rows:
            queues.refuse_hopeless(pending, now)
        if not context.queued:
            context.queued = now
        queues.put(pending)
        if revision.in_order is not None:
            revision.in_order.append(pending)
        if pending.leave_by - 2 * revision.pace.single_s < revision.look_at:
            self._expiry.watch(revision, last_moment(pending, now))
        if not revision.pumping:
            self._pump_at_end_of_turn(revision)
        return pending

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for the request any more: it leaves the queue, or its run is told to end."""
        if not self._runs.drop(pending):
            return
        if pending.batch is None:
            self._queues.remove(pending)
        else:
            self._runs.leave(pending)

    def fail_all(
        self, revision: Revision, error: RoostError, instead: Callable[[Pending, RoostError], None] | None = None
    ) -> None:
        """Fails all that waits, or hands those over ``instead`` whose end is recorded here."""
        requests = self._queues.take(revision, len(revision.queue))
        self._emptied(revision, time.monotonic())
        if instead is not None:
            for pending in requests:
                if pending.recorded:
                    instead(pending, error)
            requests = [pending for pending in requests if not pending.recorded]
        self._runs.settle_all(requests, error)

    def refuse_late(self, revision: Revision, until: float, refusal: RoostError) -> bool:
        """Refuses what waits and can't wait until a time; returns whether there was any."""
        late = [pending for pending in revision.queue if pending.deadline < until]
        for pending in late:
            self._queues.remove(pending)
        self._runs.settle_all(late, refusal)
        return bool(late)

    def forget(self, revision: Revision) -> None:
        """A revision is of no use to anybody any more."""
        self._expiry.forget(revision)
        self.limiting.forget(revision)

    def again(self, requests: Sequence[Pending]) -> None:
        """Requests that were sent wait again, in front of others that are due at the same time."""
        for pending in requests:
            pending.batch = None
        self._queues.put_back(requests)

    def _pump_at_end_of_turn(self, revision: Revision) -> None:
        revision.pumping = True
        if not self._soon:
            self._loop.call_soon(self._pump_soon)
        self._soon.append(revision)

    def _pump_soon(self) -> None:
        soon, self._soon = self._soon, []
        for revision in soon:
            revision.pumping = False  # of all first: were one to fail, the others would wait for ever
        for revision in soon:
            if revision.queue:
                self.pump(revision)

    def pump(self, revision: Revision, *, once: bool = False) -> None:
        """Sends what can be sent of a queue; what can't waits for a slot, a turn or a load."""
        queue, queues, now = revision.queue, self._queues, time.monotonic()
        late: list[Pending] = []
        is_limited, has_turn = revision.demand is not None, True
        while queue:
            instance = free_instance(revision, now)
            pace = Cautious(revision.pace, revision.caution(now)) if revision.pace.is_known(now) else None
            decision = plan(queue, now, 0 if instance is None else 1, revision.limits, pace)
            if decision.late:
                late += queues.take(revision, decision.late)
            if type(decision) is Dispatch and instance is not None:
                if is_limited and not self.limiting.admit(revision, instance):
                    has_turn = False
                    break
                batch = self._runs.begin(instance, queues.take(revision, decision.requests), now)
                if is_limited:
                    self.limiting.began(batch)
                if batch.deadline < revision.look_at:
                    self._expiry.watch(revision, batch.deadline)
                if once:
                    break
                continue
            if type(decision) is WaitUntil:
                self._wake_at(revision, decision.until, now)
            break
        if queue:
            late += queues.take_hopeless(revision, now)
        if queue:
            queues.settle_claim(revision, now)
            if has_turn:
                self._wait_for_a_slot(revision)
        else:
            self._emptied(revision, now)
        if is_limited and (has_turn or not queue):
            self.limiting.left(revision)
        for pending in late:  # last, since whoever is told may send the next request at once
            self._runs.settle(pending, too_late(pending))

    def _emptied(self, revision: Revision, now: float) -> None:
        if revision.claimed:
            self._queues.settle_claim(revision, now)
        if len(revision.instances) > 1:
            for instance in revision.instances:  # or it would keep its turn where nothing of it runs, and so for ever
                instance.worker.waiting.pop(revision, None)
        if revision.retired:
            self._left(revision)

    def _wait_for_a_slot(self, revision: Revision) -> None:
        ready = False
        for instance in revision.instances:
            if instance.state is READY:
                instance.worker.waiting[revision] = None
                ready = True
        if ready:
            self.contended[revision] = None
        else:
            self._wanted(revision)

    def slot_freed(self, worker: Worker, revision: Revision) -> None:
        """A run of the revision has ended: those who wait for a slot of its worker take turns."""
        waiting, now = worker.waiting, time.monotonic()
        if revision.queue and revision not in waiting:
            waiting[revision] = None
        for _ in range(len(waiting)):
            if not waiting or not worker.takes(0.0, now):
                break
            turn = next(iter(waiting))
            if not worker.has_slot and not is_short(turn):
                break  # it keeps its turn, and gets the next slot
            del waiting[turn]
            self.pump(turn, once=True)

    def _wake_at(self, revision: Revision, until: float, now: float) -> None:
        """Looks again when the oldest request has waited long enough for others."""
        if revision.waker is not None:
            revision.waker.cancel()
        revision.waker = self._loop.call_later(until - now, self._wake, revision)

    def _wake(self, revision: Revision) -> None:
        revision.waker = None
        if revision.queue:
            self.pump(revision)

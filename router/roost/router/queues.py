"""Step 4 of the data path: requests wait in the queue of their revision, and as long as they do, they claim it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from roost.core.errors import DeadlineExceeded, Limit, ResourceExhausted
from roost.router.loading import Loader
from roost.router.pending import Pending
from roost.router.placement import Ledger
from roost.router.revision import Revision
from roost.router.states import InstanceState

_SHARE = 0.5
"""Of the time that a request has, a batch should take no more: it may just have missed one."""

_MARGIN = 1.25
"""With none, as many are admitted as can just be served, and the least delay makes some of them late: they would be
refused after they have waited."""

_STRAINED_MARGIN = 0.5
"""So much more if all others were refused lately. Where most have to be, it is as well to be sure of those that are
admitted: a queue that is shorter gives the device no less to do."""

_REFUSALS_MEMORY = 32
"""After so many requests that came while others waited, one counts e times less."""

_STRAIN_S = 1.0
"""So long after the last one that was refused nothing is left of them."""


class Queues:
    """What waits in the queues of all revisions, within limits.

    Args:
        ledger: Keeps the claims.
        loader: Hears when nobody waits for a revision any more.
        max_queue: Requests that may wait for one revision.
        max_queued_bytes: Bytes of input tensors that may wait in all queues together.
        request_timeout_s: How long a request may take whose own ``timeout`` its model's configuration overrules.

    Attributes:
        requests: How many wait.
        bytes: What their input tensors take.
        when_left: Called for a revision that needs resources to run, once it has no requests any more.
    """

    def __init__(
        self,
        ledger: Ledger,
        loader: Loader,
        *,
        max_queue: int,
        max_queued_bytes: int,
        request_timeout_s: float = math.inf,
    ) -> None:
        self._ledger = ledger
        self._loader = loader
        self._max_queue = max_queue
        self._max_queued_bytes = max_queued_bytes
        self._request_timeout_s = request_timeout_s
        self.requests = 0
        self.bytes = 0
        self.when_left: Callable[[Revision], None] | None = None

    def has_room(self, revision: Revision, nbytes: int) -> bool:
        """Whether another request may wait."""
        return len(revision.queue) < self._max_queue and self.bytes + nbytes <= self._max_queued_bytes

    def admit(self, revision: Revision, nbytes: int) -> None:
        """Checks that another request may wait.

        Raises:
            ResourceExhausted: If it may not.
        """
        limit = self._max_queue
        if len(revision.queue) >= limit:
            raise _full(revision, limit)
        if self.bytes + nbytes > self._max_queued_bytes:
            text = "the requests that wait hold as many bytes as they may"
            raise ResourceExhausted(text, retry_after_s=1.0, limit=Limit.QUEUE_BYTES)

    def apply_policy(self, pending: Pending, now: float) -> None:
        """Gives a request its level, and what the configuration says of that.

        Raises:
            ResourceExhausted: If as many of the level wait as may.
            DeadlineExceeded: If its time is over.
        """
        self._apply_policy(pending, now)
        if now >= pending.deadline:
            raise DeadlineExceeded("the deadline passed before the request was queued")

    def _apply_policy(self, pending: Pending, now: float) -> None:
        revision = pending.revision
        policy, context = revision.policy, pending.request.context
        level = pending.level = policy.level_of(context.priority)
        pending.lane = 2 * level
        own = policy.policy_of(level)
        if revision.in_order is not None:
            pending.due = now
        if own is None:
            return
        if own.max_requests:
            waiting = sum(1 for other in revision.queue if other.level == level)
            if waiting >= own.max_requests:
                raise _full(revision, own.max_requests)
        timeout_s = own.timeout_s
        if own.may_override and 0 < context.timeout_s < timeout_s:
            timeout_s = context.timeout_s
        elif context.timeout_s and not own.may_override:
            pending.wait_until(context.received + self._request_timeout_s, now)
        pending.leave_by = min(pending.deadline, now + timeout_s)
        if revision.in_order is not None:
            pending.due = now

    def refuse_hopeless(self, pending: Pending, now: float) -> None:
        """Refuses a request whose deadline passes before those ahead of it have run, as far as that can be said.

        Raises:
            DeadlineExceeded: If so.
        """
        revision = pending.revision
        left_s = pending.deadline - now
        pace, ahead = revision.pace, revision.queued_rows
        if pace.single_s * (ahead + 2 * revision.limits.max_rows + 2) <= left_s or not pace.is_known(now):
            return  # nearly always
        limit = max(1, revision.limits.max_rows)
        if pending.lane or pending.due < revision.queue[-1].due:
            ahead = sum(other.rows for other in revision.queue[: self._place(pending)])
        at_once = max(1, pace.most_rows(left_s * _SHARE, limit))
        full, rest = divmod(ahead + pending.rows - 1, at_once)
        free_in_s, parallel = _capacity(revision, now)
        wait_s = free_in_s + full * pace.estimate(at_once) / parallel + pace.estimate(rest + 1)
        if now > revision.strained_until:
            revision.strain = 0.0
        margin = max(_MARGIN + _STRAINED_MARGIN * revision.strain, revision.caution(now))
        is_hopeless = wait_s * margin > left_s
        revision.strain += (is_hopeless - revision.strain) / _REFUSALS_MEMORY
        if is_hopeless:
            revision.strained_until = now + _STRAIN_S
            raise DeadlineExceeded(
                f"Request timeout would expire: {len(revision.queue)} requests wait for model '{revision.key.name}'",
                limit=Limit.DEADLINE,
            )

    def take_hopeless(self, revision: Revision, now: float) -> list[Pending]:
        """Takes out the first requests if not even the next batch can answer them in time."""
        pace, free_at = revision.pace, now + _capacity(revision, now)[0]
        if not pace.is_known(now) or revision.queue[0].deadline - free_at > pace.estimate(revision.limits.max_rows):
            return []
        count, caution = 0, revision.caution(now)
        for pending in revision.queue:
            if free_at + pace.estimate(pending.rows) * caution <= pending.deadline:
                break
            count += 1
        return self.take(revision, count)

    def put(self, pending: Pending) -> None:
        """A request begins to wait."""
        revision = pending.revision
        queue = revision.queue
        if not queue or (pending.due >= queue[-1].due and pending.lane == queue[-1].lane):
            queue.append(pending)
        else:
            queue.insert(self._place(pending), pending)
        revision.queued_rows += pending.rows
        self.requests += 1
        self.bytes += pending.nbytes

    def put_back(self, requests: Sequence[Pending]) -> None:
        """Requests wait again, each before others that are due at the same time."""
        for pending in reversed(requests):
            queue = pending.revision.queue
            queue.insert(bisect_left(queue, (pending.lane, pending.due), key=_rank), pending)
            pending.revision.queued_rows += pending.rows
            self.requests += 1
            self.bytes += pending.nbytes

    @staticmethod
    def _place(pending: Pending) -> int:
        return bisect_right(pending.revision.queue, (pending.lane, pending.due), key=_rank)

    def take(self, revision: Revision, count: int) -> list[Pending]:
        """Takes out the first requests; ``settle_claim`` is to be called when all is done with the queue."""
        queue = revision.queue
        taken = queue[:count]
        del queue[:count]
        rows = nbytes = 0
        for pending in taken:
            rows += pending.rows
            nbytes += pending.nbytes
        revision.queued_rows -= rows
        self.bytes -= nbytes
        self.requests -= count
        return taken

    def settle_claim(self, revision: Revision, now: float) -> None:
        """Lets the ledger know whether anybody waits."""
        if revision.queue:
            if not revision.claimed:
                revision.claimed = True
                self._ledger.claim(revision, now)
        elif revision.claimed:
            revision.claimed = False
            self._loader.left(revision, self._ledger.unclaim(revision))
            if revision.demand is not None and self.when_left is not None:
                self.when_left(revision)

    def remove(self, pending: Pending) -> None:
        """A request waits no more; one that does not wait is fine."""
        revision = pending.revision
        try:
            revision.queue.remove(pending)
        except ValueError:
            return
        revision.queued_rows -= pending.rows
        self.requests -= 1
        self.bytes -= pending.nbytes
        if not revision.queue:
            self.settle_claim(revision, math.nan)
            self._loader.sweep(revision)


def _capacity(revision: Revision, now: float) -> tuple[float, int]:
    """When a revision's instances can take another batch, and how many they run at once."""
    ready = [instance for instance in revision.instances if instance.state is InstanceState.READY]
    if revision.limits.max_rows <= 1:  # it has as many slots as are free, and nobody knows for how long they are not
        return 0.0, max(1, sum(instance.worker.spec.slots for instance in ready))
    at_once = revision.policy.instances
    return min((instance.free_in_s(now) / at_once for instance in ready), default=0.0), max(1, len(ready) * at_once)


def _rank(pending: Pending) -> tuple[int, float]:
    return pending.lane, pending.due


def _full(revision: Revision, limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"Exceeds maximum queue size: {limit} requests wait for model '{revision.key.name}'",
        retry_after_s=1.0,
        limit=Limit.QUEUE_FULL,
    )

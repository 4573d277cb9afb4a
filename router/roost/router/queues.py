"""Step 4 of the data path: requests wait in the queue of their revision, and as long as they do, they claim it."""

from __future__ import annotations

from roost.core.errors import Limit, ResourceExhausted
from roost.router.loading import Loader
from roost.router.placement import Ledger
from roost.router.revision import Pending, Revision


class Queues:
    """What waits in the queues of all revisions, within limits.

    Args:
        ledger: Keeps the claims.
        loader: Hears when a claim has ended.
        max_queue: Requests that may wait for one revision.
        max_queued_bytes: Bytes of input tensors that may wait in all queues together.

    Attributes:
        requests: How many wait.
        bytes: What their input tensors take.
    """

    def __init__(self, ledger: Ledger, loader: Loader, *, max_queue: int, max_queued_bytes: int) -> None:
        self._ledger = ledger
        self._loader = loader
        self._max_queue = max_queue
        self._max_queued_bytes = max_queued_bytes
        self.requests = 0
        self.bytes = 0

    def admit(self, revision: Revision, nbytes: int) -> None:
        """Checks that another request may wait.

        Raises:
            ResourceExhausted: If it may not.
        """
        limit = self._max_queue
        if len(revision.queue) >= limit:
            raise ResourceExhausted(
                f"Exceeds maximum queue size: {limit} requests wait for model '{revision.key.name}'",
                retry_after_s=1.0,
                limit=Limit.QUEUE_FULL,
            )
        if self.bytes + nbytes > self._max_queued_bytes:
            text = "the requests that wait hold as many bytes as they may"
            raise ResourceExhausted(text, retry_after_s=1.0, limit=Limit.QUEUE_BYTES)

    def put(self, pending: Pending, now: float, *, first: bool = False) -> None:
        """A request begins to wait; one whose worker was lost does so in front of the others."""
        queue = pending.revision.queue
        if first:
            queue.appendleft(pending)
        else:
            queue.append(pending)
        self.requests += 1
        self.bytes += pending.nbytes
        self._ledger.claim(pending.revision, now)

    def left(self, pending: Pending) -> None:
        """Ends the claim of a request that was just taken out of its queue."""
        self.requests -= 1
        self.bytes -= pending.nbytes
        if self._ledger.unclaim(pending.revision) or not pending.revision.wanted():
            self._loader.room.changed()

    def remove(self, pending: Pending) -> None:
        """A request waits no more; one that does not wait is fine."""
        try:
            pending.revision.queue.remove(pending)
        except ValueError:
            return
        self.left(pending)
        if not pending.revision.queue:
            self._loader.sweep(pending.revision)

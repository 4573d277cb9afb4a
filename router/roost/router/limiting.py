"""Step 6 of the data path, the shell around ``rate_limits``: runs hold resources, and others go when they end."""

from __future__ import annotations

from collections.abc import Callable

from roost.router.pending import Batch
from roost.router.rate_limits import Grant, RateLimiter
from roost.router.revision import Instance, Revision


class Limiting:
    """See the module.

    Args:
        limiter: Knows what there is; None: all may run at any time.
        pump: Sends what can be sent of a revision's queue.

    Attributes:
        grants: What the runs hold that are under way.
    """

    def __init__(self, limiter: RateLimiter | None, pump: Callable[[Revision], None]) -> None:
        self._limiter = limiter
        self._pump = pump
        self._granted: Grant | None = None
        self.grants: dict[Batch, Grant] = {}

    def check(self, revision: Revision) -> None:
        """Says why a revision can never run, if so.

        Raises:
            FailedPrecondition: Naming the resource.
        """
        if self._limiter is not None and revision.demand is not None:
            self._limiter.check(revision.demand)

    def admit(self, revision: Revision, instance: Instance) -> bool:
        """Whether a batch may run now, which then begins; else the revision waits for its turn."""
        demand = revision.demand
        if self._limiter is None or demand is None:
            return True
        self._granted = self._limiter.begin(revision, demand, instance.worker.spec.device)
        return self._granted is not None

    def began(self, batch: Batch) -> None:
        """The batch was sent that was just admitted."""
        if self._granted is not None:
            self.grants[batch] = self._granted
            self._granted = None

    def ended(self, batch: Batch) -> None:
        """A batch has ended, whatever came of it: what it held is free."""
        grant = self.grants.pop(batch, None)
        if grant is not None and self._limiter is not None:
            self._limiter.end(grant)
            self._go_on()

    def left(self, revision: Revision) -> None:
        """A revision does not wait for its turn any more, for it has no requests or no place to run them."""
        if self._limiter is not None and self._limiter.withdraw(revision):
            self._go_on()

    def forget(self, revision: Revision) -> None:
        """A revision is of no use to anybody any more."""
        if self._limiter is not None:
            self._limiter.forget(revision)

    def _go_on(self) -> None:
        """Sends what may run now of those that wait; whoever can't gives its turn to others."""
        limiter = self._limiter
        assert limiter is not None
        released: list[Revision] = []
        for revision in limiter.waiting:
            if not isinstance(revision, Revision):
                continue
            if revision.demand is None:  # its configuration has changed
                released.append(revision)
            if revision.demand is None or not revision.queue:  # they were cancelled, or it got too late for them
                limiter.withdraw(revision)
        for owner in (*released, *limiter.next()):
            if isinstance(owner, Revision):
                self._pump(owner)

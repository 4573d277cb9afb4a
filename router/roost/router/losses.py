"""What becomes of all that a lost worker had: who is answered, what runs again, who is suspected, what comes back.

What had not begun to run goes back to the head of its queue at once. For the rest it counts why the process has ended,
which is known once it is reaped, an instant later; see ``roost.router.ends``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from roost.core.errors import Unavailable
from roost.router.catalog import Catalog
from roost.router.dispatching import Dispatcher
from roost.router.ends import End
from roost.router.failures import Fault, failure_error, next_failure
from roost.router.loading import Loader
from roost.router.pending import Batch, Pending
from roost.router.restoring import Resident, Restoring
from roost.router.revision import Revision
from roost.router.runs import Runs
from roost.router.states import InstanceState
from roost.router.worker import Worker

log = logging.getLogger(__name__)

QUARANTINE_CRASHES = 3


@dataclass(eq=False, slots=True)
class _Loss:
    """A worker that was lost and whose process is not reaped yet.

    Attributes:
        suspects: What it ran or loaded.
        begun: Requests that it ran and that may run again, unless they may have been its end.
        residents: What is to be loaded again.
    """

    suspects: set[Revision]
    residents: list[Resident]
    begun: list[Pending] = field(default_factory=list)


class Losses:
    """See the module.

    Args:
        loader: Takes instances out.
        catalog: Hears of revisions that are put in quarantine.
        runs: Answers requests.
        dispatcher: Sends them again.
        restoring: Loads again what was resident.
    """

    def __init__(
        self, loader: Loader, catalog: Catalog, runs: Runs, dispatcher: Dispatcher, restoring: Restoring
    ) -> None:
        self._loader = loader
        self._catalog = catalog
        self._runs = runs
        self._dispatcher = dispatcher
        self._restoring = restoring
        self._losses: dict[Worker, _Loss] = {}
        self._stopping = False

    def stop(self) -> None:
        """The workers end now, and nothing runs again."""
        self._stopping = True

    def lost(self, worker: Worker) -> None:
        """It takes nothing any more; its memory is still taken."""
        for instance in list(worker.instances.values()):
            if instance.revision.sequences is not None:
                instance.revision.sequences.lost(instance)  # first of all: none of their requests may run elsewhere
        loading = {i.revision for i in worker.instances.values() if i.state is InstanceState.LOADING}
        loss = self._losses[worker] = _Loss(loading, self._restoring.residents(worker))
        self._loader.worker_went(worker)
        worker.waiting.clear()
        batches = list(worker.runs.values())
        worker.runs.clear()
        worker.backlog_s = 0.0
        touched = {instance.revision: None for instance in worker.instances.values()}
        unanswered: list[Pending] = []
        for batch in reversed(batches):
            unanswered += self._take_back(batch, loss)
        for batch in batches if self._dispatcher.limiting.grants else ():
            self._dispatcher.limiting.ended(batch)
        for revision in touched:
            self._dispatcher.pump(revision)
        self._runs.settle_all(unanswered, _lost())

    def _take_back(self, batch: Batch, loss: _Loss) -> list[Pending]:
        """Sees what of a batch may run again; returns what may not."""
        revision, link = batch.instance.revision, batch.instance.worker.link
        has_begun = link is not None and link.has_started(batch.number)
        requests, batch.requests = batch.requests, []
        if has_begun:
            loss.suspects.add(revision)
        if self._stopping or (has_begun and not revision.stateless):
            return requests
        again = [pending for pending in requests if not (pending.settled or pending.retried)]
        if has_begun:
            loss.begun[:0] = again
        else:
            self._send_again(again)
        return [pending for pending in requests if pending.retried and pending.batch is batch]

    def _send_again(self, requests: Iterable[Pending]) -> list[Pending]:
        waiting = [pending for pending in requests if not pending.settled]
        for pending in waiting:
            pending.retried = True
        self._dispatcher.again(waiting)
        return waiting

    def reaped(self, worker: Worker, end: End) -> None:
        """Its process has ended, and its memory is free."""
        self._loader.worker_reaped(worker)
        loss = self._losses.pop(worker, None)
        if loss is None:  # it never was up
            return
        blamed = {worker.blamed} if worker.blamed is not None else set()
        suspects = loss.suspects if end.suspects else blamed
        for revision in suspects:
            self._crashed(revision, is_alone=len(suspects) == 1)
        if end.runs_again and not self._stopping:
            for revision in {pending.revision: None for pending in self._send_again(loss.begun)}:
                self._dispatcher.pump(revision)
        else:
            self._runs.settle_all(loss.begun, _lost())
        if not self._stopping:
            self._restoring.add(
                resident
                for resident in loss.residents
                # What took all of the memory may be among them: they come back one by one, as they are asked for.
                if resident.revision not in suspects and (resident.pinned or end is not End.OUT_OF_MEMORY)
            )

    def _crashed(self, revision: Revision, *, is_alone: bool) -> None:
        """A revision was running or loading when its worker died: the third time in a row it is put in quarantine.

        Not if others may have been the reason as well that time: or a bad model would take those along that come back
        to its worker again and again.
        """
        if not is_alone and revision.crashes >= QUARANTINE_CRASHES - 1:
            return
        revision.crashes += 1
        if revision.crashes < QUARANTINE_CRASHES:
            return
        reason = f"in quarantine, since {revision.crashes} worker processes ended while they ran or loaded it"
        now = time.monotonic()
        revision.failure = next_failure(revision.failure, reason, Fault.ARTIFACT, now)
        revision.failure.until = math.inf
        revision.failure_checked = now
        self._catalog.failed(revision, reason)
        log.error("%s is put in quarantine", revision.key)
        error = failure_error(revision, revision.failure, now)
        self._dispatcher.fail_all(revision, error)  # or each would end another worker


def _lost() -> Unavailable:
    return Unavailable("the worker that ran the request was lost; it may be sent again", retry_after_s=1.0)

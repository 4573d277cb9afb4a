"""Step 5 of the data path: loads that failed, and what callers are told until the next one is tried."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from roost.core.errors import Cancelled, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, RoostError
from roost.router.catalog import Catalog
from roost.router.failures import Fault, failure_error, next_failure
from roost.router.instances import NoWorkerCame
from roost.router.revision import Revision
from roost.router.spread import Unplaceable
from roost.router.stats import Stats

log = logging.getLogger(__name__)

FILES_LOOKED_AT_EVERY_S = 1.0
_ARTIFACT_ERRORS = (InvalidArgument, NotFound, FailedPrecondition)


@dataclass(eq=False, slots=True)
class LoadFailures:
    """See the module; what is remembered of a revision is kept there.

    Attributes:
        catalog: Knows the files and hears of failures.
        stats: Counts them.
    """

    catalog: Catalog
    stats: Stats

    async def check(self, revision: Revision) -> None:
        """Answers at once for a revision whose load failed lately, unless its files have changed since.

        Raises:
            Unavailable: With the reason of the failure.
        """
        failure, now = revision.failure, time.monotonic()
        if failure is None or not failure.blocks(now):
            return
        if now - revision.failure_checked > FILES_LOOKED_AT_EVERY_S:
            revision.failure_checked = now
            if await self.catalog.changed(revision):
                revision.failure, revision.crashes = None, 0
                return
        raise failure_error(revision, failure, now)

    def remember(self, revision: Revision, error: RoostError) -> RoostError:
        """Keeps a failure and says what the callers are told; want of memory or of a place is not kept."""
        if isinstance(error, ResourceExhausted | Cancelled | Unplaceable | NoWorkerCame):
            return error
        fault = Fault.ARTIFACT if isinstance(error, _ARTIFACT_ERRORS) else Fault.WORKER
        now = time.monotonic()
        if revision.resident():  # it serves; whoever wanted another instance decides when to try again
            log.warning("another instance of %s could not be loaded: %s", revision.key, error.message)
            self.stats.of(revision.key.name, revision.key.version).load_failures += 1
            return error
        if revision.failure is not None and revision.failure.final:
            return failure_error(revision, revision.failure, now)  # not replaced by one that passes
        failure = revision.failure = next_failure(revision.failure, error.message, fault, now)
        revision.failure_checked = now
        self.stats.of(revision.key.name, revision.key.version).load_failures += 1
        self.catalog.failed(revision, failure.reason)
        # What was replaced may have lost its files, and its requests go to what took its place.
        log.log(
            logging.DEBUG if revision.retired else logging.ERROR, "loading %s failed: %s", revision.key, failure.reason
        )
        return failure_error(revision, failure, now)

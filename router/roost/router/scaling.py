"""Step 5: copies come and go. The shell around ``copies``, which decides how many, and ``spread``, which decides where.

Twice a second it looks at the revisions whose requests had to wait, at those with several copies, and at those whose
owners want some in any case. All others cost nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from roost.core.errors import Limit, RoostError
from roost.core.tasks import look_every
from roost.router import spread
from roost.router.copies import FULL, PERIOD_S, Bounds, CopyCount, Seen
from roost.router.copy_counts import CopyCounts, CopyReason
from roost.router.demand import Sample, demand, run_s, wait_s
from roost.router.least import LeastCopies
from roost.router.loads import Outcome
from roost.router.mesh import Mesh
from roost.router.placement import Ledger
from roost.router.revision import Instance, Revision
from roost.router.spares import Spares
from roost.router.spread import EnoughCopies, Unplaceable
from roost.router.states import READY

log = logging.getLogger(__name__)

WORTH_S = 60.0
"""What was used within this time is not evicted for one more copy of something else."""

RETRY_S = 5.0
LONGEST_RETRY_S = 300.0
"""How long nothing is tried after a copy could not be loaded: the first time, and at most."""

FORGET_S = 1.0
"""After so long without a reason, a revision with one copy is not looked at any more."""

MOST_CONTENDED = 128
"""So many revisions more are looked at each time because their requests wait, those first that waited first: where many
thousands wait, copies of a few of them are no help, and a look holds up the requests of all."""

_SMOOTHING = 0.5


@dataclass(eq=False, slots=True)
class _Watched:
    """A revision that is looked at.

    Attributes:
        count: Decides how many copies it should have.
        before: What was counted up to the last look.
        earlier: What was counted up to the one before it.
        target: How many copies it is to have, while some of them are not there yet.
        reason: Why.
        reason_at: When there was last a reason to look at it.
        failures: How often in a row a copy could not be loaded.
        not_before: When the next one may be tried.
    """

    count: CopyCount
    before: Sample
    earlier: Sample
    reason_at: float
    target: int = 0
    reason: CopyReason = CopyReason.LOAD
    failures: int = 0
    not_before: float = -math.inf


@dataclass(eq=False)
class Scaling:
    """See the module.

    Attributes:
        mesh: Its workers and its loader.
        ledger: The device's budget.
        least: Knows what owners want in any case.
        spares: Knows what is worth a copy that nobody needs yet.
        counts: What is counted of all this.
    """

    mesh: Mesh
    ledger: Ledger
    least: LeastCopies
    spares: Spares
    counts: CopyCounts
    _watched: dict[Revision, _Watched] = field(default_factory=dict)
    _busy_s: dict[int, float] = field(default_factory=dict)
    _looked_at: float = -math.inf

    async def run(self) -> None:
        """Looks again and again, for ever."""
        await look_every(PERIOD_S, self._look, partial(log.exception, "looking at the number of copies failed"))

    async def _look(self) -> None:
        self.look(time.monotonic())
        await self.spares.look(time.monotonic())

    def look(self, now: float) -> None:
        """Looks once."""
        self._look_at_workers(now)
        contended = list(itertools.islice(self.mesh.contended, MOST_CONTENDED))
        self.mesh.contended.clear()
        if not self.mesh.ready or self.ledger.limits.private_bytes <= 0:  # it has just been started
            return
        for revision in contended if self.mesh.kinds.most > 1 else ():
            self._watch(revision, now)
        for revision in (*self.least.revisions(), *self.spares.revisions):
            self._watch(revision, now)
        lacking = 0
        for revision, watched in list(self._watched.items()):
            if revision.retired or now - watched.reason_at > FORGET_S:
                del self._watched[revision]
                continue
            lacking += self._look_at(revision, watched, now)
        self.counts.lacking = lacking

    def _look_at_workers(self, now: float) -> None:
        period_s, self._looked_at = now - self._looked_at, now
        for worker in self.mesh.workers:
            busy_s = worker.busy_s + (now - worker.turn_at if worker.runs else 0.0)
            share = min(1.0, max(0.0, busy_s - self._busy_s.get(worker.id, busy_s)) / period_s)
            self._busy_s[worker.id] = busy_s
            worker.busy_share += _SMOOTHING * (share - worker.busy_share)

    def _watch(self, revision: Revision, now: float) -> None:
        watched = self._watched.get(revision)
        if watched is None:
            sample = Sample.of(revision, now)
            watched = self._watched[revision] = _Watched(CopyCount(now), sample, sample, now)
        watched.reason_at = now

    def _look_at(self, revision: Revision, watched: _Watched, now: float) -> int:
        """Looks at one revision; returns how many copies it lacks of those that its owner wants at least."""
        policy = revision.description.policy
        ready = [instance for instance in revision.instances if instance.state is READY]
        if len(ready) > 1:
            watched.reason_at = now
        if len(ready) >= watched.target:
            watched.target = 0
        least = policy.min_copies
        if not (ready or least):  # evicted: the next request brings it
            watched.target = 0
            return 0
        self._pin(revision, ready)
        most = math.inf if policy.max_copies is None else policy.max_copies
        bounds = Bounds(max(least, int(min(most, self.spares.least(revision)))), most)
        seen = self._see(revision, watched, ready, now)
        wanted = watched.count.wanted(seen, bounds, now)
        if wanted > seen.copies:
            self._raise_target(revision, watched, wanted, seen)
        if watched.target > len(ready):
            self._add(revision, watched, now)
        elif wanted < len(ready):
            self._drop(revision, ready, len(ready) - wanted)
        return max(0, least - len(ready))

    def _see(self, revision: Revision, watched: _Watched, ready: Sequence[Instance], now: float) -> Seen:
        sample = Sample.of(revision, now)
        before, earlier = watched.before, watched.earlier
        watched.earlier, watched.before = before, sample
        copies = max(len(ready) + (revision.load is not None), watched.target)
        seen = Seen(
            copies,
            copies - len(ready),
            demand(revision, earlier, sample),
            wait_s(revision, before, sample) if ready else 0.0,
            run_s(revision, earlier, sample),
            sample.refused - before.refused if ready else 0,
            busy=min((instance.worker.busy_share for instance in ready), default=0.0),
        )
        if not seen.pressed or now < watched.not_before:  # which spares most of what a look costs
            return seen
        return replace(seen, room=self._room(revision))

    def _room(self, revision: Revision) -> int:
        """How many workers that may load another copy, and have none, would have time for it."""
        try:
            return sum(worker.busy_share < FULL for worker in spread.ranked(self.mesh.workers, revision))
        except Unplaceable:
            return 0

    def _raise_target(self, revision: Revision, watched: _Watched, wanted: int, seen: Seen) -> None:
        watched.target = wanted
        if wanted <= revision.description.policy.min_copies:
            watched.reason = CopyReason.LEAST
        elif wanted <= self.spares.least(revision):
            watched.reason = CopyReason.SPARE
        else:
            watched.reason = CopyReason.LOAD
            log.info(
                "%s is to have %d copies instead of %d: requests wait for %.0f ms",
                revision.key,
                wanted,
                seen.copies,
                max(0.0, seen.wait_s) * 1e3,
            )

    def _add(self, revision: Revision, watched: _Watched, now: float) -> None:
        """Loads the next copy, unless one is being loaded, or the last one failed a moment ago."""
        failure = revision.failure
        if revision.load is not None or now < watched.not_before or (failure is not None and failure.blocks(now)):
            return
        if not self._has_place(revision):
            return
        older_than = {CopyReason.LEAST: now, CopyReason.LOAD: now - WORTH_S, CopyReason.SPARE: -math.inf}
        load = self.mesh.loader.add_copy(revision, older_than=older_than[watched.reason])
        load.add_done_callback(lambda load: self._came(revision, watched, load))

    def _has_place(self, revision: Revision) -> bool:
        """Whether a worker is up that may have another copy; one that is down will be back in a moment."""
        try:
            return bool(spread.ranked(self.mesh.workers, revision))
        except EnoughCopies:
            return False
        except Unplaceable:
            return True  # the load says why not, and that is remembered

    def _came(self, revision: Revision, watched: _Watched, load: asyncio.Future[Outcome]) -> None:
        """A copy is there, and the next one's turn has come; or it could not be loaded."""
        if load.cancelled():
            return
        error = load.result()
        if error is not None:
            if error.limit is not Limit.DRAINING and not revision.retired:  # else nobody wants it any more
                self._failed(revision, watched, error)
            return
        watched.failures = 0
        self.counts.added[watched.reason] += 1
        ready = [instance for instance in revision.instances if instance.state is READY]
        self._pin(revision, ready)
        if watched.target > len(ready) and not revision.retired:
            self._add(revision, watched, time.monotonic())

    def _failed(self, revision: Revision, watched: _Watched, error: RoostError) -> None:
        self.counts.failed += 1
        retry_s = min(LONGEST_RETRY_S, RETRY_S * 2 ** min(watched.failures, 10))
        watched.failures += 1
        watched.not_before = time.monotonic() + retry_s
        watched.target = 0
        level = logging.WARNING if watched.reason is CopyReason.LEAST and watched.failures == 1 else logging.DEBUG
        log.log(level, "%s gets no other copy for %.0f s: %s", revision.key, retry_s, error.message)

    def _drop(self, revision: Revision, ready: Sequence[Instance], count: int) -> None:
        left = list(ready)
        for _ in range(count):
            instance = spread.surplus(left, revision.description.policy.preferred_labels)
            if instance is None:
                return
            left.remove(instance)
            log.info("%s is to have %d copies instead of %d", revision.key, len(left), len(left) + 1)
            self.counts.dropped += 1
            self.mesh.loader.drop_copy(instance)
            if not any(other.worker is instance.worker for other in left):
                instance.worker.waiting.pop(revision, None)

    def _pin(self, revision: Revision, ready: Sequence[Instance]) -> None:
        """As many copies as its owner wants at least are never evicted."""
        policy = revision.description.policy
        if not policy.min_copies or policy.pin or revision.yields:
            return
        for place, instance in enumerate(ready):
            self.ledger.pin(instance.id, pinned=place < policy.min_copies)

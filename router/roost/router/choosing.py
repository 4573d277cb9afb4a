"""Step 6 of the data path, the pure part of where: which of a revision's instances takes its next batch."""

from __future__ import annotations

import math

from roost.router.revision import Instance, Revision
from roost.router.states import READY
from roost.router.worker import SHORT_S

_WORTH_WAITING = 2.0
"""A copy that is free now is passed over for one that will be free before, if that is expected so many times sooner."""

_PROGRAMS = 4
"""No program has more of a worker's slots than one in so many."""


def free_instance(revision: Revision, now: float) -> Instance | None:
    """The instance that can take the next batch with the least to wait for, if any can.

    None as well if it is worth waiting for one that can't yet: a slot of a worker is of little use while that is busy
    for long with others, or hangs.
    """
    instances = revision.instances
    if len(instances) == 1:  # nearly always
        only = instances[0]
        return only if only.state is READY and _has_room(only, now) else None
    best: Instance | None = None
    best_s = soonest_s = math.inf
    for instance in instances:
        if instance.state is not READY or instance.worker.recycling:
            continue
        wait_s = instance.worker.wait_s(now)
        if not _has_room(instance, now):
            soonest_s = min(soonest_s, wait_s)
        elif wait_s < best_s:
            best, best_s = instance, wait_s
    return best if best_s <= SHORT_S or best_s <= _WORTH_WAITING * soonest_s else None


def _has_room(instance: Instance, now: float) -> bool:
    """Whether an instance takes a batch of what waits.

    One that batches has as many batches as its configuration says, and one more if that is at least as large as the
    one that runs and will be over in an instant: then the device does not wait for the router in between.
    """
    revision, worker, runs = instance.revision, instance.worker, instance.runs
    waiting, limit = revision.queued_rows, revision.limits.max_rows
    if revision.is_code and len(runs) >= max(1, worker.spec.slots // _PROGRAMS):
        return False  # one that never answers leaves room for others
    if limit <= 1:
        waiting = 1
    elif len(runs) >= revision.policy.instances:
        if len(runs) > revision.policy.instances or waiting < min(limit, runs[-1].rows):
            return False
        pace = revision.pace
        if now - instance.turn_at > SHORT_S or not pace.is_known(now) or pace.estimate(min(waiting, limit)) > SHORT_S:
            return False
    if worker.has_slot:
        return True
    if not is_short(next(iter(worker.waiting), revision)):
        return False  # whose turn it is would wait for ever if others were always there before a slot is free
    pace = revision.pace
    return pace.single_s > 0 and worker.takes(pace.estimate(min(waiting, max(1, limit))), now)


def is_short(revision: Revision) -> bool:
    """Whether its next batch may wait in a worker, as it will be over in an instant.

    What was learned of it counts however old it is: among thousands of models hardly one was run lately, and one that
    is not short any more keeps others waiting once.
    """
    limit, pace = revision.limits.max_rows, revision.pace
    return pace.single_s > 0 and pace.estimate(min(revision.queued_rows, limit) if limit > 1 else 1) <= SHORT_S

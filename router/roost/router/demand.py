"""Step 5: what comes for a revision and how its copies cope with it, from counters that are there anyway.

A request costs nothing for it: two looks at the counters are compared, and only those of revisions whose requests had
to wait, or that have several copies.
"""

from __future__ import annotations

from dataclasses import dataclass

from roost.core.errors import Code
from roost.router.revision import Revision

_REFUSALS = (Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Sample:
    """What was counted for a revision up to some time.

    Attributes:
        at: The time.
        busy_s: For how long each of its instances had something to run, by id.
        answered: Requests that succeeded.
        ended: Requests that ended in any way.
        refused: Those of them that were refused, or were too late.
        waited_s: What all of them waited for a free copy.
        rows: Rows of the batches that ran.
        batches: How many those were.
        queued: Requests that wait.
    """

    at: float
    busy_s: dict[int, float]
    answered: int = 0
    ended: int = 0
    refused: int = 0
    waited_s: float = 0.0
    rows: int = 0
    batches: int = 0
    queued: int = 0

    @classmethod
    def of(cls, revision: Revision, now: float) -> Sample:
        """What is counted up to now."""
        busy_s = {i.id: i.busy_s + (now - i.turn_at if i.runs else 0.0) for i in revision.instances}
        counters = revision.counters
        if counters is None:  # there was no request yet
            return cls(now, busy_s)
        errors = counters.errors or {}
        return cls(
            now,
            busy_s,
            counters.ok,
            counters.ok + sum(errors.values()),
            sum(errors.get(code, 0) for code in _REFUSALS),
            counters.slot_wait_s,
            counters.rows,
            counters.executions,
            len(revision.queue),
        )


def busy_s(before: Sample, after: Sample) -> float:
    """For how long copies had something to run, all together."""
    return sum(seconds - before.busy_s.get(instance, 0.0) for instance, seconds in after.busy_s.items())


def demand(revision: Revision, before: Sample, after: Sample) -> float:
    """How many copies would have been busy all the time with what came between two samples.

    Where requests are run together a copy that is busy may still have much room: what counts is how long it would have
    taken in full batches. What came and was not answered counts as if it had been.
    """
    period_s = after.at - before.at
    if period_s <= 0:
        return 0.0
    copies = busy_s(before, after) / period_s
    rows, most = after.rows - before.rows, revision.limits.max_rows
    if most > 1 and rows and revision.pace.single_s:
        copies = min(copies, rows * revision.pace.estimate(most) / most / period_s)
    answered = after.answered - before.answered
    came = after.ended - before.ended + after.queued - before.queued
    return copies * came / answered if came > answered > 0 else copies


def run_s(revision: Revision, before: Sample, after: Sample) -> float:
    """How long a batch takes, as far as that is known."""
    batches = after.batches - before.batches
    mean_s = busy_s(before, after) / batches if batches else 0.0
    return max(mean_s, revision.pace.single_s)


def wait_s(revision: Revision, before: Sample, after: Sample) -> float:
    """How long requests waited for a free copy: on average, or the first of those that still do."""
    ended = after.ended - before.ended
    waited_s = (after.waited_s - before.waited_s) / ended if ended else 0.0
    if revision.queue:
        first = revision.queue[0]
        waited_s = max(waited_s, after.at - first.queued - first.request.context.load_wait_s)
    return waited_s - revision.limits.max_delay_s  # which they are meant to wait

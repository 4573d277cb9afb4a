"""Why requests fail, in the four words that dashboards for Triton know: one total table of codes, one of limits."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from roost.core.errors import Code, Limit


class Outcome(IntEnum):
    """A sort of failure; its name is the label, its value a place in a list of counters."""

    REJECTED = 0
    CANCELED = 1
    BACKEND = 2
    OTHER = 3


OUTCOME_OF_CODE: Mapping[Code, Outcome] = {
    Code.INVALID_ARGUMENT: Outcome.OTHER,
    Code.NOT_FOUND: Outcome.OTHER,
    Code.ALREADY_EXISTS: Outcome.OTHER,
    Code.FAILED_PRECONDITION: Outcome.OTHER,
    Code.RESOURCE_EXHAUSTED: Outcome.REJECTED,
    Code.UNAVAILABLE: Outcome.BACKEND,
    Code.DEADLINE_EXCEEDED: Outcome.REJECTED,
    Code.CANCELLED: Outcome.CANCELED,
    Code.ABORTED: Outcome.OTHER,
    Code.UNAUTHENTICATED: Outcome.OTHER,
    Code.PERMISSION_DENIED: Outcome.OTHER,
    Code.UNIMPLEMENTED: Outcome.OTHER,
    Code.INTERNAL: Outcome.BACKEND,
}

# A known limit says more than the code: a deadline that passes while the model runs is nobody's refusal.
OUTCOME_OF_LIMIT: Mapping[Limit, Outcome] = {
    Limit.QUEUE_FULL: Outcome.REJECTED,
    Limit.QUEUE_BYTES: Outcome.REJECTED,
    Limit.BODY_BUDGET: Outcome.REJECTED,
    Limit.ANSWER_BUDGET: Outcome.REJECTED,
    Limit.NO_MEMORY: Outcome.REJECTED,
    Limit.LOAD_WAIT: Outcome.REJECTED,
    Limit.SEQUENCES: Outcome.REJECTED,
    Limit.RECEIVES: Outcome.REJECTED,
    Limit.TOO_LARGE: Outcome.REJECTED,
    Limit.DEADLINE: Outcome.REJECTED,
    Limit.RUN_DEADLINE: Outcome.OTHER,
    Limit.RECEIVE_TIMEOUT: Outcome.REJECTED,
    Limit.DRAINING: Outcome.REJECTED,
    Limit.WORKER: Outcome.REJECTED,
    Limit.LAG: Outcome.REJECTED,
}


def outcome_of(code: Code, limit: Limit | None) -> Outcome:
    """The sort of a failure."""
    return OUTCOME_OF_CODE[code] if limit is None else OUTCOME_OF_LIMIT[limit]

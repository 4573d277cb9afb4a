"""What one request took, made at its end from the times in its context."""

from __future__ import annotations

import time
from typing import NamedTuple

from roost.core.errors import Code, Limit, RoostError, limit_of
from roost.core.frames import StepTimes
from roost.core.requests import RequestContext


class RequestRecord(NamedTuple):
    """What one finished request took. ``code`` is None for success; the parts are 0 where it did not get so far.

    Attributes:
        name: The model that it was resolved to; empty if it was not.
        version: Likewise.
        code: How it failed.
        total_s: From its first byte until now.
        queue_s: It waited for a slot.
        load_wait_s: It waited for its model to be loaded.
        input_s: The worker made its input ready.
        infer_s: The model computed.
        output_s: The worker made its output ready.
        preprocess_s: From its first byte until it was queued.
        postprocess_s: From the end of its run until now.
        limit: The limit that it ran into.
    """

    name: str
    version: str
    code: Code | None
    total_s: float
    queue_s: float
    load_wait_s: float
    input_s: float
    infer_s: float
    output_s: float
    preprocess_s: float
    postprocess_s: float
    limit: Limit | None = None

    @property
    def compute_s(self) -> float:
        """What it took in the worker."""
        return self.input_s + self.infer_s + self.output_s


def record_of(context: RequestContext, error: RoostError | Code | None) -> RequestRecord:
    """What a request took that has just ended, from the times in its context.

    Args:
        context: The request's.
        error: How it failed; None for success.
    """
    now = time.monotonic()
    (name, version), received, ended = context.served_by, context.received, context.run_ended
    code = error.code if isinstance(error, RoostError) else error
    limit = limit_of(error) if isinstance(error, RoostError) else None
    preprocess_s = (context.queued or now) - received
    if not ended:
        return RequestRecord(
            name, version, code, now - received, 0.0, context.load_wait_s, 0.0, 0.0, 0.0, preprocess_s, 0.0, limit
        )
    started, infer_started, infer_ended = context.run_started, context.infer_started, context.infer_ended
    return RequestRecord(
        name,
        version,
        code,
        now - received,
        max(0.0, started - context.queued - context.load_wait_s),
        context.load_wait_s,
        infer_started - started,
        infer_ended - infer_started,
        ended - infer_ended,
        preprocess_s,
        now - ended,
        limit,
    )


def note_steps(context: RequestContext, times: StepTimes) -> None:
    """Keeps in the request's context what the worker says of its steps."""
    context.run_started = times.input_start / 1e9
    context.infer_started = times.infer_start / 1e9
    context.infer_ended = times.infer_end / 1e9
    context.run_ended = times.output_end / 1e9

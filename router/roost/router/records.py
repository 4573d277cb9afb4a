"""What one request took, made at its end from the times in its context."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from roost.core.errors import Code, Limit, RoostError, limit_of
from roost.core.frames import StepTimes
from roost.core.requests import InferRequest, RequestContext


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


class BatchRecord:
    """What the requests of a batch took that succeeded together: ``RequestRecord`` by columns.

    Attributes:
        name: The model.
        count: How many requests are counted.
        total_s: From the first byte of each until now.
        queue_s: What each waited for a slot.
        load_wait_s: What they waited for their model to be loaded.
        preprocess_s: From their first bytes until they were queued.
        predict_s: From then until the end of the run.
        input_s: The worker made the input ready.
        infer_s: The model computed.
        output_s: The worker made the output ready.
        postprocess_s: From the end of the run until now.
    """

    __slots__ = (
        "count",
        "infer_s",
        "input_s",
        "load_wait_s",
        "name",
        "output_s",
        "postprocess_s",
        "predict_s",
        "preprocess_s",
        "queue_s",
        "total_s",
    )

    def __init__(self, name: str, requests: Sequence[InferRequest], times: StepTimes) -> None:
        now = time.monotonic()
        started, ended = times.input_start / 1e9, times.output_end / 1e9
        self.name = name
        self.count = len(requests)
        self.input_s = (times.infer_start - times.input_start) / 1e9
        self.infer_s = (times.infer_end - times.infer_start) / 1e9
        self.output_s = (times.output_end - times.infer_end) / 1e9
        self.postprocess_s = now - ended
        total_s: list[float] = []
        load_wait_s: list[float] = []
        queue_s: list[float] = []
        preprocess_s: list[float] = []
        predict_s: list[float] = []
        for request in requests:
            context = request.context
            received, queued, loading_s = context.received, context.queued, context.load_wait_s
            waited_s = started - queued - loading_s
            total_s.append(now - received)
            load_wait_s.append(loading_s)
            queue_s.append(waited_s if waited_s > 0 else 0.0)
            preprocess_s.append(queued - received)
            predict_s.append(ended - queued)
        self.total_s, self.load_wait_s, self.queue_s = total_s, load_wait_s, queue_s
        self.preprocess_s, self.predict_s = preprocess_s, predict_s

    @property
    def compute_s(self) -> float:
        """What the batch took in the worker."""
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

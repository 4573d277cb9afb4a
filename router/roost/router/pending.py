"""Requests on their way through the mesh, and the batches that they are run in."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Protocol

from roost.core.errors import RoostError
from roost.core.requests import Done, InferRequest, InferResponse
from roost.router.intake import Taken
from roost.router.streams import ResponseStream

if TYPE_CHECKING:
    from roost.router.revision import Instance, Revision

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""A request without a deadline waits as if it had one so far away: others can't overtake it for ever."""


class Owner(Protocol):
    """Who takes requests out again."""

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for the request any more."""


class Pending:
    """A request in the queue or under way; it is settled exactly once. Implements ``roost.core.requests.Ticket``.

    There is one for each request, so it holds no future, timer or closure of its own.

    Attributes:
        revision: What it is for.
        request: The request.
        done: Gets the outcome, unless the request is abandoned.
        rows: How many rows of a batch it is.
        key: Requests with equal keys may share a batch.
        nbytes: Bytes of its inputs.
        queued: When it came.
        deadline: When its answer is of no use any more.
        leave_by: When it must have left the queue, if that is before.
        due: Its place in the queue: what is due earlier goes first.
        lane: Its place in the queue, before that: of two lanes all of the lower one go first.
        level: Its priority level.
        settled: It has its outcome, or nobody waits for it any more.
        recorded: Whether its end is counted where it is settled.
        retried: Its worker was lost once and it was sent again.
        batch: The batch that it runs in; None while it waits.
        outcome: What it is answered with once those before it are, if its model keeps the order.
        stream: Gets the responses before the last one, if the revision is decoupled.
    """

    __slots__ = (
        "batch",
        "deadline",
        "done",
        "due",
        "key",
        "lane",
        "leave_by",
        "level",
        "nbytes",
        "outcome",
        "owner",
        "queued",
        "recorded",
        "request",
        "retried",
        "revision",
        "rows",
        "settled",
        "stream",
    )

    def __init__(
        self,
        owner: Owner,
        revision: Revision,
        request: InferRequest,
        done: Done,
        taken: Taken,
        now: float,
        stream: ResponseStream | None,
        recorded: bool,
    ) -> None:
        self.owner = owner
        self.revision = revision
        self.request = request
        self.done = done
        self.rows, self.key, self.nbytes = taken
        self.queued = now
        deadline = self.deadline = self.leave_by = request.context.deadline
        self.due = deadline if deadline < math.inf else now + PATIENCE_S
        self.lane = self.level = 0
        self.settled = self.retried = False
        self.recorded = recorded
        self.batch: Batch | None = None
        self.outcome: InferResponse | RoostError | None = None
        self.stream = stream

    def wait_until(self, deadline: float, now: float) -> None:
        """Sets another deadline."""
        self.deadline = self.leave_by = deadline
        self.due = deadline if deadline < math.inf else now + PATIENCE_S

    def tell(self, outcome: InferResponse | RoostError) -> None:
        """Hands the outcome over; an error there is that request's alone, and not of those it shares a batch with."""
        try:
            self.done(outcome)
        except Exception:
            self.not_told()

    def not_told(self) -> None:
        """Logs the error that ``done`` has just raised."""
        log.exception("the answer of a request to %s could not be handed over", self.revision.key)

    def cancel(self) -> None:
        """See ``roost.core.requests.Ticket``."""
        self.owner.abandon(self)


class Elsewhere:
    """The owner of a request whose outcome a task finds that runs beside the mesh."""

    __slots__ = ("_before", "_task")

    def __init__(self, before: Owner, task: asyncio.Task[None]) -> None:
        self._before = before
        self._task = task

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for the request any more."""
        self._before.abandon(pending)
        self._task.cancel()


class Batch:
    """Requests that run together on an instance, which they lease.

    Attributes:
        instance: Where.
        number: The run's on the link.
        requests: Those that were sent, in order.
        rows: How many rows they are together.
        open: How many of them still wait for an answer.
        deadline: The earliest deadline of those.
        sent: When it was sent.
        predicted_s: How long it was expected to take.
        mixed: Whether its requests ask for different outputs.
    """

    __slots__ = ("deadline", "instance", "mixed", "number", "open", "predicted_s", "requests", "rows", "sent")

    def __init__(self, instance: Instance, number: int, requests: list[Pending], now: float) -> None:
        self.instance = instance
        self.number = number
        self.requests = requests
        self.open = len(requests)
        self.rows = 0
        self.deadline = math.inf
        self.sent = now
        self.predicted_s = 0.0
        self.mixed = False

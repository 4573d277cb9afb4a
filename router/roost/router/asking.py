"""Requests from inside of the server, those of ensembles' steps and of models; they are counted as clients' are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from roost.core.errors import Code, Internal, RoostError
from roost.core.requests import Done, InferRequest, InferResponse, Ticket
from roost.router.stats import Stats

log = logging.getLogger(__name__)


class Models(Protocol):
    """Who answers: ``Inference``."""

    def begin(self, request: InferRequest, done: Done, *, in_regions: bool = False) -> Ticket | None:
        """See ``Inference``."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """See ``Inference``."""

    def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """See ``Inference``."""


class Asking:
    """Asks models.

    Args:
        models: They answer.
        stats: Counts.
    """

    def __init__(self, models: Models, stats: Stats) -> None:
        self._models = models
        self._stats = stats

    def ask(self, group: asyncio.TaskGroup, request: InferRequest, done: Done) -> Ticket:
        """Sends a request.

        Args:
            group: Owns the task of a request that needs more than its run.
            request: The request; what its steps took is in its context once it has ended.
            done: Gets the outcome, unless the ticket is cancelled; never from within this call.

        Raises:
            RoostError: What the request failed with at once.
        """
        asked = _Asked(request, done, self._stats)
        try:
            # As one whose caller counts it: otherwise its times would not be known here.
            ticket = self._models.begin(request, asked.ended, in_regions=True)
        except RoostError as error:
            self._stats.finished(request, error)
            raise
        asked.give_up = ticket.cancel if ticket is not None else group.create_task(self._ask_slowly(asked)).cancel
        return asked

    async def _ask_slowly(self, asked: _Asked) -> None:
        """The task of a request that needs more than its run: whatever happens is the outcome of that request."""
        outcome: InferResponse | RoostError
        try:
            outcome = await self._models.infer(asked.request)
        except RoostError as error:
            outcome = error.with_traceback(None)
        except Exception:
            log.exception("a request to model '%s' failed", asked.request.model_name)
            outcome = Internal("an unexpected error, see the server's log")
        asked.ended(outcome)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Sends a request and waits for its answer; see ``Inference.infer``."""
        try:
            response = await self._models.infer(request)
        except BaseException as error:
            self._stats.finished(request, _failure_of(error))
            raise
        self._stats.finished(request, None)
        return response

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Sends a request to any model; see ``Inference.infer_stream``. It is counted once."""
        ended = False
        try:
            async with aclosing(self._models.infer_stream(request)) as responses:
                async for response in responses:
                    ended = response.final
                    yield response
        except BaseException as error:
            failure = _failure_of(error)
            self._stats.finished(request, None if ended and failure is Code.CANCELLED else failure)
            raise
        self._stats.finished(request, None)


class _Asked:
    """A request that has no outcome yet. Implements ``Ticket``."""

    __slots__ = ("_done", "_is_over", "_stats", "give_up", "request")

    def __init__(self, request: InferRequest, done: Done, stats: Stats) -> None:
        self.request = request
        self._done = done
        self._stats = stats
        self._is_over = False
        self.give_up: Callable[[], object] = _nothing

    def ended(self, outcome: InferResponse | RoostError) -> None:
        """See ``Done``."""
        if not self._is_over:
            self._is_over, self.give_up = True, _nothing  # what would be given up refers to this
            self._stats.finished(self.request, outcome if isinstance(outcome, RoostError) else None)
            self._done(outcome)

    def cancel(self) -> None:
        """See ``Ticket``."""
        if not self._is_over:
            give_up = self.give_up
            self._is_over, self.give_up = True, _nothing
            self._stats.finished(self.request, Code.CANCELLED)
            give_up()


def _failure_of(error: BaseException) -> RoostError | Code:
    """What a request is counted with that ended so."""
    if isinstance(error, RoostError):
        return error
    return Code.INTERNAL if isinstance(error, Exception) else Code.CANCELLED


def _nothing() -> None:
    """What is there to be given up of a request that has ended."""

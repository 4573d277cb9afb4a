"""Requests that need more than their run, for transports that are told of answers instead of waiting for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from roost.core.errors import Internal, RoostError
from roost.core.requests import Done, InferResponse
from roost.server.unexpected import unexpected


class Later:
    """The ``Ticket`` of a request that a task answers, such as one whose model has to be loaded.

    Args:
        answer: Waits for the response.
        done: See ``DataPlane.begin``.
    """

    __slots__ = ("_done", "_task")

    def __init__(self, answer: Coroutine[Any, Any, InferResponse], done: Done) -> None:
        self._done: Done | None = done
        self._task = asyncio.get_running_loop().create_task(answer)
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._done = None
        self._task.cancel()

    def _ended(self, task: asyncio.Task[InferResponse]) -> None:
        done, self._done = self._done, None
        if task.cancelled():
            if done is not None:  # by the end of the event loop
                done(Internal("the server has cancelled the request"))
            return
        error = task.exception()
        if done is None:
            return
        if error is None:
            done(task.result())
        elif isinstance(error, RoostError):
            done(error)
        else:
            done(unexpected(error, "inference"))

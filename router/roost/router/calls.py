"""What models ask of other models: requests like those of clients, answered over the link of the worker that asks."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from roost.core.errors import Internal, RoostError, Unavailable
from roost.core.frames import Call
from roost.core.requests import InferRequest, InferResponse, RequestContext, RequestedOutput
from roost.router.worker import Worker

log = logging.getLogger(__name__)


class ModelCalls:
    """The calls under way.

    Args:
        group: Owns their tasks.

    Attributes:
        infer: Answers requests, once somebody does.
    """

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.infer: Callable[[InferRequest], Awaitable[InferResponse]] | None = None

    def called(self, worker: Worker, number: int, call: Call | None) -> None:
        """A model on a worker asks another one; None: it does not wait for the answer any more."""
        key = worker.id, number
        if call is not None:
            task = self._tasks[key] = self._group.create_task(self._answer(worker, number, call))
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        elif key in self._tasks:
            self._tasks[key].cancel()

    def lost(self, worker: Worker) -> None:
        """Nobody is left on a worker who waits."""
        for (asker, _), task in list(self._tasks.items()):
            if asker == worker.id:
                task.cancel()

    def stop(self) -> None:
        """Nobody waits any more."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def _answer(self, worker: Worker, number: int, call: Call) -> None:
        link = worker.link
        try:
            answer: Any = (await self._infer(call)).outputs
        except RoostError as error:
            answer = error
        except Exception:
            log.exception("a call of a model failed")
            answer = Internal("the call failed unexpectedly, see the server's log")
        if link is not None:
            link.send_answer(number, answer)

    async def _infer(self, call: Call) -> InferResponse:
        if self.infer is None:
            raise Unavailable("nobody answers calls yet")
        run: Any = call.run  # its tensors are as good as a request's
        deadline = run.deadline_ns / 1e9 if run.deadline_ns else math.inf
        context = RequestContext(time.monotonic(), deadline, caller="a model")
        outputs = [RequestedOutput(name) for name in run.outputs]
        request = InferRequest(call.model, call.version, context, list(run.inputs), outputs, parameters=run.parameters)
        return await self.infer(request)

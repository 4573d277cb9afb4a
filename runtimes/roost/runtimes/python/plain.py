"""Calls models that derive from ``roost.runtimes.Model``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from roost.core.errors import Internal, InvalidArgument
from roost.core.tensors import Signature, Tensor
from roost.runtimes.python.contract import Answers, signature_of_config, specs_of_class
from roost.runtimes.python.job import Job
from roost.runtimes.python.model import Model, Request
from roost.runtimes.python.opening import Order
from roost.runtimes.python.trouble import load_error

_WAITING_STREAMS = 64
"""So many streams of an async model may wait for their clients at the same time without holding up others."""


class PlainModel:
    """One model of a class that derives from ``Model``.

    Args:
        cls: The class.
        order: What is to be served.

    Raises:
        RoostError: If an object of it can't be made, or it does not say what it takes and gives.
    """

    def __init__(self, cls: type[Model], order: Order) -> None:
        configured = signature_of_config(order.config)
        inputs = configured.inputs or specs_of_class(cls.inputs, "inputs")
        outputs = configured.outputs or specs_of_class(cls.outputs, "outputs")
        if not inputs or not outputs:
            which = "inputs" if not inputs else "outputs"
            raise InvalidArgument(f"neither the configuration nor the model's class lists its {which}")
        self.signature = Signature(inputs, outputs)
        self._answers = Answers(outputs)
        try:
            model = cls()
        except BaseException as error:
            raise load_error(error, order.root, cls.__name__) from None
        model.name, model.version, model.folder = order.name, order.version, Path(order.root)
        model.parameters, model.threads = order.parameters, order.threads
        self._model = model
        predict = inspect.unwrap(model.predict)
        self.is_async = inspect.iscoroutinefunction(predict) or inspect.isasyncgenfunction(predict)
        self._waiting = ThreadPoolExecutor(_WAITING_STREAMS, "wait") if self.is_async else None

    def load(self) -> Awaitable[Any] | None:
        """See ``Served``."""
        return _awaitable(self._model.load())

    def unload(self) -> Awaitable[Any] | None:
        """See ``Served``."""
        return _awaitable(self._model.unload())

    def run(self, job: Job) -> None:
        """See ``Served``."""
        request = _request_of(job)
        job.handle.begin_infer()
        answer = self._model.predict(request)
        if not isinstance(answer, Iterator):
            self._end(job, answer)
            return
        try:
            self._stream(job, answer)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()

    async def run_async(self, job: Job) -> None:
        """See ``Served``."""
        request = _request_of(job)
        job.handle.begin_infer()
        answer = self._model.predict(request)
        if isinstance(answer, AsyncIterator):
            await self._stream_async(job, answer)
        else:
            self._end(job, await answer)

    def _end(self, job: Job, answer: object) -> None:
        job.handle.end_infer()
        job.end(self._answers.tensors(answer, job.wanted))

    def _stream(self, job: Job, answers: Iterator[object]) -> None:
        if not job.decoupled:
            self._end(job, _only(list(_two(answers))))
            return
        for answer in answers:
            outputs = self._tensors(job, answer)
            job.wait_for_credit(outputs)
            job.emit(outputs)
        job.end()

    async def _stream_async(self, job: Job, answers: AsyncIterator[object]) -> None:
        try:
            found: list[object] = []
            async for answer in answers:
                if job.decoupled:
                    outputs = self._tensors(job, answer)
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self._waiting, job.wait_for_credit, outputs)
                    job.emit(outputs)
                else:
                    found.append(answer)
                    if len(found) > 1:
                        break
            if job.decoupled:
                job.end()
            else:
                self._end(job, _only(found))
        finally:
            close = getattr(answers, "aclose", None)
            if close is not None:
                await close()

    def _tensors(self, job: Job, answer: object) -> list[Tensor]:
        outputs = self._answers.tensors(answer, job.wanted, may_miss=True)
        if not outputs:
            raise Internal("the model gave a response without outputs")
        return outputs


def _request_of(job: Job) -> Request:
    handle = job.handle
    return Request(job.inputs(), handle.parameters, job.wanted, lambda: handle.cancelled, job.id)


def _awaitable(value: Any) -> Awaitable[Any] | None:
    return value if inspect.isawaitable(value) else None


def _two(answers: Iterator[object]) -> Iterator[object]:
    for _, answer in zip(range(2), answers, strict=False):
        yield answer


def _only(found: list[object]) -> object:
    if len(found) == 1:
        return found[0]
    raise Internal("the model did not answer exactly once, and its configuration does not call it decoupled")

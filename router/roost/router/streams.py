"""Streams of decoupled models, the router's end: responses wait here until their client takes them.

The worker stops once ``WINDOW`` is untaken. So what a client that does not read can hold is bounded, and nothing has to
stop reading the link, which other requests share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from roost.core.errors import RoostError, Unimplemented
from roost.core.frames import Credit
from roost.core.requests import InferResponse

WINDOW = Credit(responses=16, bytes=1 << 20)
"""What a stream may hold at most, but for one response that is larger and for the last one, which nothing waits for."""


class CreditLink(Protocol):
    """What streams say to a worker."""

    def send_credit(self, number: int, credit: Credit) -> None:
        """Lets the stream of a run go on."""


class ResponseStream:
    """The responses to one request that were not taken yet."""

    __slots__ = ("_arrived", "_link", "_outcome", "_owed_bytes", "_owed_responses", "_run", "_untaken")

    def __init__(self) -> None:
        self._outcome: InferResponse | RoostError | None = None
        self._arrived = asyncio.Event()
        self._untaken: deque[InferResponse] = deque()
        self._link: CreditLink | None = None
        self._run = 0
        self._owed_responses = 0
        self._owed_bytes = 0

    def begin(self, link: CreditLink, run: int) -> Credit:
        """The request goes to a worker; returns the credit to send along."""
        self._link = link
        self._run = run
        return WINDOW

    def end(self, outcome: InferResponse | RoostError) -> None:
        """The last response has come, or the stream has failed; see ``roost.core.requests.Done``."""
        self._outcome = outcome
        self._arrived.set()

    def put(self, response: InferResponse) -> None:
        """A response has come that is not the last one."""
        self._untaken.append(response)
        self._arrived.set()

    async def take(self) -> InferResponse:
        """Waits for the next response; the last one is ``final``.

        Raises:
            RoostError: What the stream ended with, once all that came before was taken.
        """
        while not self._untaken:
            if isinstance(self._outcome, InferResponse):
                return self._outcome
            if self._outcome is not None:
                raise self._outcome
            self._arrived.clear()
            await self._arrived.wait()
        response = self._untaken.popleft()
        self._owe(response)
        return response

    def close(self) -> None:
        """Nobody takes anything any more."""
        self._untaken.clear()
        self._outcome = None

    def _owe(self, response: InferResponse) -> None:
        """Grants what was taken, half a window at a time: a frame for each response would cost as much as it does."""
        if self._outcome is not None:
            return
        self._owed_responses += 1
        self._owed_bytes += sum(memoryview(tensor.data).nbytes for tensor in response.outputs)
        if self._owed_responses * 2 < WINDOW.responses and self._owed_bytes * 2 < WINDOW.bytes:
            return
        assert self._link is not None
        self._link.send_credit(self._run, Credit(self._owed_responses, self._owed_bytes))
        self._owed_responses = self._owed_bytes = 0


def needs_stream(model: str) -> Unimplemented:
    """What is said of a request to a decoupled model, or an ensemble with one, that wants exactly one answer."""
    return Unimplemented(
        f"model '{model}' may answer a request more or less than once, and this call doesn't support models with "
        "decoupled transaction policy"
    )

"""The worker's side of what a model asks of other models: each call waits for its answer in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

from roost.core.errors import Code
from roost.core.frames import error_frame, pack_header, parse_call
from roost.core.tensors import Buffer
from roost.runtimes.protocol import Calls


class Gone(Exception):
    """The process has ended, or can't be spoken with."""


class Asking:
    """The calls of one process.

    Args:
        calls: The way to other models, if there is one.
        send: Sends a frame to the process; raises ``Gone`` if it is not there any more.
    """

    def __init__(self, calls: Calls | None, send: Callable[[Sequence[Buffer]], None]) -> None:
        self._calls = calls
        self._send = send
        self._under_way: set[int] = set()

    def begin(self, number: int, payload: memoryview) -> None:
        """Has a call answered; returns at once.

        Raises:
            FrameError: If it is none.
        """
        parse_call(payload)
        if self._calls is None:
            message = "other models can't be asked here"
            self._send([error_frame(number, Code.UNIMPLEMENTED, message)])
            return
        arguments = (self._calls, number, payload)
        threading.Thread(target=self._ask, args=arguments, name="model-call", daemon=True).start()

    def drop(self) -> None:
        """Nobody waits for answers any more."""
        if self._calls is not None:
            for call in [*self._under_way]:
                self._calls.drop(call)

    def _ask(self, calls: Calls, number: int, payload: memoryview) -> None:
        asked: list[int] = []

        def began(call: int) -> None:
            asked.append(call)
            self._under_way.add(call)

        type_, answer = calls.ask(payload, began)
        self._under_way.difference_update(asked)
        with contextlib.suppress(Gone):
            self._send([pack_header(type_, number, len(answer)), answer])

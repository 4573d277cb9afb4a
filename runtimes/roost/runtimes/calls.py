"""What models in this worker ask of other models: it goes to the router, which answers as it answers anybody."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import Callable

from roost.core.errors import Code
from roost.core.frames import FrameType, Header, control_frame, pack_header
from roost.core.tensors import Buffer
from roost.runtimes.link import Link


class RouterCalls:
    """The calls under way; see ``roost.runtimes.protocol.Calls``. Safe to use from several threads.

    Args:
        link: The link to the router.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[tuple[FrameType, bytes]]] = {}

    def ask(self, payload: Buffer, began: Callable[[int], object]) -> tuple[FrameType, Buffer]:
        """See ``Calls``."""
        answers: queue.SimpleQueue[tuple[FrameType, bytes]] = queue.SimpleQueue()
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = answers
        began(number)
        self._link.send([pack_header(FrameType.CALL, number, len(payload)), payload])
        return answers.get()

    def drop(self, number: int) -> None:
        """See ``Calls``."""
        with self._lock:
            answers = self._waiting.pop(number, None)
        if answers is not None:
            given_up = {"code": Code.CANCELLED.value, "message": "the call was given up"}
            answers.put((FrameType.ERROR, json.dumps(given_up).encode()))
            self._link.send([control_frame(FrameType.CANCEL, number)])

    def answered(self, header: Header, payload: memoryview) -> None:
        """The router has answered a call."""
        with self._lock:
            answers = self._waiting.pop(header.request, None)
        if answers is not None:
            answers.put((header.type, bytes(payload)))

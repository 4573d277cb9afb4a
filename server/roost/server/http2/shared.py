"""What the connections of an event loop have in common: where sockets are read into, and when they are written to."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

# As much as event loops read at once themselves; it stays in the processor's cache.
READ_BYTES: Final = 262_144


class Flushable(Protocol):
    """Something that has gathered what it sends."""

    def flush(self) -> None:
        """Hands it to the socket."""


class Shared:
    """What connections share.

    A batch has answers for many calls. Written as soon as each is encoded, each costs a system call and wakes a
    process on the other side; so connections gather what they send, and all of it goes out at the end of the turn of
    the event loop, with one write for each connection.

    Attributes:
        room: Where sockets are read into; what is there is used before the next read, of whichever connection.
    """

    __slots__ = ("_loop", "_outputs", "room")

    def __init__(self) -> None:
        self.room = memoryview(bytearray(READ_BYTES))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outputs: list[Flushable] = []

    def flush_soon(self, output: Flushable) -> None:
        """Has something flushed at the end of this turn of the event loop."""
        if not self._outputs:
            loop = self._loop
            if loop is None:  # asked for once, as it takes a system call
                loop = self._loop = asyncio.get_running_loop()
            loop.call_soon(self._flush)
        self._outputs.append(output)

    def _flush(self) -> None:
        outputs, self._outputs = self._outputs, []
        for output in outputs:
            output.flush()

"""Bodies of the lean path that do not come in one piece with their heads."""

from __future__ import annotations

import asyncio
from typing import Protocol

import numpy as np
from roost.core.tensors import Buffer
from roost.server.rest.lean_heads import Head


class BodyOwner(Protocol):
    """The connection that a body arrives on."""

    def body_arrived(self) -> None:
        """All of the body is there."""

    def eof_received(self) -> None:
        """The client sends no more."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""

    def pause_writing(self) -> None:
        """The transport's buffer is full."""

    def resume_writing(self) -> None:
        """It has room again."""


class ArrivingBody:
    """A body that is paid for and not all there.

    Args:
        head_bytes: The bytes of its head.
        head: What they say.
        received: When they came.
    """

    __slots__ = ("_data", "_position", "head", "head_bytes", "received")

    def __init__(self, head_bytes: bytes, head: Head, received: float) -> None:
        self.head_bytes = head_bytes
        self.head = head
        self.received = received
        self._data: memoryview | bytes = b""
        self._position = 0

    @property
    def missing_bytes(self) -> int:
        """How much is still to come."""
        return self.head.body_bytes - self._position

    def take(self) -> memoryview | bytes:
        """All that has come; it is not held here any longer, whoever still refers to this (transports do)."""
        data, self._data = self._data, b""
        return data

    def room(self) -> memoryview:
        """Where what is still to come may be written."""
        if not isinstance(self._data, memoryview):
            # Unlike a bytearray this touches no page before data comes, so an announcement alone takes no memory.
            self._data = np.empty(self.head.body_bytes, np.uint8).data
        return self._data[self._position :]

    def add(self, piece: Buffer) -> None:
        """Takes bytes that have come, no more than are missing."""
        if len(piece) == self.head.body_bytes:
            self._data = bytes(piece)
        elif piece:
            self.room()[: len(piece)] = piece
        self._position += len(piece)

    def filled(self, size_bytes: int) -> None:
        """Says that so many bytes were written to ``room()``."""
        self._position += size_bytes


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands in for a connection while a large body arrives: the socket is read right into its memory."""

    def __init__(self, owner: BodyOwner, body: ArrivingBody) -> None:
        self._owner = owner
        self._body = body

    def get_buffer(self, sizehint: int) -> memoryview:
        """No more than the rest of the body, so that what follows it is left to the connection."""
        return self._body.room()

    def buffer_updated(self, nbytes: int) -> None:
        """Some of it is there."""
        self._body.filled(nbytes)
        if not self._body.missing_bytes:
            self._owner.body_arrived()

    def eof_received(self) -> None:
        """The client sends no more."""
        self._owner.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """It has room again."""
        self._owner.resume_writing()

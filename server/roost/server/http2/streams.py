"""Streams of a connection, as it sees them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from roost.core.tensors import Buffer

_SMALL_PIECE_BYTES: Final = 512


class Stream:
    """One stream of a connection.

    Attributes:
        stream_id: Its number.
        granted_bytes: What its client lets it send beyond the window that streams begin with, less what it has sent.
    """

    __slots__ = ("granted_bytes", "stream_id")

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.granted_bytes = 0


class IncomingStream(Stream):
    """A stream whose data has yet to come, or comes in pieces."""

    __slots__ = ()

    @abstractmethod
    def on_data(self, piece: Buffer, counted_bytes: int, is_last: bool) -> None:
        """Takes data.

        Args:
            piece: The data, which is written over after this call.
            counted_bytes: How much of the window it used up.
            is_last: Whether the client sends nothing else.
        """

    @abstractmethod
    def on_reset(self) -> None:
        """The client has given up, or the connection is lost; nothing can be sent any more."""


class FillingStream(IncomingStream):
    """A stream with memory for a large message, into which many frames can go at once."""

    __slots__ = ()

    @abstractmethod
    def on_frames(self, data: memoryview, at: int, length: int, count: int) -> int:
        """Takes up to so many DATA frames of one length without padding, none of them the last or empty.

        Args:
            data: What was read; see ``on_data``.
            at: Where the head of the first frame begins in it.
            length: The length of each.
            count: How many there are.

        Returns:
            How many it has taken: no more than what comes before the message's end, and than it has asked for.
        """


def keep_piece(pieces: list[Buffer], piece: Buffer) -> None:
    """Copies data behind what came before it; small pieces as one, or each would take more memory than is in it."""
    if not pieces or len(piece) >= _SMALL_PIECE_BYTES:
        pieces.append(bytes(piece))
    elif type(pieces[-1]) is bytearray:
        pieces[-1] += piece
    else:
        pieces.append(bytearray(piece))

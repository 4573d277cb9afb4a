"""What a connection sends: frames within the windows that its client grants, and no faster than it reads.

Control frames go out at once, answers as far as the windows reach; the rest waits, as views on the answers' own
memory, and streams with something to send take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from roost.core.tensors import Buffer
from roost.server.http2 import frames
from roost.server.http2.frames import ConnectionFailed, ErrorCode

# So much of one stream goes out before the next one has its turn.
_TURN_BYTES: Final = 65_536


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


class _Waiting:
    """What a stream has yet to send."""

    __slots__ = ("end", "on_sent", "pieces", "stream")

    def __init__(self, stream: Stream, pieces: Sequence[Buffer], end: bytes, on_sent: Callable[[], None]) -> None:
        self.stream = stream
        self.pieces = deque(memoryview(piece).cast("B") for piece in pieces if len(piece))
        self.end = end
        self.on_sent = on_sent


class Output:
    """The sending side of a connection.

    Args:
        write: Hands bytes to the socket.
        write_all: The same for several.
    """

    def __init__(self, write: Callable[[Buffer], None], write_all: Callable[[Sequence[Buffer]], None]) -> None:
        self.write = write
        self._write_all = write_all
        self.window_bytes = frames.DEFAULT_WINDOW
        self.stream_window_bytes = frames.DEFAULT_WINDOW
        self.frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.is_paused = False
        self.answers = 0  # how often something other than control frames was sent
        self._waiting: deque[_Waiting] = deque()
        self._stalled: dict[int, _Waiting] = {}  # those whose own window is used up

    @property
    def is_empty(self) -> bool:
        """Whether everything was handed to the socket."""
        return not self._waiting and not self._stalled

    def fits(self, stream: Stream, size_bytes: int) -> bool:
        """Whether so many bytes can go out at once in one frame."""
        return (
            size_bytes <= self.frame_bytes
            and size_bytes <= self.window_bytes
            and size_bytes <= self.stream_window_bytes + stream.granted_bytes
            and not self.is_paused
            and not self._waiting
        )

    def send(
        self, stream: Stream, first: bytes, pieces: Sequence[Buffer], end: bytes, on_sent: Callable[[], None]
    ) -> None:
        """Sends a stream's data as its client takes it.

        Args:
            stream: Whose it is.
            first: Frames that go before it, at once.
            pieces: The data; it must not change any more.
            end: Frames that go behind it.
            on_sent: Called when all of it was handed to the socket; perhaps at once.
        """
        if first:
            self.write(first)
        self._waiting.append(_Waiting(stream, pieces, end, on_sent))
        self.pump()

    def forget(self, stream: Stream) -> None:
        """Drops what a stream that has ended has yet to send."""
        self._stalled.pop(stream.stream_id, None)
        if self._waiting:
            self._waiting = deque(item for item in self._waiting if item.stream is not stream)

    def forget_all(self) -> None:
        """Drops what all streams have yet to send."""
        self._waiting.clear()
        self._stalled.clear()

    def grant(self, stream: Stream, increment: int) -> None:
        """Lets a stream send more.

        Raises:
            OverflowError: If its window becomes larger than windows can be.
        """
        stream.granted_bytes += increment
        if self.stream_window_bytes + stream.granted_bytes > frames.MAX_WINDOW:
            raise OverflowError
        waiting = self._stalled.pop(stream.stream_id, None)
        if waiting is not None:
            self._waiting.append(waiting)
            self.pump()

    def grant_all(self, increment: int) -> None:
        """Lets the connection send more.

        Raises:
            ConnectionFailed: If its window becomes larger than windows can be.
        """
        self.window_bytes += increment
        if self.window_bytes > frames.MAX_WINDOW:
            raise ConnectionFailed(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too large")
        self.pump()

    def resize_windows(self, size_bytes: int) -> None:
        """Changes the window that streams begin with, that of open ones included."""
        is_larger = size_bytes > self.stream_window_bytes
        self.stream_window_bytes = size_bytes
        if not is_larger:
            return  # nobody who waits can send more than before
        self._waiting.extend(self._stalled.values())
        self._stalled.clear()
        self.pump()

    def resume(self) -> None:
        """Goes on after the client has read."""
        self.is_paused = False
        self.pump()

    def pump(self) -> None:
        """Sends what windows and socket take."""
        while self._waiting and not self.is_paused:
            waiting = self._waiting.popleft()
            room = min(self.stream_window_bytes + waiting.stream.granted_bytes, _TURN_BYTES)
            if waiting.pieces:
                if room <= 0:
                    self._stalled[waiting.stream.stream_id] = waiting
                    continue
                if self.window_bytes <= 0:
                    self._waiting.appendleft(waiting)
                    return
                self._send_turn(waiting, min(room, self.window_bytes))
            if waiting.pieces:
                self._waiting.append(waiting)
            else:
                if waiting.end:
                    self.write(waiting.end)
                waiting.on_sent()

    def _send_turn(self, waiting: _Waiting, room: int) -> None:
        self.window_bytes -= room
        waiting.stream.granted_bytes -= room
        out: list[Buffer] = []
        while room and waiting.pieces:
            count, pieces = _take(waiting.pieces, min(room, self.frame_bytes))
            out.append(frames.head(count, frames.DATA, 0, waiting.stream.stream_id))
            out += pieces
            room -= count
        self.window_bytes += room
        waiting.stream.granted_bytes += room
        self.answers += 1
        self._write_all(out)


def _take(pieces: deque[memoryview], count: int) -> tuple[int, list[memoryview]]:
    """Takes up to so many bytes off the front."""
    taken: list[memoryview] = []
    left = count
    while left and pieces:
        piece = pieces[0]
        if len(piece) <= left:
            pieces.popleft()
        else:
            pieces[0] = piece[left:]
            piece = piece[:left]
        taken.append(piece)
        left -= len(piece)
    return count - left, taken

"""What a connection sends: frames within the windows that its client grants, and no faster than it reads.

Control frames and answers, as far as the windows reach, are gathered and go out together at the end of the turn of the
event loop; the rest waits, as views on the answers' own memory, and streams with something to send take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from roost.core.tensors import Buffer
from roost.server.http2 import frames
from roost.server.http2.frames import ConnectionFailed, ErrorCode
from roost.server.http2.streams import Stream

# So much of one stream goes out before the next one has its turn, and so much of one that is alone at once.
_TURN_BYTES: Final = 65_536
_ALONE_BYTES: Final = 2**18
# No more is gathered, however much a client asks in one turn of the event loop.
_MAX_GATHERED_BYTES: Final = 65_536


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
        flush_soon: Has it flushed at the end of this turn of the event loop.
    """

    def __init__(
        self,
        write: Callable[[Buffer], None],
        write_all: Callable[[Sequence[Buffer]], None],
        flush_soon: Callable[[Output], None],
    ) -> None:
        self._write = write
        self._write_all = write_all
        self._flush_soon = flush_soon
        self._gathered: list[Buffer] = []
        self._gathered_bytes = 0
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

    def write(self, data: bytes) -> None:
        """Sends frames with whatever else is sent in this turn of the event loop."""
        if not self._gathered:
            self._flush_soon(self)
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes > _MAX_GATHERED_BYTES:
            self.flush()

    def send_whole(self, pieces: Iterable[Buffer], window_bytes: int) -> None:
        """Sends the frames of an answer that ``fits``, which take so much of the connection's window."""
        self.window_bytes -= window_bytes
        self.answers += 1
        if not self._gathered:
            self._flush_soon(self)
        self._gathered += pieces
        self._gathered_bytes += window_bytes
        if self._gathered_bytes > _MAX_GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hands what was gathered to the socket."""
        gathered = self._gathered
        if gathered:
            self._gathered, self._gathered_bytes = [], 0
            self._write(gathered[0] if len(gathered) == 1 else b"".join(gathered))

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
        """Drops all that was not handed to the socket, and what still comes: no socket is there any more."""
        self._write = self._write_all = _drop
        self._gathered.clear()
        self._gathered_bytes = 0
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
            turn_bytes = _TURN_BYTES if self._waiting else _ALONE_BYTES
            room = min(self.stream_window_bytes + waiting.stream.granted_bytes, turn_bytes)
            if waiting.pieces:
                if room <= 0:
                    self._stalled[waiting.stream.stream_id] = waiting
                    continue
                if self.window_bytes <= 0:
                    self._waiting.appendleft(waiting)
                    return
                self._send_turn(waiting, min(room, self.window_bytes))
            elif waiting.end:
                self.write(waiting.end)
            if waiting.pieces:
                self._waiting.append(waiting)
            else:
                waiting.on_sent()

    def _send_turn(self, waiting: _Waiting, room: int) -> None:
        """Sends up to so many bytes, behind what was gathered."""
        self.window_bytes -= room
        waiting.stream.granted_bytes -= room
        out, self._gathered, self._gathered_bytes = self._gathered, [], 0
        room -= _cut(waiting.pieces, room, self.frame_bytes, waiting.stream.stream_id, out)
        if waiting.end and not waiting.pieces:
            out.append(waiting.end)
        self.window_bytes += room
        waiting.stream.granted_bytes += room
        self.answers += 1
        self._write_all(out)


def _drop(_: object) -> None:
    """Takes what nobody gets."""


def _cut(pieces: deque[memoryview], room: int, frame_bytes: int, stream_id: int, out: list[Buffer]) -> int:
    """Makes frames of up to so many bytes off the front; returns how many these were."""
    left = room
    full = frames.head(frame_bytes, frames.DATA, 0, stream_id)
    while left and pieces:
        piece = pieces[0]
        run_bytes = min(len(piece), left) // frame_bytes * frame_bytes
        if run_bytes:
            for at in range(0, run_bytes, frame_bytes):
                out += (full, piece[at : at + frame_bytes])
            pieces[0] = piece[run_bytes:]
            if len(piece) == run_bytes:
                pieces.popleft()
            left -= run_bytes
        else:
            count, taken = _take(pieces, min(left, frame_bytes))
            out.append(frames.head(count, frames.DATA, 0, stream_id))
            out += taken
            left -= count
    return room - left


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

"""Where messages end in what a connection gives to the parser, so that it is known when the parser is between two.

The parser does not tell. Its messages and their bodies' lengths do, as long as all of it is counted; where that is not
possible the connection stays with the parser.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import hdrs
from aiohttp.http_parser import RawRequestMessage
from roost.server.rest.lean_heads import HeadMemo

_END = b"\r\n\r\n"
_UNKNOWN = -1


class Framing:
    """The place of one connection's parser in its message.

    Args:
        heads: Learns heads.

    Attributes:
        between: Whether the parser has got all of the last message, and nothing of another.
    """

    __slots__ = ("_heads", "_missing_bytes", "_tail", "between")

    def __init__(self, heads: HeadMemo) -> None:
        self._heads = heads
        self._missing_bytes = 0
        self._tail = b""
        self.between = True

    def lose(self) -> None:
        """From now on nobody knows where the parser is."""
        self._missing_bytes = _UNKNOWN
        self.between = False

    def fed(self, data: bytes, messages: Iterable[object]) -> None:
        """Counts what the parser got.

        Args:
            data: What it got.
            messages: What it made of it: the messages whose heads ended there.
        """
        if self._missing_bytes == _UNKNOWN:
            return
        position = self._missing_bytes
        for message in messages:
            start = position
            end = self._end_of_head(data, start)
            if end < 0 or not isinstance(message, RawRequestMessage) or message.chunked or message.upgrade:
                self.lose()
                return
            if not self._tail:
                self._heads.learn(data[start:end], message)
            self._tail = b""
            position = end + int(message.headers.get(hdrs.CONTENT_LENGTH, "0"))
        self._missing_bytes = max(0, position - len(data))
        rest = data[position:]
        if self._tail or rest:
            # The beginning of a head; its end may be cut apart.
            rest = self._tail + rest
            if _END in rest or not rest[:1].isupper():
                self.lose()
                return
            self._tail = rest if len(rest) <= 4 else rest[:1] + rest[-3:]
        self.between = not self._missing_bytes and not self._tail

    def _end_of_head(self, data: bytes, start: int) -> int:
        if start > len(data):
            return -1
        if self._tail:
            found = (self._tail + data).find(_END) - len(self._tail)
        elif data[start : start + 1].isupper():
            found = data.find(_END, start)
        else:
            # Empty lines before a request, which the parser skips.
            return -1
        return found + len(_END) if found + len(_END) > start else -1

"""Header compression, RFC 7541: decodes what clients send; what the server sends is written without any state."""

from __future__ import annotations

from collections import deque
from typing import Final

from roost.server.http2 import huffman

Header = tuple[bytes, bytes]

_TABLE_BYTES: Final = 4096
_ENTRY_BYTES: Final = 32  # what an entry counts besides its name and value
_MAX_INTEGER: Final = 2**28

_STATIC: Final[tuple[Header, ...]] = tuple(
    (name, value)
    for name, _, value in (
        entry.partition(b"=")
        for entry in (
            b":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|"
            b":status=204|:status=206|:status=304|:status=400|:status=404|:status=500|accept-charset|"
            b"accept-encoding=gzip, deflate|accept-language|accept-ranges|accept|access-control-allow-origin|age|"
            b"allow|authorization|cache-control|content-disposition|content-encoding|content-language|content-length|"
            b"content-location|content-range|content-type|cookie|date|etag|expect|expires|from|host|if-match|"
            b"if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link|location|max-forwards|"
            b"proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|server|set-cookie|"
            b"strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
        ).split(b"|")
    )
)


class HeaderDecoder:
    """Decodes the header blocks of one connection, which must come in their order.

    Args:
        max_list_bytes: Limit of a list, counted as RFC 9113 does.

    Attributes:
        changes: How often the table has changed; a block means the same as before as long as it does not.
    """

    __slots__ = ("_entries", "_limit_bytes", "_max_list_bytes", "_size_bytes", "changes")

    def __init__(self, max_list_bytes: int) -> None:
        self._max_list_bytes = max_list_bytes
        self._entries: deque[Header] = deque()
        self._size_bytes = 0
        self._limit_bytes = _TABLE_BYTES
        self.changes = 0

    def decode(self, block: bytes) -> list[Header] | None:
        """Decodes a block; None if the list is over the limit.

        Raises:
            ValueError: If the block is damaged; the connection can't go on then.
        """
        try:
            return self._decode(block)
        except IndexError:
            raise ValueError("a header block is cut short") from None

    def _decode(self, block: bytes) -> list[Header] | None:
        headers: list[Header] = []
        at = list_bytes = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 0x7F)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:
                if headers or list_bytes:
                    raise ValueError("a table size changes in the middle of a header block")
                size_bytes, at = _integer(block, at, 0x1F)
                self._resize(size_bytes)
                continue
            else:
                is_kept = first & 0x40
                index, at = _integer(block, at, 0x3F if is_kept else 0x0F)
                name, at = (self._entry(index)[0], at) if index else _string(block, at)
                value, at = _string(block, at)
                header = (name, value)
                if is_kept:
                    self._keep(header)
            list_bytes += len(header[0]) + len(header[1]) + _ENTRY_BYTES
            if list_bytes <= self._max_list_bytes:
                headers.append(header)
        return headers if list_bytes <= self._max_list_bytes else None

    def _entry(self, index: int) -> Header:
        if not index:
            raise ValueError("a header has the index 0")
        if index <= len(_STATIC):
            return _STATIC[index - 1]
        return self._entries[index - len(_STATIC) - 1]

    def _keep(self, header: Header) -> None:
        self.changes += 1
        self._size_bytes += len(header[0]) + len(header[1]) + _ENTRY_BYTES
        self._entries.appendleft(header)
        self._evict()

    def _resize(self, size_bytes: int) -> None:
        if size_bytes > _TABLE_BYTES:
            raise ValueError("a header table is larger than allowed")
        self.changes += 1
        self._limit_bytes = size_bytes
        self._evict()

    def _evict(self) -> None:
        while self._size_bytes > self._limit_bytes:
            name, value = self._entries.pop()
            self._size_bytes -= len(name) + len(value) + _ENTRY_BYTES


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Reads an integer whose first bits are in the byte at ``at``; gives the position behind it."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if value > _MAX_INTEGER or shift > 28:
            raise ValueError("a number in a header block is too large")
        if byte < 0x80:
            return value, at
        shift += 7


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    is_packed = block[at] & 0x80
    length, at = _integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise IndexError
    return (huffman.decode(block[at:end]) if is_packed else block[at:end]), end


def literal(name: bytes, value: bytes) -> bytes:
    """Writes a header that is neither packed nor remembered."""
    return b"\x00" + _prefixed(name) + _prefixed(value)


def _prefixed(text: bytes) -> bytes:
    length = len(text)
    if length < 0x7F:
        return bytes((length,)) + text
    out = bytearray(b"\x7f")
    length -= 0x7F
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + text

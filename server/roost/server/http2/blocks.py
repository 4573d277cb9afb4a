"""Header blocks of one connection: put together, unpacked, and remembered with what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from roost.server.http2 import frames
from roost.server.http2.frames import ConnectionFailed, ErrorCode
from roost.server.http2.hpack import Header, HeaderDecoder

MAX_LIST_BYTES: Final = 16_384
_MAX_BLOCK_BYTES: Final = 65_536
# Calls of one client have the same few blocks; longer ones are seldom the same.
_MEMORY: Final = 32
_MAX_KNOWN_BYTES: Final = 512

H = TypeVar("H")


class HeaderBlocks(Generic[H]):
    """Makes of header blocks, in the order in which they come, what they mean.

    Args:
        meaning: What a list of headers means: a function of them alone, since it is remembered; None is one that is
            too large.

    Attributes:
        open_id: The stream whose block is not complete; 0 if there is none.
        open_flags: The flags of its first frame.
    """

    def __init__(self, meaning: Callable[[list[Header] | None], H]) -> None:
        self._meaning = meaning
        self._decoder = HeaderDecoder(MAX_LIST_BYTES)
        self._known: dict[bytes, H] = {}  # as long as the decoder's table does not change
        self._known_at = 0
        self.open_id = 0
        self.open_flags = 0
        self._block = bytearray()  # which grows without being copied, however small the parts are

    def begin(self, stream_id: int, flags: int, block: bytes) -> None:
        """Takes the first part of a block that has others."""
        self.open_id, self.open_flags, self._block = stream_id, flags, bytearray(block)

    def go_on(self, flags: int, part: bytes) -> bytes | None:
        """Takes the next part of a block; gives the whole if it was the last.

        Raises:
            ConnectionFailed: If there is no such block, or it is too large.
        """
        self._block += part
        is_last = flags & frames.END_HEADERS
        if not self.open_id or not (part or is_last) or len(self._block) > _MAX_BLOCK_BYTES:
            raise ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large or out of place")
        if not is_last:
            return None
        block, self._block, self.open_id = bytes(self._block), bytearray(), 0
        return block

    def read(self, block: bytes) -> H:
        """What a whole block means.

        Raises:
            ConnectionFailed: If it is damaged.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        try:
            headers = self._decoder.decode(block)
        except ValueError as error:
            raise ConnectionFailed(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        meaning = self._meaning(headers)
        if self._known_at != self._decoder.changes or len(self._known) >= _MEMORY:
            self._known.clear()
        if self._known_at == self._decoder.changes and len(block) <= _MAX_KNOWN_BYTES:
            self._known[block] = meaning
        self._known_at = self._decoder.changes
        return meaning

"""Content codings of requests and answers: gzip and deflate (the zlib format), in bounded steps.

zlib releases the interpreter's lock for large inputs, so large bodies go through threads, one step at a time:
a request that is dropped leaves at most one step behind.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

from roost.core.errors import InvalidArgument
from roost.core.tensors import Buffer
from roost.server.offload import Offload
from roost.server.rest.errors import Refusal

IDENTITY = "identity"
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Setting up a full window takes four times as long as compressing a small answer.
_SMALL_BYTES = 4096
_SMALL_WINDOW_BITS = {"gzip": 16 + 12, "deflate": 12}
_SMALL_MEMORY_LEVEL = 5
STEP_BYTES = 256 * 1024
_INLINE_BYTES = 64 * 1024
# Answers are compressed while the client waits: the fastest level saves most of the bytes.
_LEVEL = 1


def request_coding(content_encoding: str | None) -> str:
    """The coding of a request body.

    Raises:
        Refusal: 501 if it is not one that is understood.
    """
    if not content_encoding or content_encoding == IDENTITY:
        return IDENTITY
    if content_encoding not in _WINDOW_BITS:
        raise Refusal(
            501,
            "Unsupported compression type: use gzip, deflate or identity",
            headers={"Accept-Encoding": "gzip, deflate"},
            close=True,
        )
    return content_encoding


@lru_cache(maxsize=128)
def preferred_coding(accept_encoding: str) -> str:
    """The coding that a client likes best: the highest q-value, then the first named; unknown ones don't count."""
    best, best_q = IDENTITY, 0.0
    for item in accept_encoding.split(","):
        coding, _, rest = item.partition(";")
        coding = coding.strip()
        if coding != IDENTITY and coding not in _WINDOW_BITS:
            continue
        q = _quality(rest)
        if q > best_q:
            best, best_q = coding, q
    return best


def _quality(text: str) -> float:
    for parameter in text.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                q = float(value)
            except ValueError:
                return 0.0
            return q if 0.0 <= q <= 1.0 else 0.0
    return 1.0


class Inflater:
    """Undoes a coding in steps of bounded output.

    Args:
        coding: gzip or deflate.
        data: The compressed body; must stay as it is meanwhile.
    """

    def __init__(self, coding: str, data: memoryview) -> None:
        self._coding = coding
        self._inflater = zlib.decompressobj(_WINDOW_BITS[coding])
        self._data = data
        self._position = 0
        self._tail: Buffer = b""

    @property
    def done(self) -> bool:
        """Whether the whole body came out."""
        return self._inflater.eof

    def step(self) -> bytes:
        """The next bytes, at most ``STEP_BYTES``.

        Raises:
            InvalidArgument: If the body is not of this coding, ends early or has something behind its end.
        """
        # Slices of the input, because zlib copies what it did not consume after every step.
        if not self._tail:
            self._tail = self._data[self._position : self._position + STEP_BYTES]
            self._position += len(self._tail)
        fed = len(self._tail)
        try:
            piece = self._inflater.decompress(self._tail, STEP_BYTES)
        except zlib.error:
            zlib_format = " (the zlib format)" if self._coding == "deflate" else ""
            raise InvalidArgument(f"the body is not valid {self._coding}{zlib_format}") from None
        self._tail = self._inflater.unconsumed_tail
        if self._inflater.eof:
            if self._inflater.unused_data or self._position < len(self._data):
                raise InvalidArgument(f"the body has bytes behind the end of its {self._coding} data")
        elif not piece and not fed:
            raise InvalidArgument(f"the {self._coding} body ends too early")
        return piece


async def compress(buffers: Sequence[Buffer], coding: str, offload: Offload) -> list[Buffer]:
    """Compresses the buffers of an answer into new ones; large answers in threads."""
    small = compress_small(buffers, coding)
    if small is not None:
        return [small]
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    pieces: list[Buffer] = [await offload.run(None, compressor.compress, step) for step in slices(buffers, STEP_BYTES)]
    pieces.append(await offload.run(None, compressor.flush))
    return [piece for piece in pieces if piece]


def compress_small(buffers: Sequence[Buffer], coding: str) -> bytes | None:
    """Compresses the buffers of an answer; None if that takes long."""
    size = sum(map(len, buffers))
    if size > _INLINE_BYTES:
        return None
    if size <= _SMALL_BYTES:
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _SMALL_WINDOW_BITS[coding], _SMALL_MEMORY_LEVEL)
    else:
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return b"".join([*map(compressor.compress, buffers), compressor.flush()])


def slices(buffers: Sequence[Buffer], size_bytes: int) -> Iterator[memoryview]:
    """Cuts buffers into views of at most ``size_bytes``, without copying."""
    for buffer in buffers:
        view = memoryview(buffer)
        for start in range(0, len(view), size_bytes):
            yield view[start : start + size_bytes]

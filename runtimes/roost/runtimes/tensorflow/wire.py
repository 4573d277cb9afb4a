"""Protobuf's wire format, as far as reading needs it: workers have no protobuf library.

Whoever reads has to see what TensorFlow will see, so all that is not plain is refused: groups, field number 0, and
tags or lengths that don't fit.
"""

from __future__ import annotations

from collections.abc import Iterator

from roost.core.errors import InvalidArgument

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_TAG = 2**32 - 1
_MAX_VARINT_BITS = 70
_NOTHING = memoryview(b"")


def fields(message: memoryview) -> Iterator[tuple[int, memoryview, int]]:
    """The fields of a message in the order in which they are written: number, bytes, integer.

    A field has either bytes (text, bytes, messages, packed numbers) or an integer; what is not there is empty, or 0.

    Raises:
        InvalidArgument: If it is cut short, or is no message.
    """
    position, size = 0, len(message)
    while position < size:
        # Most tags and lengths are one byte, and a graph has a hundred thousand of them.
        tag = message[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = _varint(message, position, size)
        number, kind = tag >> 3, tag & 7
        if not number or tag > _MAX_TAG:
            raise _broken()
        if kind == _BYTES:
            if position < size and (length := message[position]) < 0x80:
                position += 1
            else:
                length, position = _varint(message, position, size)
            end = position + length
            if end > size:
                raise _broken()
            yield number, message[position:end], 0
            position = end
        elif kind == _VARINT:
            value, position = _varint(message, position, size)
            yield number, _NOTHING, value
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
            if position > size:
                raise _broken()
        else:
            raise _broken()


def parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The bytes of all fields with this number."""
    return (part for number, part, _ in fields(message) if number == wanted)


def joined(message: memoryview, wanted: int) -> memoryview:
    """The message in a field. Written several times it is all of them one after the other, as protobuf has it."""
    found = list(parts(message, wanted))
    return found[0] if len(found) == 1 else memoryview(b"".join(found))


def text(part: memoryview) -> str:
    """A field's text."""
    return str(part, "utf-8", "replace")


def last_text(message: memoryview, wanted: int) -> str:
    """The text of a field; the last one counts, and without one it is empty."""
    found = ""
    for part in parts(message, wanted):
        found = text(part)
    return found


def entries(message: memoryview, wanted: int) -> Iterator[tuple[str, memoryview]]:
    """The entries of a map whose keys are text and whose values are messages."""
    for entry in parts(message, wanted):
        yield last_text(entry, 1), joined(entry, 2)


def signed(value: int) -> int:
    """What an integer of 64 bits stands for in an ``int64``."""
    return value - 2**64 if value >= 2**63 else value


def _varint(message: memoryview, position: int, size: int) -> tuple[int, int]:
    if position < size and (byte := message[position]) < 0x80:
        return byte, position + 1
    value = shift = 0
    while position < size and shift < _MAX_VARINT_BITS:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
        shift += 7
    raise _broken()


def _broken() -> InvalidArgument:
    return InvalidArgument("saved_model.pb is broken, or is no SavedModel")

"""Finds the large fields of a protobuf message without copying them.

protobuf copies a ``bytes`` field when it parses it and again whenever it is read. A large request is nearly all
``raw_input_contents``, so these are cut out as views before protobuf sees the little that is left.
"""

from __future__ import annotations

from roost.core.errors import InvalidArgument
from roost.core.tensors import Buffer

MAX_FIELDS = 65_536


def encode_varint(value: int) -> bytes:
    """Writes a non-negative integer as protobuf does."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def cut_out(data: Buffer, field: int) -> tuple[bytes, list[memoryview]] | None:
    """Separates a repeated ``bytes`` field from the rest of a message.

    Args:
        data: The whole message.
        field: Number of the field, below 16.

    Returns:
        The message without the field, and the field's values in order, as views on ``data``. None if the message is
        written in a way that only protobuf itself should judge (groups, overlong numbers, anything cut short).

    Raises:
        InvalidArgument: If there are more than ``MAX_FIELDS`` fields at the top: every one costs many times its size.
    """
    view = memoryview(data)
    wanted = field << 3 | 2  # length-delimited
    rest: list[memoryview] = []
    values: list[memoryview] = []
    position = kept = count = 0
    while position < len(data):
        count += 1
        if count > MAX_FIELDS:
            raise InvalidArgument(f"a message with more than {MAX_FIELDS} inputs, outputs and parameters")
        start, is_wanted = position, data[position] == wanted
        ends = _field_ends(data, position, field, is_wanted)
        if ends is None:
            return None
        body, position = ends
        if is_wanted:
            rest.append(view[kept:start])
            values.append(view[body:position])
            kept = position
    rest.append(view[kept:])
    return b"".join(rest), values


def _field_ends(data: Buffer, position: int, field: int, is_wanted: bool) -> tuple[int, int] | None:
    """Where the content of the field at ``position`` starts and ends; None if it isn't plain."""
    tag, position = read_varint(data, position)
    if position < 0 or (tag >> 3 == field and not is_wanted):
        return None
    match tag & 7:
        case 0:
            end = read_varint(data, position)[1]
        case 1:
            end = position + 8
        case 2:
            length, body = read_varint(data, position)
            end = body + length if body - position <= 5 else -1
            position = body
        case 5:
            end = position + 4
        case _:
            return None
    return (position, end) if 0 < position <= end <= len(data) else None


def read_varint(data: Buffer, position: int) -> tuple[int, int]:
    """Reads a number and gives the position behind it; the position is -1 if it is cut short or overlong."""
    value = shift = 0
    for at in range(position, min(position + 10, len(data))):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    return 0, -1

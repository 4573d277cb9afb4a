"""Inputs that are almost right: valid ones with a few bytes, JSON values or message fields changed.

Everything is drawn from the generator that is given, so the same seed makes the same inputs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MAX_BYTES: Final = 32 * 1024
_INTEGERS: Final = (
    0,
    1,
    -1,
    2,
    7,
    16,
    64,
    127,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    -(2**31),
    2**32,
    2**48,
    2**62,
    2**63 - 1,
)
_TEXTS: Final = (
    "", "INPUT0", "INT32", "FP32", "BYTES", "BF16", "x" * 256, "../../etc/passwd", "\0", "é中", "\ud800", "NaN", "-1",
    "triton_x", "timeout", "binary_data_size", "shared_memory_region", "classification", "data", "shape", "b64",
)  # fmt: skip
_JSON_VALUES: Final[Sequence[Any]] = (
    None, True, False, 0.5, 1e308, -0.0, 2**64, 10**30, [], {}, [[]], [None], {"": []}, [[[[[[[[]]]]]]]],
    [1, "a", None, 2.5], float("nan"), float("inf"),
    *_INTEGERS, *_TEXTS,
)  # fmt: skip
_TOKENS: Final = (
    b"NaN", b"Infinity", b"1e999", b"[" * 200, b"{", b'"\\ud800"', b"\xff\xfe", b"\x00", b"null", b'":',
    b",", b"9" * 400,
)  # fmt: skip


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Changes a few bytes; a length anywhere may be wrong afterwards."""
    result = bytearray(data)
    for _ in range(1 + rng.getrandbits(2)):
        _BYTE_MUTATIONS[int(rng.random() * len(_BYTE_MUTATIONS))](rng, result)
    return bytes(result[:MAX_BYTES])


def _position(rng: Random, data: bytearray) -> int:
    return int(rng.random() * (len(data) + 1))


def _flip(rng: Random, data: bytearray) -> None:
    if data:
        data[int(rng.random() * len(data))] ^= 1 << rng.getrandbits(3)


def _replace(rng: Random, data: bytearray) -> None:
    if data:
        data[int(rng.random() * len(data))] = rng.getrandbits(8)


def _insert(rng: Random, data: bytearray) -> None:
    position = _position(rng, data)
    data[position:position] = rng.choice(_TOKENS)


def _delete(rng: Random, data: bytearray) -> None:
    position = _position(rng, data)
    del data[position : position + 1 + int(rng.random() ** 3 * 32)]


def _truncate(rng: Random, data: bytearray) -> None:
    del data[_position(rng, data) :]


def _repeat(rng: Random, data: bytearray) -> None:
    position = _position(rng, data)
    data[position:position] = data[position : position + 64] * (1 + rng.getrandbits(2))


def _number(rng: Random, data: bytearray) -> None:
    size = 1 << rng.getrandbits(2)
    position = _position(rng, data)
    data[position : position + size] = (rng.choice(_INTEGERS) % (1 << 8 * size)).to_bytes(size, "little")


_BYTE_MUTATIONS: Sequence[Callable[[Random, bytearray], None]] = (
    _flip, _replace, _insert, _delete, _truncate, _repeat, _number,
)  # fmt: skip


def mutate_json(rng: Random, text: bytes) -> bytes:
    """Changes values of a JSON document somewhere in its depth; the text as it is if it is not JSON."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, text)
    root = [document]
    for _ in range(1 + rng.getrandbits(1)):
        _mutate_value(rng, root)
    try:
        return json.dumps(root[0]).encode()
    except RecursionError:
        return text


def _mutate_value(rng: Random, root: list[Any]) -> None:
    container: Any = root
    key: Any = 0
    while rng.random() < 0.9:
        value = container[key]
        if isinstance(value, dict) and value:
            container, key = value, rng.choice(list(value))
        elif isinstance(value, list) and value:
            container, key = value, int(rng.random() * len(value))
        else:
            break
    choice = rng.random()
    if choice < 0.5:
        value = rng.choice(_JSON_VALUES)
        container[key] = copy.deepcopy(value) if isinstance(value, list | dict) else value
    elif choice < 0.6:
        container[key] = [copy.deepcopy(container[key]) for _ in range(1 + rng.getrandbits(2))]
    elif choice < 0.7 and container is not root:
        del container[key]
    elif choice < 0.85 and isinstance(container, list) and container is not root and len(container) < 256:
        container.append(copy.deepcopy(container[key]))
    elif isinstance(container, dict):
        container[rng.choice(_TEXTS)] = copy.deepcopy(container[key])


def mutate_message(rng: Random, message: Message) -> bytes:
    """Changes a few fields of a message, at any depth, and writes it."""
    for _ in range(1 + rng.getrandbits(2)):
        _mutate_field(rng, message)
    return message.SerializeToString()


def _mutate_field(rng: Random, message: Message) -> None:
    while True:
        field = rng.choice(message.DESCRIPTOR.fields)
        if field.message_type is None:
            return _mutate_scalar(rng, message, field)
        inner = _inner(rng, message, field)
        if inner is None:
            return None
        message = inner


def _inner(rng: Random, message: Message, field: FieldDescriptor) -> Message | None:
    """A message below this one, possibly a new one."""
    value = getattr(message, field.name)
    result: Message
    if not field.is_repeated:
        if message.HasField(field.name) and rng.random() < 0.1:
            message.ClearField(field.name)
            return None
        value.SetInParent()
        result = value
    elif field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is None:
            return None
        key = (
            rng.choice(list(value))
            if value and rng.random() < 0.6
            else rng.choice(_TEXTS).encode("ascii", "ignore").decode()
        )
        if key in value and rng.random() < 0.1:
            del value[key]
            return None
        result = value[key]
    else:
        choice = rng.random()
        if value and choice < 0.1:
            del value[int(rng.random() * len(value))]
            return None
        if value and choice < 0.2 and len(value) < 64:
            value.append(value[0])
            return None
        result = rng.choice(value) if value and choice < 0.9 else value.add()
    return result


def _mutate_scalar(rng: Random, message: Message, field: FieldDescriptor) -> None:
    if rng.random() < 0.15:
        message.ClearField(field.name)
        return
    value = _scalar(rng, field)
    if not field.is_repeated:
        setattr(message, field.name, value)
        return
    values = getattr(message, field.name)
    if values and rng.random() < 0.6:
        values[int(rng.random() * len(values))] = value
    elif len(values) < 4096:
        values.extend([value] * (1 + rng.getrandbits(3)))


def _scalar(rng: Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(_TEXTS).encode("utf-8", "ignore")
        if field.type == FieldDescriptor.TYPE_BYTES:
            return text if rng.random() < 0.3 else bytes(int(rng.random() ** 3 * 256))
        return text.decode()
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.5, 1e38, float("nan"), float("inf")))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((0, 1, 2, 3))
    bits, signed = _INTEGER_KINDS[kind]
    number = rng.choice(_INTEGERS) % (1 << bits)
    return number - (1 << bits) if signed and number >> (bits - 1) else number


_INTEGER_KINDS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
}

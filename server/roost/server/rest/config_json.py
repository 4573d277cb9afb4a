"""A model's configuration as the JSON that Triton's clients read: proto names, numbers as numbers, defaults written."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def config_to_json(message: Message) -> dict[str, Any]:
    """Writes a message with all its fields in the order of their declaration, unset sub-messages left out.

    protobuf's own JSON form writes 64-bit integers as strings and orders set fields before defaults.
    """
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            document[field.name] = _repeated(field, value)
        elif not field.has_presence or message.HasField(field.name):
            document[field.name] = _single(field, value)
    return document


def _repeated(field: FieldDescriptor, value: Any) -> Any:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        value_field = entry.fields_by_name["value"]
        return {str(key): _single(value_field, value[key]) for key in sorted(value)}
    return [_single(field, item) for item in value]


def _single(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return config_to_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value

"""What a configuration declares of a model's tensors, as it comes in the options of a load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from roost.core.errors import InvalidArgument
from roost.core.tensors import DATATYPES


class Declared(NamedTuple):
    """A tensor as the configuration has it.

    Attributes:
        name: Its name.
        datatype: A key of ``DATATYPES``; empty if it is not declared.
        shape: As the model sees it, the batch dimension included; nothing more than that if it is not declared.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def declared(options: Mapping[str, str], key: str) -> tuple[Declared, ...]:
    """Reads ``roost.inputs`` or ``roost.outputs``; an option that is not there declares nothing.

    Raises:
        InvalidArgument: If it can't be understood.
    """
    try:
        rows = json.loads(options.get(key) or "[]")
        found = tuple(Declared(str(row[0]), str(row[1]), tuple(int(dim) for dim in row[2])) for row in rows)
    except (ValueError, TypeError, LookupError):
        raise InvalidArgument(f"option '{key}' can't be understood") from None
    for row in found:
        if row.datatype and row.datatype not in DATATYPES:
            raise InvalidArgument(f"'{row.name}' has the datatype '{row.datatype}', which there is not")
    return found

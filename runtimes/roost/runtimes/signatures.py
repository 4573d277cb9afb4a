"""Whether what a model says of itself can be told to clients: what a file claims may be anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from roost.core.errors import InvalidArgument
from roost.core.names import shorten
from roost.core.tensors import DATATYPES, MAX_ELEMENTS, MAX_RANK, Signature, TensorSpec

MAX_TENSORS: Final = 4096
MAX_NAME_BYTES: Final = 4096
"""Frames hold names of up to 64 KiB; nobody types one as long as this."""


def check_signature(signature: Signature) -> None:
    """Checks names, datatypes and shapes.

    Raises:
        InvalidArgument: If something is not as it has to be.
    """
    for what, specs in (("input", signature.inputs), ("output", signature.outputs)):
        _check(what, specs)


def _check(what: str, specs: Sequence[TensorSpec]) -> None:
    if len(specs) > MAX_TENSORS:
        raise InvalidArgument(f"the model has {len(specs)} {what}s, the limit is {MAX_TENSORS}")
    names: set[str] = set()
    for spec in specs:
        name = _shown(what, spec.name)
        if spec.name in names:
            raise InvalidArgument(f"the model has two {what}s called '{name}'")
        names.add(spec.name)
        if spec.datatype not in DATATYPES:
            raise InvalidArgument(f"{what} '{name}' of the model has no datatype of the protocol")
        if len(spec.shape) > MAX_RANK:
            raise InvalidArgument(
                f"{what} '{name}' of the model has {len(spec.shape)} dimensions, of {MAX_RANK} at most"
            )
        if any(not -1 <= dim <= MAX_ELEMENTS for dim in spec.shape):
            raise InvalidArgument(f"{what} '{name}' of the model has a dimension that no tensor can have")


def _shown(what: str, name: str) -> str:
    """A name for error texts.

    Raises:
        InvalidArgument: If it is none that a message could have.
    """
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"an {what} of the model has a name that is not valid Unicode") from None
    if not 0 < size_bytes <= MAX_NAME_BYTES:
        raise InvalidArgument(f"an {what} of the model has a name of {size_bytes} bytes, not of 1 to {MAX_NAME_BYTES}")
    return shorten(name)

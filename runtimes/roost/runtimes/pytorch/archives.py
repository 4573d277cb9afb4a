"""What a model file of PyTorch is: many things have the same suffix, and not all of them are programs."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from roost.core.errors import InvalidArgument

AOTI_FOLDER = "data/aotinductor/"
EXPORT_FORMAT = "archive_format"
MODELS_FOLDER = "models/"
SCRIPT_FOLDER = "code/"

_OLD_EXPORT = "serialized_exported_program.json"
_PICKLE = "data.pkl"
_SCRIPT_CONSTANTS = "constants.pkl"
_PACKAGE = ".data/extern_modules"

HOW_TO_EXPORT = (
    "save the model as a program: torch.export.save(torch.export.export(model, example_inputs), 'model.pt2'), or "
    "torch.jit.script(model).save('model.pt')"
)
"""What whoever brought something else has to do."""


class Kind(Enum):
    """What there is to load, and what of PyTorch loads it."""

    SCRIPT = "TorchScript"
    EXPORT = "torch.export"
    OLD_EXPORT = "torch.export of PyTorch 2.7 or older"
    COMPILED = "AOTInductor"


class Archive(Protocol):
    """A zip archive as PyTorch reads it; names are without the archive's own folder."""

    def get_all_records(self) -> list[str]:
        """The names of all entries."""

    def get_record(self, name: str) -> bytes:
        """What an entry holds."""

    def get_record_size(self, name: str) -> int:
        """How many bytes that is."""


def kind_of(archive: Archive) -> Kind:
    """Says what an archive is.

    Raises:
        InvalidArgument: If it is no program; the text says what to save instead.
    """
    names = archive.get_all_records()
    if any(name.startswith(AOTI_FOLDER) for name in names):
        return Kind.COMPILED
    if EXPORT_FORMAT in names and any(name.startswith(MODELS_FOLDER) for name in names):
        return Kind.EXPORT
    if _OLD_EXPORT in names:
        return Kind.OLD_EXPORT
    if _SCRIPT_CONSTANTS in names and any(name.startswith(SCRIPT_FOLDER) for name in names):
        return Kind.SCRIPT
    if _PACKAGE in names:
        raise InvalidArgument(f"the file is a package of torch.package, which is pickled Python; {HOW_TO_EXPORT}")
    if _PICKLE in names:
        raise InvalidArgument(
            f"the file holds a state dict or a pickled module, written by torch.save, and no program; {HOW_TO_EXPORT}"
        )
    raise InvalidArgument(f"the file is an archive, but not a model of PyTorch; {HOW_TO_EXPORT}")


def no_archive(start: bytes) -> InvalidArgument:
    """The error for a file that is no archive.

    Args:
        start: Its first bytes.
    """
    if start.startswith(b"\x80"):  # a pickle of any protocol from the second on
        return InvalidArgument(f"the file is a pickle, written by torch.save of old, and no program; {HOW_TO_EXPORT}")
    return InvalidArgument(f"the file is broken or no model of PyTorch; {HOW_TO_EXPORT}")

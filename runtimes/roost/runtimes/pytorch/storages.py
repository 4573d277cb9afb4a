"""That the tensors of a TorchScript archive lie within the bytes that it has for them.

PyTorch's reader takes sizes, strides and offsets as they are written, and does not compare them to the entry that the
elements are in: a run of a damaged archive would read, or write, beyond it. So the pickles in which they are written
are read here first, by an unpickler that makes nothing of what they name.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from roost.core.errors import FailedPrecondition, InvalidArgument
from roost.core.names import shorten
from roost.runtimes.pytorch.archives import Archive

PARTS: Final = ("data", "constants")
"""Each is a pickle and a folder of the elements of its tensors."""

_BYTES_OF: Final[Mapping[str, int]] = {
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "BFloat16Storage": 2,
    "HalfStorage": 2,
    "ShortStorage": 2,
    "FloatStorage": 4,
    "IntStorage": 4,
    "QInt32Storage": 4,
    "ComplexFloatStorage": 8,
    "DoubleStorage": 8,
    "LongStorage": 8,
    "ComplexDoubleStorage": 16,
}
_HARMLESS: Final = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch", "device"),
        ("torch", "per_channel_affine"),
        ("torch", "per_tensor_affine"),
        *(("torch.jit._pickle", f"build_{what}list") for what in ("bool", "double", "int", "tensor")),
        ("torch.jit._pickle", "restore_type_tag"),
    }
)
_VIEWS: Final = frozenset({"_rebuild_qtensor", "_rebuild_tensor_v2"})
_BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


def check_tensors(archive: Archive) -> None:
    """Refuses an archive of TorchScript with a tensor that does not lie within its entry.

    Raises:
        InvalidArgument: If it has one, or is broken.
        FailedPrecondition: If it has something of which that can't be told.
    """
    names = set(archive.get_all_records())
    for part in PARTS:
        if f"{part}.pkl" not in names:
            continue
        try:
            _Reader(archive, part).load()
        except _BROKEN as error:
            raise InvalidArgument(f"the archive is broken: {part}.pkl can't be read") from error


class _Storage(NamedTuple):
    """The elements that one or more tensors are views of."""

    elements: int


class _Thing:
    """Stands for whatever else a pickle makes."""

    def __new__(cls, *_: Any, **__: Any) -> _Thing:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Takes any state."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Takes any item."""


class _Reader(pickle.Unpickler):
    """Reads one pickle of an archive and imports nothing."""

    def __init__(self, archive: Archive, part: str) -> None:
        super().__init__(io.BytesIO(archive.get_record(f"{part}.pkl")))
        self._archive = archive
        self._part = part

    def find_class(self, module: str, name: str) -> Any:
        """What stands for something that the pickle names."""
        if module == "torch" and name in _BYTES_OF:
            return name
        if module == "torch._utils" and name in _VIEWS:
            return _view
        # Classes of the archive itself, whose code was looked at.
        if module.partition(".")[0] == "__torch__" or (module, name) in _HARMLESS:
            return _Thing
        what = f"{shorten(module)}.{shorten(name)}"
        raise FailedPrecondition(f"the model is not only data: it has a '{what}'; it needs --allow-code")

    def persistent_load(self, pid: Any) -> _Storage:
        """The elements of a tensor, once it is known that they are there."""
        kind, type_, key, _, count = pid
        if kind != "storage" or not isinstance(key, str):
            _fail()
        try:
            size_bytes = self._archive.get_record_size(f"{self._part}/{key}")
        except RuntimeError:
            _fail()
        if _size(count) * _BYTES_OF[type_] > size_bytes:
            _fail()
        return _Storage(count)


def _view(storage: object, offset: object, size: Sequence[object], stride: Sequence[object], *_: object) -> _Thing:
    """A tensor: checks that all of its elements are in its storage."""
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        _fail()
    last = _size(offset) + sum((_size(dim) - 1) * _size(step) for dim, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.elements:
        _fail()
    return _Thing()


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        _fail()
    return value


def _fail() -> NoReturn:
    raise InvalidArgument("the archive is broken: a tensor is larger than what the archive has of it")

"""Files of scikit-learn's models: what is in one decides how it is read, not what it is called.

A skops file is a description of objects, of which only those of trusted types are made. Everything else that people
save estimators in is a pickle, and to read one is to run it.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from roost.core.errors import Cancelled, InvalidArgument, ResourceExhausted
from roost.runtimes.archive_limits import check_sizes
from roost.runtimes.failures import without_paths
from roost.runtimes.protocol import LoadSpec
from roost.runtimes.sklearn_parts import check_arrays
from roost.runtimes.sklearn_types import CHECKED_TYPES, HARMLESS_TYPES
from roost.runtimes.tabular import head_of

TRUSTED_TYPES = "trusted_types"
"""The option with more types to trust, with commas between them."""

_BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,  # numpy takes headers of arrays apart as Python's own texts
    zlib.error,
)
"""What skops, and what it reads arrays with, raise over a damaged file."""

_NOT_NEEDED = ("cupy", "dask", "pytest", "torch")
_ZIP = b"PK\x03\x04"
_SCHEMA = "schema.json"
_SHOWN_TYPES = 10


@contextmanager
def _not_imported(*names: str) -> Iterator[None]:
    """Has imports of modules that nobody has imported yet fail."""
    absent: dict[str, Any] = {name: None for name in names if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def _import_skops() -> ModuleType | None:
    """Imports it; it looks for all classes of scikit-learn then, and that search imports PyTorch for one of them."""
    try:
        with _not_imported(*_NOT_NEEDED):
            return importlib.import_module("skops.io")
    except ImportError:
        return None


_skops = _import_skops()  # before there are threads that could miss those modules


def read_model(spec: LoadSpec) -> Any:
    """Reads the object that a file holds.

    Raises:
        InvalidArgument: If it is broken, or brings code that is not allowed.
        ResourceExhausted: If there is no memory for it.
        Cancelled: If the load was cancelled.
    """
    head = head_of(spec.path)
    try:
        model = _read_skops(spec) if head.startswith(_ZIP) else _read_pickle(spec)
    except MemoryError:
        raise ResourceExhausted("not enough memory to load the model") from None
    if spec.cancellation.cancelled:
        raise Cancelled("the load was cancelled")
    return model


def _read_skops(spec: LoadSpec) -> Any:
    if _skops is None:
        raise InvalidArgument("the package 'skops' is not installed: pip install 'roost[sklearn]'")
    _check_sizes(spec.path)
    trusted = [*CHECKED_TYPES, *HARMLESS_TYPES, *_types_of_config(spec)]
    try:
        model = _skops.load(spec.path, trusted=trusted)
    except _skops.exceptions.UntrustedTypesFoundException:
        untrusted = set(_skops.get_untrusted_types(file=spec.path)) - set(trusted)
        raise InvalidArgument(_not_trusted(sorted(untrusted))) from None
    except zipfile.BadZipFile as error:
        raise InvalidArgument(f"the file is damaged: {error}") from None
    except ImportError as error:
        raise InvalidArgument(f"the model needs the package '{error.name}', which is not installed") from None
    except _BROKEN as error:
        raise InvalidArgument(f"the file is not what skops writes: {_reason(error, spec)}") from error
    check_arrays(model)
    return model


def _check_sizes(path: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            check_sizes((entry.file_size for entry in archive.infolist()), os.path.getsize(path))
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InvalidArgument(f"the file is damaged: {error}") from None


def _types_of_config(spec: LoadSpec) -> list[str]:
    """Types that the configuration trusts: only where code is allowed, since their own code makes them."""
    types = [name.strip() for name in spec.options.get(TRUSTED_TYPES, "").split(",") if name.strip()]
    if types and not spec.may_bring_code:
        raise InvalidArgument(
            f"parameter '{TRUSTED_TYPES}': to make objects of more types is to run their code, which this server "
            "allows with --allow-code only"
        )
    return types


def _not_trusted(types: Sequence[str]) -> str:
    shown = ", ".join(types[:_SHOWN_TYPES]) + (f" and {len(types) - _SHOWN_TYPES} more" if types[_SHOWN_TYPES:] else "")
    return (
        f"the file has objects of types that skops does not trust: {shown}; if they are, list them in the parameter "
        f"'{TRUSTED_TYPES}' of the model's configuration and start the server with --allow-code"
    )


def _read_pickle(spec: LoadSpec) -> Any:
    name = os.path.basename(spec.path)
    if not spec.may_bring_code:
        raise InvalidArgument(
            f"'{name}' is no skops file, and a pickle can run any code when it is read: save the model with "
            "skops.io.dump(model, 'model.skops'), or start the server with --allow-code"
        )
    import joblib

    try:
        return joblib.load(spec.path)
    except ImportError as error:
        raise InvalidArgument(f"the model needs the package '{error.name}', which is not installed") from None
    except MemoryError:
        raise
    except Exception as error:  # of the model's own code
        raise InvalidArgument(f"'{name}' can't be unpickled: {_reason(error, spec)}") from error


def _reason(error: Exception, spec: LoadSpec) -> str:
    return without_paths(str(error), spec.root) or type(error).__name__

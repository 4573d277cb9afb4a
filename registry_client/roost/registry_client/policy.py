"""What the owner of a model asks of the server, written as ``roost.*`` parameters of its ``config.pbtxt``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.names import is_name, shorten
from roost.core.units import parse_bytes, parse_seconds

PREFIX = "roost."
MIN_COPIES = "roost.min_copies"
THREADS = "roost.threads"
MAX_COPIES = 1024
MAX_PRIORITY = 1000
MAX_THREADS = 1024
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256

FOUND_OUT = ("proven", "not proven", "pending", "config", "declared", "symbolic", "not tried")
"""How texts begin that the server shows as a model's ``roost.batching``."""

_MAX_MEMORY_BYTES = 2**50
_MAX_LOAD_TIMEOUT_S = 86400.0
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


def _no_labels() -> Mapping[str, str]:
    """The same empty mapping for all models that have none, of which there may be very many."""
    return _NO_LABELS


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """How a model wants to be treated.

    Attributes:
        memory_bytes: Private memory that an instance needs, as declared; None if the server is to find out.
        gpu_memory_bytes: Likewise memory of a GPU, if it is loaded on one.
        pin: Whether its instances are never evicted.
        min_copies: How many instances there are at least, even without requests.
        max_copies: How many there are at most; None for no limit but memory.
        priority: Higher is more important; 0 is normal.
        labels: Free words for selecting models.
        required_labels: Those that a worker has to have for the model to be loaded there.
        preferred_labels: Those that are better to have; a worker with more of them goes before one with fewer.
        batching: Whether its rows may be run together, as its owner knows; None if the server is to find out.
        load_timeout_s: After so long its load is given up; None for the server's ``--load-timeout``.
        threads: How many threads a run of it may use, no more than there are CPUs; None for its worker's share of them.
    """

    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    pin: bool = False
    min_copies: int = 0
    max_copies: int | None = None
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=_no_labels, hash=False)
    required_labels: Mapping[str, str] = field(default_factory=_no_labels, hash=False)
    preferred_labels: Mapping[str, str] = field(default_factory=_no_labels, hash=False)
    batching: bool | None = None
    load_timeout_s: float | None = None
    threads: int | None = None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> ModelPolicy:
        """Reads the ``roost.*`` parameters; others belong to the runtime and are left alone.

        Raises:
            InvalidArgument: If one is unknown or makes no sense; the text names it.
        """
        values: dict[str, Any] = {}
        for key in sorted(parameters):
            if not key.startswith(PREFIX):
                continue
            name = key.removeprefix(PREFIX)
            if name not in _READERS:
                known = ", ".join(PREFIX + known for known in _READERS)
                raise InvalidArgument(f"unknown parameter '{shorten(key)}'; known ones: {known}")
            try:
                values[name] = _READERS[name](parameters[key].strip())
            except ValueError as error:
                raise InvalidArgument(f"parameter '{key}': {error}") from None
        policy = cls(**values)
        if policy.max_copies is not None and policy.min_copies > policy.max_copies:
            raise InvalidArgument(
                f"parameter 'roost.min_copies': {policy.min_copies} is more than 'roost.max_copies' {policy.max_copies}"
            )
        return policy


def _read_memory(text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError:
        raise ValueError(f"'{shorten(text)}' is not a size such as 512MiB or 4096") from None
    if not 0 < size <= _MAX_MEMORY_BYTES:
        raise ValueError(f"'{shorten(text)}' is not between 1 byte and 1024 TiB")
    return size


def _read_load_timeout(text: str) -> float:
    try:
        timeout_s = parse_seconds(text)
    except ValueError:
        raise ValueError(f"'{shorten(text)}' is not a duration such as 90s, 5m or 1.5") from None
    if not 0 < timeout_s <= _MAX_LOAD_TIMEOUT_S:
        raise ValueError(f"'{shorten(text)}' is not between 0 and 24 hours")
    return timeout_s


def _read_pin(text: str) -> bool:
    word = text.lower()
    if word not in ("true", "false", "1", "0"):
        raise ValueError(f"'{shorten(text)}' is not true or false")
    return word in ("true", "1")


def _integer_reader(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        digits = text.removeprefix("-")
        # int() also takes blanks, underscores and digits of other scripts, which are mistakes here.
        plain = digits.isascii() and digits.isdigit() and len(digits) <= 9
        if not plain or not low <= int(text) <= high:
            raise ValueError(f"'{shorten(text)}' is not an integer from {low} to {high}")
        return int(text)

    return read


def _read_batching(text: str) -> bool | None:
    word = text.lower()
    if word in ("on", "off"):
        return word == "on"
    # What the config call shows can be sent back; there it is what the server has found out.
    if word == "auto" or word.startswith(FOUND_OUT):
        return None
    raise ValueError(f"'{shorten(text)}' is not on, off or auto")


def read_labels(text: str) -> dict[str, str]:
    """Reads labels as models and workers have them, such as ``disk=ssd,zone=a``.

    Raises:
        ValueError: With the end of a sentence that says what is wrong.
    """
    labels: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = (part.strip() for part in item.partition("="))
        if not separator or not is_name(key):
            raise ValueError(f"'{shorten(item)}' is not of the form name=value")
        if key in labels:
            raise ValueError(f"'{key}' is given twice")
        if len(value) > MAX_LABEL_CHARACTERS or not value.isprintable():
            raise ValueError(f"the value of '{key}' is not printable text of at most {MAX_LABEL_CHARACTERS} characters")
        labels[key] = value
    if len(labels) > MAX_LABELS:
        raise ValueError(f"{len(labels)} labels are over the limit of {MAX_LABELS}")
    return labels


_READERS: Mapping[str, Callable[[str], Any]] = {
    "memory_bytes": _read_memory,
    "gpu_memory_bytes": _read_memory,
    "pin": _read_pin,
    "min_copies": _integer_reader(0, MAX_COPIES),
    "max_copies": _integer_reader(1, MAX_COPIES),
    "priority": _integer_reader(-MAX_PRIORITY, MAX_PRIORITY),
    "labels": read_labels,
    "required_labels": read_labels,
    "preferred_labels": read_labels,
    "batching": _read_batching,
    "load_timeout_s": _read_load_timeout,
    "threads": _integer_reader(1, MAX_THREADS),
}

"""How the values of settings are written, and what is said of those that make no sense.

Each reader takes what a flag, a variable or a YAML file holds and raises ``ValueError`` with the end of a sentence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator
from roost.core.names import is_name
from roost.core.units import parse_bytes, parse_seconds
from roost.server.rate_limit_specs import read_rate_limit
from roost.server.restrictions import Restrictions
from roost.server.worker_counts import read_worker_count
from roost.server.worker_labels import read_worker_labels

MAX_HISTOGRAM_MODELS = 100
AUTO_DEVICES = "auto"
ONLY_CPU = "cpu"
_EXACT_CASE = "(?-i)"
_DEVICE = re.compile(r"(cuda:)?[0-9]{1,4}|(GPU|MIG)-[A-Za-z0-9/-]{1,80}")


def _whole(value: Any, what: str, low: int, high: float = math.inf) -> int:
    try:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{value!r} is not {what}") from None
    if not low <= number <= high:
        raise ValueError(f"{number} is not {what}")
    return number


def _port(value: Any) -> int:
    return _whole(value, "a port from 0 to 65535", 0, 65535)


def _count(value: Any) -> int:
    return _whole(value, "a whole number of at least 1", 1)


def _count_or_none(value: Any) -> int:
    return _whole(value, "a whole number of at least 0", 0, 2**31 - 1)


def _workers(value: Any) -> int:
    return _whole(value, "a number of worker processes from 1 to 1024", 1, 1024)


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{value!r} is not a size such as 64MiB")
    size = parse_bytes(value)
    if size < 1:
        raise ValueError(f"{value!r} is not a size of at least one byte")
    return size


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a duration such as 30s")
    seconds = parse_seconds(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{value!r} is not a duration of more than 0 seconds")
    return seconds


def _grace(value: Any) -> float:
    """A duration that may also be nothing at all."""
    if not isinstance(value, bool) and value in (0, "0", "0s"):
        return 0.0
    return _duration(value)


def _size_or_none(value: Any) -> int:
    """A size that may also be nothing at all."""
    return 0 if not isinstance(value, bool) and value in (0, "0") else _size(value)


def _auto(read: Callable[[Any], int]) -> Callable[[Any], int | None]:
    """Lets a setting be ``auto``, which is what it is if nobody sets it."""
    return lambda value: None if value in (None, "auto") else read(value)


def choice(*choices: str) -> Callable[[Any], str]:
    """Makes a reader that takes one of a few words."""

    def read(value: Any) -> str:
        # The words 'on' and 'off' are booleans in YAML 1.1, hence no choice is spelled so.
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)

    return read


def _devices(value: Any) -> str:
    """One of two words, or names of GPUs."""
    names = [str(item).strip() for item in (value if isinstance(value, list | tuple) else str(value).split(","))]
    if names not in ([AUTO_DEVICES], [ONLY_CPU]):
        for name in names:
            if not _DEVICE.fullmatch(name):
                raise ValueError(f"{name!r} is not auto, cpu or a GPU such as cuda:0 or GPU-3a0d...")
    return ",".join(names)


def _switch(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    word = str(value).lower()
    if word not in words:
        raise ValueError(f"{value!r} is neither true nor false")
    return words[word]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} is not a text in one line")
    return value


def _path(value: Any) -> Path:
    return value if isinstance(value, Path) else Path(_text(value)).expanduser()


def _pattern(value: Any) -> re.Pattern[str]:
    """A regular expression for names of headers, whose case means nothing unless it starts with ``(?-i)``."""
    if isinstance(value, re.Pattern):
        return value
    text = _text(value)
    try:
        if text.startswith(_EXACT_CASE):
            return re.compile(text.removeprefix(_EXACT_CASE))
        return re.compile(text, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None


def pattern_text(pattern: re.Pattern[str]) -> str:
    """How a pattern is written."""
    return pattern.pattern if pattern.flags & re.IGNORECASE else _EXACT_CASE + pattern.pattern


def _restrictions(value: Any) -> tuple[str, ...]:
    specs = tuple(_text(item) for item in _items(value))
    Restrictions.parse(specs)
    return specs


def _worker_labels(value: Any) -> tuple[str, ...]:
    specs = tuple(_text(item) for item in _items(value))
    for spec in specs:
        read_worker_labels(spec)
    return specs


def _worker_counts(value: Any) -> tuple[str, ...]:
    specs = tuple(_text(item) for item in _items(value))
    for spec in specs:
        read_worker_count(spec)
    return specs


def _rate_limits(value: Any) -> tuple[str, ...]:
    specs = tuple(_text(item) for item in _items(value))
    for spec in specs:
        read_rate_limit(spec)
    return specs


def _rate_limit(value: Any) -> str:
    # Triton's word for none is a boolean in YAML.
    return choice("none", "execution_count")("none" if value in (False, "off") else value)


def _code_repositories(value: Any) -> tuple[Path, ...]:
    """Folders; one called ``*`` stands for all repositories, and so does a switch that is on."""
    if isinstance(value, bool):
        return (Path("*"),) if value else ()
    return tuple(_path("*" if item == "true" else item) for item in _items(value))


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, str | Path):
        return [value]
    if isinstance(value, list | tuple):
        return value
    raise ValueError(f"{value!r} is not a list")


def _paths(value: Any) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(_path(item) for item in _items(value)))


def _models(value: Any) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(str(item) for item in _items(value)))
    for name in names:
        if not is_name(name):
            raise ValueError(f"{name!r} is not the name of a model")
    return names


def _models_or_all(value: Any) -> tuple[str, ...]:
    names = tuple(str(item) for item in _items(value))
    return ("*",) if "*" in names else _models(names)


def _histogram_models(value: Any) -> tuple[str, ...]:
    names = _models(value)
    if len(names) > MAX_HISTOGRAM_MODELS:
        raise ValueError(f"{len(names)} models are over the limit of {MAX_HISTOGRAM_MODELS}")
    return names


Compression: TypeAlias = Literal["none", "gzip", "deflate"]
GrpcTransport: TypeAlias = Literal["auto", "native", "grpcio"]
Port = Annotated[int, BeforeValidator(_port)]
OptionalPort = Annotated[int | None, BeforeValidator(_port)]
Count = Annotated[int, BeforeValidator(_count)]
CountOrNone = Annotated[int, BeforeValidator(_count_or_none)]
Workers = Annotated[int | None, BeforeValidator(_auto(_workers))]
Size = Annotated[int, BeforeValidator(_size)]
AutoSize = Annotated[int | None, BeforeValidator(_auto(_size))]
AutoSizeOrNone = Annotated[int | None, BeforeValidator(_auto(_size_or_none))]
Duration = Annotated[float, BeforeValidator(_duration)]
OptionalDuration = Annotated[float | None, BeforeValidator(_duration)]
Grace = Annotated[float, BeforeValidator(_grace)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Text = Annotated[str, BeforeValidator(_text)]
Devices = Annotated[str, BeforeValidator(_devices)]
OptionalPattern = Annotated[re.Pattern[str] | None, BeforeValidator(_pattern)]
WorkerCountSpecs = Annotated[tuple[str, ...], BeforeValidator(_worker_counts)]
RateLimitMode = Annotated[str, BeforeValidator(_rate_limit)]
RateLimitSpecs = Annotated[tuple[str, ...], BeforeValidator(_rate_limits)]
CodeRepositories = Annotated[tuple[Path, ...], BeforeValidator(_code_repositories)]
WorkerLabelSpecs = Annotated[tuple[str, ...], BeforeValidator(_worker_labels)]
RestrictionSpecs = Annotated[tuple[str, ...], BeforeValidator(_restrictions)]
OptionalPath = Annotated[Path | None, BeforeValidator(_path)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_paths)]
ModelsOrAll = Annotated[tuple[str, ...], BeforeValidator(_models_or_all)]
HistogramModels = Annotated[tuple[str, ...], BeforeValidator(_histogram_models)]

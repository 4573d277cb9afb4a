"""How many workers there are of each other kind, as ``--workers-of`` gives them: ``torch=2``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from roost.runtimes.adapters import DEFAULT_KIND, KINDS

MOST_BY_DEFAULT = 4
_MAX_WORKERS = 1024
_OTHERS = tuple(kind for kind in KINDS if kind != DEFAULT_KIND)


def read_worker_count(spec: str) -> tuple[str, int]:
    """The kind and the number of a text.

    Raises:
        ValueError: With the end of a sentence that says what is wrong.
    """
    kind, separator, number = (part.strip() for part in spec.partition("="))
    if not separator or kind not in _OTHERS:
        raise ValueError(f"{spec!r} is not of the form kind=number; kinds: {', '.join(_OTHERS)}")
    if not (number.isascii() and number.isdigit() and len(number) <= 4 and int(number) <= _MAX_WORKERS):
        raise ValueError(f"{number!r} is not a number of worker processes from 0 to {_MAX_WORKERS}")
    return kind, int(number)


def worker_counts(specs: Iterable[str], workers: int) -> Mapping[str, int]:
    """How many there are of each kind but the default one, if there are so many of that; what is said last counts."""
    return dict.fromkeys(_OTHERS, min(workers, MOST_BY_DEFAULT)) | dict(map(read_worker_count, specs))

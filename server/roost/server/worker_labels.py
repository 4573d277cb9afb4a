"""Labels of workers, as ``--worker-labels`` gives them: ``disk=ssd,zone=a`` for all, ``1:disk=ssd`` for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from roost.registry_client.policy import read_labels

_MAX_WORKER_DIGITS = 4


def read_worker_labels(spec: str) -> tuple[int | None, Mapping[str, str]]:
    """The worker that a text is about, None for all of them, and its labels.

    Raises:
        ValueError: With the end of a sentence that says what is wrong.
    """
    head, colon, rest = spec.partition(":")
    number = head.strip()
    if not colon or "=" in head:
        number, rest = "", spec
    elif not (number.isascii() and number.isdigit() and len(number) <= _MAX_WORKER_DIGITS):
        raise ValueError(f"{spec!r} does not begin with the number of a worker")
    labels = read_labels(rest)
    if not labels:
        raise ValueError(f"{spec!r} has no label of the form name=value")
    return (int(number) if number else None), labels


def unknown_worker(specs: Iterable[str], workers: int) -> int | None:
    """The first number that no worker has, if any."""
    numbers = [number for number, _ in map(read_worker_labels, specs) if number is not None]
    return next((number for number in numbers if number >= workers), None)


def labels_by_worker(specs: Sequence[str], workers: int) -> tuple[Mapping[str, str], ...]:
    """The labels of each worker; what is said of one goes before what is said of all."""
    parsed = [read_worker_labels(spec) for spec in specs]
    own: list[dict[str, str]] = [dict(labels_of_all(specs)) for _ in range(workers)]
    for number, labels in parsed:
        if number is not None:
            own[number].update(labels)
    return tuple(own)


def labels_of_all(specs: Iterable[str]) -> Mapping[str, str]:
    """The labels that are for all workers."""
    parsed = map(read_worker_labels, specs)
    return {name: value for number, labels in parsed if number is None for name, value in labels.items()}

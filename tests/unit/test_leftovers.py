"""When a worker gives back what loads and unloads have left behind."""

from __future__ import annotations

import pytest
from roost.runtimes.leftovers import AT_LEAST_BYTES, DUE_BYTES, DUE_SHARE, Leftovers

GIB = 1 << 30


@pytest.mark.parametrize(
    ("process_bytes", "size_bytes", "events", "trims"),
    [
        (0, DUE_BYTES, 3, 3),  # large ones at once, each
        (0, 0, DUE_BYTES // AT_LEAST_BYTES - 1, 0),  # tiny ones together
        (0, 0, 3 * DUE_BYTES // AT_LEAST_BYTES, 3),
        (2 * GIB, 0, 20_000, 20_000 * AT_LEAST_BYTES * DUE_SHARE // (2 * GIB)),  # among thousands, hardly ever
        (2 * GIB, GIB, 2, 2),
    ],
)
def test_it_is_trimmed_when_that_is_worth_it(process_bytes: int, size_bytes: int, events: int, trims: int) -> None:
    counted: list[None] = []
    leftovers = Leftovers(trim=lambda: counted.append(None), measure=lambda: process_bytes)
    for _ in range(events):
        leftovers.add(size_bytes)
    assert len(counted) == trims

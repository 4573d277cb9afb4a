"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest
from roost.core.units import format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), (" 2 GiB ", 2**31), ("512Mi", 2**29), ("1.5kb", 1500), ("0", 0), (7, 7), ("1B", 1)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60.0), ("250ms", 0.25), ("5m", 300.0), ("1.5", 1.5), (2, 2.0), ("1h", 3600.0)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e3", "1_000", "1.", ".5", "1 2", "5 parsecs", "٣MiB", "१s", "²", "9" * 400, "1" * 10**6]
)
def test_nonsense_is_a_value_error_of_bounded_length(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        with pytest.raises(ValueError, match="is not a") as caught:
            parse(text)
        assert len(str(caught.value)) < 250


def test_numbers_that_no_float_holds() -> None:
    with pytest.raises(ValueError, match="too long"):
        parse_seconds(10**400)


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (2**31, "2 GiB"), (2**50, "1024 TiB")])
def test_sizes_are_written_short(size: int, text: str) -> None:
    assert format_bytes(size) == text

"""That an archive does not become many times as large when it is read: a small file must not fill the memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from roost.core.errors import InvalidArgument
from roost.core.units import format_bytes

MAX_ENTRIES: Final = 100_000
FREE_BYTES: Final = 64 << 20
"""So much an archive may hold whatever its own size is."""

MAX_RATIO: Final = 100
"""And otherwise so many times its own size. Weights hardly get smaller when they are packed."""


def check_sizes(entry_bytes: Iterable[int], archive_bytes: int) -> None:
    """Checks what the entries of an archive take, unpacked, as it says itself.

    Args:
        entry_bytes: The size of each.
        archive_bytes: The size of the archive.

    Raises:
        InvalidArgument: If that is too much.
    """
    most_bytes = max(FREE_BYTES, MAX_RATIO * archive_bytes)
    total_bytes = 0
    for position, size_bytes in enumerate(entry_bytes):
        total_bytes += size_bytes
        if position >= MAX_ENTRIES:
            raise InvalidArgument(f"the archive has more than {MAX_ENTRIES} entries")
        if total_bytes > most_bytes:
            raise InvalidArgument(
                f"the archive's {format_bytes(archive_bytes)} would become more than {format_bytes(most_bytes)}: "
                "save the model without compression"
            )

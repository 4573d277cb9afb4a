"""What is counted of copies that come and go."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class CopyReason(StrEnum):
    """Why a copy is added beside those that requests have brought."""

    LOAD = "load"  # requests waited for those that there are
    LEAST = "min_copies"  # its owner wants so many
    SPARE = "spare"  # it is in constant use, and would have to be loaded again if its worker were lost


def _none() -> dict[CopyReason, int]:
    return dict.fromkeys(CopyReason, 0)


@dataclass(slots=True)
class CopyCounts:
    """Since the start, but for the last one.

    Attributes:
        added: Copies that were loaded, by reason.
        failed: Copies that could not be, most often for want of memory.
        dropped: Copies that were taken out because fewer are enough.
        lacking: How many copies are missing of those that owners want at least.
    """

    added: dict[CopyReason, int] = field(default_factory=_none)
    failed: int = 0
    dropped: int = 0
    lacking: int = 0

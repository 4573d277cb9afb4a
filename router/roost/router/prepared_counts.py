"""What is counted of prepared copies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PreparedCounts:
    """Since the start, but for the first two.

    Attributes:
        bytes: What all copies take on the disk.
        limit_bytes: What they may take; 0 if there are none.
        loads: Loads from copies.
        made: Copies that were made.
        refused: Models that get no copy, since it would be of no use or could not be verified.
        failures: Copies that could not be made or loaded for reasons that may pass.
        damaged: Copies whose checksums were wrong.
    """

    bytes: int = 0
    limit_bytes: int = 0
    loads: int = 0
    made: int = 0
    refused: int = 0
    failures: int = 0
    damaged: int = 0

"""Step 6 of the data path, the pure part: what of a queue goes to an instance now.

Batches hold one request so far; what may be sent together is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


class Queued(Protocol):
    """What planning looks at."""

    @property
    def deadline(self) -> float:
        """After this the request is not worth running."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the first ``count`` requests as one batch."""

    count: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to send: no requests or no free slot."""


Decision: TypeAlias = Dispatch | Idle


def plan(queue: Sequence[Queued], free_slots: int) -> Decision:
    """Says what to send of a queue whose requests are all alive, first come first served."""
    return Dispatch(1) if queue and free_slots > 0 else Idle()

"""Step 5, the pure part of spare copies: which revisions are in constant use, so that losing one's worker would hurt.

A spare copy costs memory and saves a load at the one moment when a worker is lost. It is worth that for what was used
in every single minute of the last ones, and only as long as memory is plenty: a burst is over before it has counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from roost.router.eviction import Owner

MINUTE_S = 60.0
MINUTES = 7
"""In so many minutes in a row it must have been used; it was the better half of ModelMesh's rule for a second copy."""


class Steady:
    """See the module. It is told once a minute."""

    def __init__(self) -> None:
        self._minutes: dict[Owner, int] = {}

    def look(self, used: Iterable[Owner]) -> list[Owner]:
        """Which owners are in constant use.

        Args:
            used: Those that were used in the last minute.
        """
        before = self._minutes
        self._minutes = {owner: min(MINUTES, before.get(owner, 0) + 1) for owner in used}
        return [owner for owner, minutes in self._minutes.items() if minutes == MINUTES]

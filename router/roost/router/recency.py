"""Keeps in the store when versions were last used, so that the next start knows which of them to load first.

Requests only write the time into the counters of their version, which they do anyway; every few seconds the versions
whose time has changed are written together. A server that is killed forgets what was used in the last of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from roost.core.names import DEFAULT_NAMESPACE, VersionKey
from roost.router.learned import Learned
from roost.router.stats import ModelStats, Stats

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
VERSIONS_AT_A_TIME = 200
"""So many are looked at before the loop gets its turn, and written at once. While the thread that writes computes, each
callback of the loop waits for the interpreter: for 20,000 versions at a time all requests came 200 ms later."""
PAUSE_S = 0.02


class Recency:
    """See the module. The store is written on ``disk``."""

    def __init__(self, learned: Learned, stats: Stats, disk: Executor) -> None:
        self._learned = learned
        self._stats = stats
        self._disk = disk
        self._written_until = 0.0

    async def run(self) -> None:
        """Writes what has changed every few seconds, and a last time when it is cancelled."""
        try:
            while True:
                await asyncio.sleep(WRITE_EVERY_S)
                await self.write(PAUSE_S)
        finally:
            await self.write()

    async def write(self, pause_s: float = 0.0) -> None:
        """Writes the last uses since the last time that it went well.

        Args:
            pause_s: How long others get the interpreter to themselves after each part.
        """
        now = time.time()
        if now < self._written_until:  # the clock was set back: what was used since then looks old
            self._written_until = 0.0
        counted = list(self._stats.models.values())
        for start in range(0, len(counted), VERSIONS_AT_A_TIME):
            uses = _used_since(self._written_until, counted[start : start + VERSIONS_AT_A_TIME])
            write = partial(self._learned.put_last_uses, uses)
            if not uses:
                await asyncio.sleep(0)
            elif not await asyncio.get_running_loop().run_in_executor(self._disk, write):
                return
            else:
                await asyncio.sleep(pause_s)
        self._written_until = now


def _used_since(since: float, counted: Sequence[ModelStats]) -> dict[VersionKey, float]:
    return {
        VersionKey(DEFAULT_NAMESPACE, stats.name, stats.version): stats.last_at
        for stats in counted
        if stats.last_at >= since and stats.last_at and stats.version
    }

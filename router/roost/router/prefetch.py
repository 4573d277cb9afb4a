"""Loads models that are used on a timer shortly before their next use, in nobody's place who is as near to one."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from roost.core.errors import RoostError
from roost.router.eviction import EvictionPolicy
from roost.router.loads import LoadPriority
from roost.router.revision import Revision

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""A model becomes due many seconds after the use that shows it, so that what is learned meanwhile can wait so long."""


class Bring(Protocol):
    """``Loader.bring``."""

    async def __call__(
        self, revision: Revision, *, claim: bool = True, priority: LoadPriority | None = None, older_than: float = ...
    ) -> None:
        """Waits until the revision has an instance."""


class Prefetch:
    """See the module.

    Args:
        policy: Knows what is due.
        bring: Loads it.
    """

    def __init__(self, policy: EvictionPolicy, bring: Bring) -> None:
        self._policy = policy
        self._bring = bring

    async def run(self) -> None:
        """Loads what is due, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                now = time.monotonic()
                for revision, expected in self._policy.due(now):
                    assert isinstance(revision, Revision)
                    if not revision.retired and revision.failure is None:
                        group.create_task(self._load(revision, expected - now))
                await asyncio.sleep(min(LOOK_EVERY_S, max(0.0, self._policy.next_due() - now)))

    async def _load(self, revision: Revision, left_s: float) -> None:
        """Loads one; what was used within the time that is left until its own use stays."""
        try:
            older_than = time.monotonic() - max(0.0, left_s)
            await self._bring(revision, claim=False, priority=LoadPriority.BACKGROUND, older_than=older_than)
        except RoostError as error:
            log.debug("%s was not loaded ahead of its next use: %s", revision.key, error.message)
        except Exception:
            log.exception("loading %s ahead of its next use failed", revision.key)
        else:
            log.debug("%s is loaded, its next use is expected in %.1f s", revision.key, left_s)

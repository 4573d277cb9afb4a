"""Loads again at the start what was in use before it: in the background, last used first, in nobody's place.

Only memory that is free is used, and nothing that was ever used is evicted. While requests wait or run, a model is
loaded only now and then. What was loaded here counts as used when it was used before the start: when requests need
the memory it goes before what was used since, the least recently used one first.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from roost.core.errors import NotFound, ResourceExhausted, RoostError
from roost.core.names import VersionKey
from roost.router.catalog import Catalog
from roost.router.learned import Learned
from roost.router.loading import Loader
from roost.router.loads import LoadPriority
from roost.router.placement import Ledger
from roost.router.plans import Fits
from roost.router.revision import Revision
from roost.router.sizes import file_of, size_of
from roost.router.states import Availability

log = logging.getLogger(__name__)

T = TypeVar("T")

WORKING_SET_S = 24 * 3600.0
"""What was used within this time before the last use of all was in use."""

KEPT_S = 30 * 24 * 3600.0
"""What was used longer ago than this before the last use of all is forgotten, since it may be gone."""

MISFITS = 32
"""After so many models in a row that do not fit into what is free, no more are looked at."""

PAUSE_S = 0.5
"""How long the next model waits if there are requests: the busier the server is, the more often that happens."""


@dataclass(eq=False)
class Preload:
    """See the module.

    Attributes:
        learned: Knows what was used when.
        catalog: Knows the models.
        loader: Loads them.
        ledger: The device's budget.
        disk: The store is read on it.
        busy: Whether requests wait or run now.
        loaded: How many models were loaded.
        too_large: How many did not fit.
        failed: How many could not be loaded.
    """

    learned: Learned
    catalog: Catalog
    loader: Loader
    ledger: Ledger
    disk: Executor
    busy: Callable[[], bool]
    loaded: int = 0
    too_large: int = 0
    failed: int = 0
    _gone: list[VersionKey] = field(default_factory=list)

    async def run(self) -> None:
        """Loads one model after another until all are there or no more fit; whatever fails is no reason to stop."""
        began = time.monotonic()
        try:
            uses = await self._on_disk(self.learned.last_uses)
            await self._load_all(uses)
            self._gone += [key for key, used_at in uses if used_at < uses[0][1] - KEPT_S]
            if self._gone:
                await self._on_disk(partial(self.learned.forget_uses, self._gone))
        except Exception:
            log.exception("loading what was in use before the start failed: the rest is loaded when it is asked for")
        if self.loaded or self.too_large or self.failed:
            log.info(
                "loaded %d models again that were in use before the start, in %.1f s; %d did not fit, %d failed",
                self.loaded,
                time.monotonic() - began,
                self.too_large,
                self.failed,
            )

    async def _load_all(self, uses: list[tuple[VersionKey, float]]) -> None:
        misfits = 0
        for key, used_at in uses:
            if used_at < uses[0][1] - WORKING_SET_S or misfits == MISFITS:
                return
            if self.busy():
                await asyncio.sleep(PAUSE_S)
            before = self.too_large
            revision = await self._find(key)
            if revision is not None:
                await self._load(revision, used_at)
            misfits = misfits + 1 if self.too_large > before else 0

    async def _find(self, key: VersionKey) -> Revision | None:
        """The revision if it may be asked for and is not loaded."""
        try:
            version = await self.catalog.version(key.name, key.version)
        except NotFound:  # or, with explicit control, not loaded yet
            if not (self.catalog.explicit and self.catalog.in_repository(key.name)):
                self._gone.append(key)
            return None
        except RoostError:
            self.failed += 1
            return None
        revision = version.revision
        wanted = version.availability is Availability.READY and not revision.in_use()
        return revision if wanted and revision.description.ensemble is None else None

    async def _load(self, revision: Revision, used_at: float) -> None:
        try:
            await self.catalog.prepare(revision)
            copy = await self.loader.copies.find(revision)
            need = size_of(revision, copy).loading
            if not isinstance(self.ledger.plan(need, time.monotonic(), file=file_of(revision, copy)), Fits):
                self.too_large += 1
                return
            await self.loader.bring(revision, claim=False, priority=LoadPriority.PRELOAD, older_than=-math.inf)
        except ResourceExhausted:  # others were quicker
            self.too_large += 1
        except RoostError:
            self.failed += 1
        else:
            self.loaded += 1
            age_s = max(0.0, time.time() - used_at)  # the clock may have been set back
            self.ledger.used_before(revision, time.monotonic() - age_s)

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.disk, call)

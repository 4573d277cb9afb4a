"""Looks at the repositories again and again: what came, went or changed is found without a call.

A look at everything reads the names of all folders, one state of each folder that was opened, and the states of all
files of what is loaded. What differs is looked at again a little later, and acted upon when two looks in a row agree:
so files that are still being written are waited for, and a folder that is replaced by two renames never goes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from roost.core.errors import ResourceExhausted, RoostError
from roost.router.control import Control
from roost.router.looking import Looker, Seen

log = logging.getLogger(__name__)

SETTLE_S = 2.0

FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 3600.0
"""How long a change is left alone for which there was no room, the first time and at most: it may never have any."""


class Failure(NamedTuple):
    """A change that is not served.

    Attributes:
        look: What the model looked like.
        until: When it is tried again though it still looks like that.
        pause_s: How long that was from the failure.
    """

    look: Hashable
    until: float = math.inf
    pause_s: float = math.inf


@dataclass(slots=True)
class Watch:
    """What was seen and not acted upon yet; pure."""

    pending: dict[str, Hashable] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)

    def see(self, name: str, look: Hashable, now: float) -> bool:
        """Takes what a model that differs from what is served looks like; whether to act upon it now.

        What failed before is not tried again until it looks different, or its pause is over.
        """
        failure = self.failed.get(name)
        if failure is not None and failure.look == look and now < failure.until:
            self.pending.pop(name, None)
            return False
        if self.pending.get(name) != look:
            self.pending[name] = look
            return False
        del self.pending[name]
        return True

    def put_off(self, name: str, look: Hashable, now: float) -> float:
        """There was no room for a model that looks like this; returns how long it is not tried again."""
        before = self.failed.get(name)
        pause_s = FIRST_PAUSE_S
        if before is not None and before.look == look:
            pause_s = min(LONGEST_PAUSE_S, 2 * before.pause_s)
        self.failed[name] = Failure(look, now + pause_s, pause_s)
        return pause_s

    def same(self, name: str) -> None:
        """The model is as it is served."""
        self.pending.pop(name, None)
        self.failed.pop(name, None)


class Polling:
    """See the module.

    Args:
        looker: Looks at the disk.
        control: Does what has to be done.
        interval_s: The time between two looks at everything.
    """

    def __init__(self, looker: Looker, control: Control, interval_s: float) -> None:
        self._looker = looker
        self._control = control
        self._interval_s = interval_s
        self._watch = Watch()
        self._updating: set[str] = set()

    async def run(self) -> None:
        """Looks until it is cancelled. Updates of models run beside it: a slow load holds up no other change."""
        loop = asyncio.get_running_loop()
        next_s = loop.time() + self._interval_s
        async with asyncio.TaskGroup() as updates:
            while True:
                settle_s = min(SETTLE_S, self._interval_s)
                left_s = next_s - loop.time()
                await asyncio.sleep(min(settle_s, left_s) if self._watch.pending else left_s)
                try:
                    if loop.time() >= next_s:
                        await self.look(updates)
                    else:
                        await self.look_again(updates)
                except Exception:  # a look that fails is no reason to stop looking
                    log.exception("looking at the repositories failed")
                if loop.time() >= next_s:
                    next_s = loop.time() + self._interval_s

    async def look(self, updates: asyncio.TaskGroup) -> None:
        """Looks at everything.

        Args:
            updates: Owns the tasks that do what has to be done.
        """
        differing = await self._looker.look()
        for name in [*self._watch.pending, *self._watch.failed]:
            if name not in differing:
                self._watch.same(name)
        self._act(differing, updates)

    async def look_again(self, updates: asyncio.TaskGroup) -> None:
        """Looks at what differed the last time; ``updates`` as with ``look``."""
        names = list(self._watch.pending)
        differing = await self._looker.look_at(names)
        for name in names:
            if name not in differing:
                self._watch.same(name)
        self._act(differing, updates)

    def _act(self, differing: dict[str, Hashable], updates: asyncio.TaskGroup) -> None:
        for name, look in differing.items():
            if name not in self._updating and self._watch.see(name, look, time.monotonic()):
                self._updating.add(name)
                updates.create_task(self._update(name, look))

    async def _update(self, name: str, look: Hashable) -> None:
        """The task of one model; what goes wrong with it concerns no other."""
        try:
            if look is Seen.GONE:
                log.info("model '%s' is not in the repository any more", name)
                await self._control.remove(name)
            else:
                log.info("model '%s' has changed in the repository", name)
                await self._control.refresh(name)
        except ResourceExhausted as error:
            pause_s = self._watch.put_off(name, look, time.monotonic())
            log.warning("the change of model '%s' is tried again in %.0f s: %s", name, pause_s, error.message)
        except RoostError as error:
            self._watch.failed[name] = Failure(look)
            log.error("the change of model '%s' is not served: %s", name, error.message)
        except Exception:
            self._watch.failed[name] = Failure(look)
            log.exception("the change of model '%s' is not served", name)
        finally:
            self._updating.discard(name)

"""Full garbage collections that look at no object twice.

CPython stops everything while it looks at all objects, half a second with 20,000 models in use, and does so whenever
their number has grown by a quarter. Hardly any of them are garbage: what a collection leaves lives as long as its
model, as a rule for good. So it is *frozen*, and later collections look at what is new only. Garbage in cycles that
live longer than that (of models that are gone, of connections that were open during a collection) is found when all is
looked at once more: from time to time, and when nobody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping

log = logging.getLogger(__name__)

LOOKS_EVERY_S = 60.0
THAW_AFTER_S = 3600.0
THAW_AT_THE_LATEST_S = 24 * 3600.0
"""A server that is never idle has one long collection a day."""


@contextlib.contextmanager
def frozen_survivors() -> Iterator[None]:
    """Within this, what a full collection leaves is frozen."""
    gc.callbacks.append(_freeze)
    try:
        yield
    finally:
        gc.callbacks.remove(_freeze)


def survivors_are_frozen() -> bool:
    """Whether they are. How many there are, the interpreter counts one by one, 10 ms for 20,000 models."""
    return _freeze in gc.callbacks


def _freeze(phase: str, info: Mapping[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()


async def collect_when_idle(
    busy: Callable[[], bool],
    *,
    looks_every_s: float = LOOKS_EVERY_S,
    thaw_after_s: float = THAW_AFTER_S,
    at_the_latest_s: float = THAW_AT_THE_LATEST_S,
) -> None:
    """Looks at all objects once they were frozen for a while and nobody waits, or for very long; until cancelled.

    Args:
        busy: Whether somebody waits for an answer.
        looks_every_s: Time between two looks.
        thaw_after_s: How long objects are frozen at least.
        at_the_latest_s: And at most.
    """
    last = time.monotonic()
    while True:
        await asyncio.sleep(looks_every_s)
        frozen_s = time.monotonic() - last
        if frozen_s < thaw_after_s or (busy() and frozen_s < at_the_latest_s):
            continue
        began = time.monotonic()
        gc.unfreeze()
        found = gc.collect()
        last = time.monotonic()
        log.debug("looked at all objects in %.0f ms: %d were garbage", (last - began) * 1e3, found)

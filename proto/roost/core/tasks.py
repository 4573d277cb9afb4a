"""Tasks that belong to a block of code, looks that are repeated, and blocks that belong to a request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs work until the block ends, which cancels it and waits for its end; if it fails, so does the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        try:
            yield
        finally:
            task.cancel()


async def look_every(
    interval_s: float, look: Callable[[], Awaitable[None]], failed: Callable[[], object], *, at_once: bool = False
) -> None:
    """Looks again and again, until cancelled.

    Args:
        interval_s: Between the end of a look and the next one.
        look: Looks.
        failed: Called while a look's error is handled, which is no reason to stop looking.
        at_once: Whether to look before the first interval is over.
    """
    if not at_once:
        await asyncio.sleep(interval_s)
    while True:
        try:
            await look()
        except Exception:
            failed()
        await asyncio.sleep(interval_s)


def by_deadline(deadline: float) -> asyncio.Timeout:
    """``asyncio.timeout`` up to a time of ``time.monotonic``; infinity is for ever."""
    return asyncio.timeout(deadline - time.monotonic() if deadline < math.inf else None)
